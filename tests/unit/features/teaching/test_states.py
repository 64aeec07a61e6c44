"""State sensors of a stream, with the bundled detector: lessons, refusals, files, and what is published."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.infer.litert import load_runtime
from agent.compute.vision import VideoPerception
from agent.config import GateConfig, PublishConfig, StreamConfig
from agent.errors import CommandError, StorageError
from agent.features.teaching.lessons import TaughtHead, read_states
from agent.features.teaching.states import StreamStates
from agent.features.teaching.taught import (
    BYTES_MAX,
    EXAMPLES_MAX,
    Lesson,
    TaughtState,
    check_lesson,
    stored_values,
)
from agent.models.library import open_model
from agent.types import WHOLE, Frame, Image
from tests.support.doubles import Kept
from tests.support.publishing import wait_for

if load_runtime()[0] != "litert":
    pytest.skip("the bundled detector is opened by LiteRT here", allow_module_level=True)

TOPICS = Topics("vedette", "porch")
REGION = (0.25, 0.25, 0.75, 0.75)
BEGAN = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def vision() -> Iterator[VideoPerception]:
    config = StreamConfig(
        source="test:", model="nanodet", variant="256", gate=GateConfig(motion=False), threads=1
    )
    opened = VideoPerception("front", config, open_model("nanodet", "256"))
    yield opened
    opened.close()


class Stream:
    """A stream whose pictures a test gives one by one, half a second apart."""

    def __init__(self, folder: Path, vision: VideoPerception, **times: float) -> None:
        self.kept, self.vision, self.folder = Kept(), vision, folder
        model = ModelId("nanodet", "0" * 12)
        self.reporter = Reporter(TOPICS, "front", PublishConfig(), model, self.kept, self.kept)
        delay_s = times.pop("delay_s", 0.0)
        self.states = StreamStates("front", folder, vision, self.reporter, **times)
        self.states.delay_s = delay_s
        self.number, self.answers = 0, list[tuple[dict[str, Any] | None, str]]()

    def show(self, what: str, count: int = 1) -> None:
        for _ in range(count):
            self.number += 1
            at_ns = self.number * 500_000_000
            frame = Frame(
                picture(what, self.number), "front", self.number, at_ns, BEGAN + timedelta(seconds=at_ns / 1e9)
            )
            self.states.poll(at_ns)
            self.vision.process(frame)
            self.states.classify(frame)

    def teach(self, value: str, count: int = 5, state: str = "gate") -> tuple[dict[str, Any] | None, str]:
        before = len(self.answers)
        self.states.teach(Lesson(state, value, count, REGION), lambda *answer: self.answers.append(answer))
        self.show(value, count)
        wait_for(lambda: len(self.answers) > before)
        return self.answers[-1]

    def sensor(self, state: str = "gate") -> str:
        body = self.kept.retained.get(TOPICS.sensor("front", state), b"")
        return str(json.loads(body)["value"]) if body else ""


def picture(what: str, seed: int) -> Image:
    """A picture of a gate, 96×96, with noise."""
    found = np.full((96, 96, 3), 120, np.float32)
    if what == "closed":
        found[24:72, 24:72] = (30, 60, 200)
        found[24:72:8, 24:72] = 250
    elif what == "strange":
        found[10:80, 10:80:6] = (255, 0, 255)
    found += np.random.default_rng(seed).normal(0, 4, found.shape)
    return np.clip(found, 0, 255).astype(np.uint8)


@pytest.fixture
def stream(tmp_path: Path, vision: VideoPerception) -> Stream:
    return Stream(tmp_path / "states", vision)


def taught(stream: Stream) -> Stream:
    for value in ("open", "closed"):
        result, why = stream.teach(value)
        assert result is not None, why
    return stream


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, vision: VideoPerception) -> bytes:
    """The file of a gate that was taught."""
    stream = taught(Stream(tmp_path_factory.mktemp("kept") / "states", vision))
    return (stream.folder / "front.gate.json").read_bytes()


def test_a_state_is_taught_and_told_with_an_event_for_each_change(stream: Stream) -> None:
    first, _ = stream.teach("open")
    assert first == {"examples": {"open": 5}}
    second, _ = stream.teach("closed")
    assert second is not None
    assert second["check"]["closed"] == {"right": 5, "unsure": 0, "wrong": 0}
    stream.show("closed", 4)
    assert stream.sensor() == "closed"
    stream.show("open", 4)
    assert stream.sensor() == "open"
    assert [(one.label, one.box) for one in stream.states.shown] == [("gate open", REGION)]
    stream.show("strange", 14)
    assert stream.sensor() == "unsure"
    stream.states.finish("shutdown")
    assert stream.sensor() == ""
    told = [(event.kind, event.track.label) for event in stream.kept.events()]
    assert told == [
        ("new", "gate closed"),
        ("end", "gate closed"),
        ("new", "gate open"),
        ("end", "gate open"),
        ("new", "gate unsure"),
        ("end", "gate unsure"),
    ]
    assert {event.track.box for event in stream.kept.events()} == {REGION}
    assert all(body is None for body in stream.kept.crash_ends.values()), "nothing is open"


def test_a_state_that_was_just_taught_is_looked_at_without_motion(stream: Stream) -> None:
    taught(stream)
    assert stream.sensor() == ""
    stream.states.poll((stream.number + 1) * 500_000_000)
    assert stream.vision.wants_inference
    stream.show("closed", 4)
    assert stream.sensor() == "closed"
    stream.states.poll((stream.number + 1) * 500_000_000)
    assert not stream.vision.wants_inference


def test_what_was_taught_is_read_again_and_holds_no_picture(stream: Stream, tmp_path: Path) -> None:
    taught(stream)
    (file,) = stream.folder.glob("*.json")
    assert file.name == "front.gate.json"
    assert file.stat().st_size < 400_000
    again = Stream(stream.folder, stream.vision)
    assert again.states.values == {"gate": ("open", "closed")}
    again.show("closed", 3)
    assert again.sensor() == "closed"
    assert again.states.describe_states()["gate"]["examples"] == {"open": 5, "closed": 5}
    assert read_states(stream.folder, "other", lambda one: TaughtHead(one, None)) == {}


def test_a_state_asks_for_pictures_only_while_it_needs_them(stream: Stream) -> None:
    taught(stream)
    wanted = list[bool]()
    for what, count in (("closed", 4), ("open", 1), ("open", 4)):
        stream.show(what, count)
        for later_ns in (100_000_000, 300_000_000):
            stream.states.poll(stream.number * 500_000_000 + later_ns)
            wanted.append(stream.vision.wants_inference)
    assert wanted == [False, False, False, True, False, False]


def test_pictures_that_are_still_on_their_way_are_not_learned(tmp_path: Path, vision: VideoPerception) -> None:
    late = Stream(tmp_path, vision, delay_s=2.0)
    late.states.teach(Lesson("gate", "open", 5), lambda *answer: late.answers.append(answer))
    late.show("closed", 3)
    time.sleep(2.0)
    late.show("open", 5)
    wait_for(lambda: late.answers)
    assert late.answers[0][0] == {"examples": {"open": 5}}


def test_a_lesson_without_pictures_ends_with_its_reason(tmp_path: Path, vision: VideoPerception) -> None:
    short = Stream(tmp_path, vision, patience_s=0.05)
    short.states.teach(Lesson("gate", "open", 5), lambda *answer: short.answers.append(answer))
    with pytest.raises(CommandError, match="is being taught"):
        short.states.teach(Lesson("gate", "closed"), lambda *answer: None)
    time.sleep(0.1)
    short.states.poll(0)
    assert short.answers[0][0] is None
    assert "0 of 5 pictures came" in short.answers[0][1]
    short.states.teach(Lesson("gate", "open", 5), lambda *answer: short.answers.append(answer))
    short.states.finish("shutdown")
    assert "shutdown" in short.answers[1][1]
    with pytest.raises(CommandError, match="being stopped"):
        short.states.teach(Lesson("gate", "open", 5), lambda *answer: None)
    assert not list(tmp_path.glob("*.json"))


def test_a_full_disk_refuses_a_lesson_and_keeps_what_was_known(stream: Stream) -> None:
    taught(stream)
    (file,) = stream.folder.glob("*.json")
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    result, why = stream.teach("closed")
    assert result is None
    assert "front.gate.json" in why
    assert stream.states.describe_states()["gate"]["examples"] == {"open": 5, "closed": 5}
    file.rmdir()
    file.write_bytes(content)


@pytest.mark.parametrize(
    "lesson",
    [
        Lesson("", "open"),
        Lesson("a/b", "open"),
        Lesson("gate", ""),
        Lesson("gate", "unsure"),
        Lesson("gate", "None"),
        Lesson("gate", "x" * 33),
        Lesson("gate", "open\n"),
        Lesson("gate", "open", 0),
        Lesson("gate", "open", 21),
        Lesson("gate", "open", 5, (0.5, 0.0, 0.4, 1.0)),
        Lesson("gate", "open", 5, (0.0, 0.0, 1.5, 1.0)),
        Lesson("gate", "open", 5, (0.0, float("nan"), 1.0, 1.0)),
        Lesson("gate", "open", 5, (0.0, 0.0, 0.001, 1.0)),
    ],
)
def test_a_lesson_that_cannot_be_given_is_refused(lesson: Lesson) -> None:
    with pytest.raises(CommandError):
        check_lesson(lesson)


def test_another_region_is_refused_until_the_state_is_forgotten(stream: Stream) -> None:
    taught(stream)
    with pytest.raises(CommandError, match="forget it"):
        stream.states.teach(Lesson("gate", "open", 5, WHOLE), lambda *answer: None)
    stream.show("closed", 3)
    with pytest.raises(CommandError, match="no value"):
        stream.states.forget("gate", "ajar")
    stream.states.forget("gate", "open")
    assert stream.sensor() == ""
    assert "a second value" in stream.states.describe_states()["gate"]["detail"]
    stream.states.forget("gate", "")
    assert not list(stream.folder.glob("*.json"))
    assert stream.kept.kinds() == ["new", "end"]
    with pytest.raises(CommandError, match="there are: none"):
        stream.states.forget("gate", "")


def test_a_state_of_another_model_is_silent_until_it_is_forgotten(stream: Stream) -> None:
    taught(stream)
    (file,) = stream.folder.glob("*.json")
    other = msgspec.json.decode(file.read_bytes())
    file.write_bytes(msgspec.json.encode({**other, "model": "f" * 64}))
    again = Stream(stream.folder, stream.vision)
    again.show("closed", 4)
    assert again.sensor() == ""
    assert "teach it again" in again.states.describe_states()["gate"]["detail"]
    with pytest.raises(CommandError, match="forget it"):
        again.states.teach(Lesson("gate", "open", 5, REGION), lambda *answer: None)
    again.states.forget("gate", "")
    assert again.teach("open")[0] == {"examples": {"open": 5}}


def test_a_file_of_quite_another_model_is_not_learned_and_what_is_stored_is_known_without_a_stream(
    stream: Stream,
) -> None:
    taught(stream)
    (file,) = stream.folder.glob("*.json")
    whole = msgspec.json.decode(file.read_bytes())
    assert stored_values(stream.folder, "front") == {"gate": ("open", "closed")}
    other = {"name": "door", "size": 1280, "model": "f" * 64}
    (stream.folder / "front.door.json").write_bytes(msgspec.json.encode({**whole, **other}))
    again = Stream(stream.folder, stream.vision)
    assert set(again.states.values) == {"gate"}
    assert "teach it again" in again.states.describe_states()["door"]["detail"]
    (stream.folder / "front.door.json").write_bytes(b"{")
    assert stored_values(stream.folder, "front") == {"gate": ("open", "closed")}


def test_a_value_with_too_few_examples_leaves_the_others_at_work(stream: Stream) -> None:
    taught(stream)
    stream.show("closed", 4)
    result, _ = stream.teach("strange", 2)
    assert result is not None
    assert set(result["check"]) == {"open", "closed"}
    assert stream.states.describe_states()["gate"]["detail"] == "'strange' needs 3 more examples"
    assert stream.sensor() == "closed"
    stream.show("open", 4)
    assert stream.sensor() == "open"
    stream.teach("strange", 3)
    assert json.loads(stream.kept.retained[TOPICS.sensor("front", "gate")])["values"] == [
        "open",
        "closed",
        "strange",
    ]
    stream.show("strange", 4)
    assert stream.sensor() == "strange"


def test_a_state_is_not_forgotten_while_it_is_taught(stream: Stream) -> None:
    taught(stream)
    stream.states.teach(Lesson("gate", "open", 5), lambda *answer: stream.answers.append(answer))
    with pytest.raises(CommandError, match="is being taught"):
        stream.states.forget("gate", "")
    stream.states.suspend()
    assert "camera was lost" in stream.answers[-1][1]


def test_a_forget_that_the_disk_refuses_leaves_the_value(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    taught(stream)
    stream.show("closed", 4)

    def refuse(self: object, content: bytes) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("agent.features.teaching.lessons.StateFile.write", refuse)
    for value in ("open", ""):
        with pytest.raises(StorageError):
            stream.states.forget("gate", value)
    assert stream.sensor() == "closed"


NAN = base64.b64encode(np.full((3, 2560), np.nan, "<f2").tobytes()).decode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"name": "gate"}',
        {"size": 7},
        {"name": "a\nb"},
        {"name": "gate"},
        {"region": [5, 5, 9, 9]},
        {"examples": {}},
        {"examples": {"unsure": [NAN]}},
        {"examples": {"open": [NAN] * 5, "closed": [NAN] * 5}},
    ],
)
def test_a_damaged_file_is_kept_aside_and_the_others_are_used(
    stream: Stream, kept: bytes, content: bytes | dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stream.folder.mkdir()
    (stream.folder / "front.gate.json").write_bytes(kept)
    whole = msgspec.json.decode(kept)
    cut = content if isinstance(content, bytes) else msgspec.json.encode({**whole, "name": "door", **content})
    (stream.folder / "front.door.json").write_bytes(cut)
    again = Stream(stream.folder, stream.vision)
    assert set(again.states.values) == {"gate"}
    assert "front.door.json" in caplog.text
    assert (stream.folder / "front.door.json.damaged").exists()
    assert not (stream.folder / "front.door.json").exists()


def test_the_oldest_examples_make_room() -> None:
    state = TaughtState("gate", WHOLE, "m", "v", 4000)
    for number in range(90):
        row = np.full((3, 4000), number, np.float32)
        state = state.with_examples(f"v{number % 3}", [row])
    counts = {value: len(some) for value, some in state.examples.items()}
    assert sum(counts.values()) == BYTES_MAX // (3 * 4000 * 2)
    assert max(counts.values()) - min(counts.values()) <= 1 < EXAMPLES_MAX
    assert state.embeddings()["v2"][-1][0, 0] == 89.0
    assert len(msgspec.json.encode(state)) < 1024**2


def test_two_values_that_look_the_same_are_not_learned(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = np.ones(stream.vision.embedding_size, np.float32)
    monkeypatch.setattr(stream.vision, "embed", lambda region: alike)
    assert stream.teach("open")[0] is not None
    result, why = stream.teach("closed")
    assert (result, "alike" in why) == (None, True)
    assert stream.states.describe_states()["gate"]["examples"] == {"open": 5}


def test_values_that_their_examples_do_not_tell_apart_stay_unsure(stream: Stream) -> None:
    for value in ("open", "closed"):
        stream.states.teach(Lesson("gate", value, 10, REGION), lambda *answer: stream.answers.append(answer))
        stream.show("open", 10)
        wait_for(lambda: len(stream.answers) == 1 + (value == "closed"))  # noqa: B023 - awaited here
    stream.show("open", 20)
    assert stream.sensor() == "unsure"
    assert "look the same" in stream.states.describe_states()["gate"]["detail"]
    again = Stream(stream.folder, stream.vision)
    again.show("open", 20)
    assert again.sensor() == "unsure"


def test_a_lost_camera_makes_a_value_unknown(stream: Stream) -> None:
    taught(stream)
    stream.show("closed", 3)
    stream.states.suspend()
    assert stream.sensor() == ""
    assert [(event.kind, event.reason) for event in stream.kept.events()] == [("new", "state"), ("end", "stall")]
    stream.show("closed", 3)
    assert stream.sensor() == "closed"


def test_the_thread_that_learns_has_a_name(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()

    def result(states: StreamStates, one: TaughtState) -> dict[str, Any]:
        names.append(threading.current_thread().name)
        return {}

    monkeypatch.setattr(StreamStates, "_result", result)
    stream.teach("open")
    assert names == ["teach-front"]
