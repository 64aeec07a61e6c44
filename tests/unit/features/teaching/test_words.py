"""Words of a stream, with the bundled embedding: lessons, refusals, files, and what is published."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.infer.litert import load_runtime
from agent.compute.listening import UtterancePerception
from agent.config import DecodeConfig, PublishConfig, StreamConfig
from agent.daemon.parts import Parts
from agent.daemon.streams.pipeline import AudioPipeline
from agent.errors import CommandError
from agent.features.teaching.taught import Lesson
from agent.features.teaching.words import StreamWords
from agent.models.library import open_model
from agent.types import AudioChunk, Samples
from tests.support.doubles import Kept
from tests.support.publishing import wait_for
from tests.unit.compute.spoken_words import RATE, quiet, said

if load_runtime()[0] != "litert":
    pytest.skip("the bundled models are opened by LiteRT here", allow_module_level=True)

CONFIG = StreamConfig("mic:default", "speech-embedding", threads=1)
TAUGHT = ("alexa", "okay nabu")


@pytest.fixture(scope="module")
def hearing() -> Iterator[UtterancePerception]:
    opened = UtterancePerception("mic", CONFIG, open_model("speech-embedding"))
    yield opened
    opened.close()


class Sound:
    """A source that gives some sound and ends."""

    lost = False

    def __init__(self, samples: Samples) -> None:
        self._parts = [samples[at : at + 1600] for at in range(0, len(samples), 1600)]
        self._first = 0

    @property
    def ended(self) -> bool:
        return not self._parts

    def take(self, timeout_s: float) -> AudioChunk:
        part, first = self._parts.pop(0), self._first
        self._first += len(part)
        at = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=self._first / RATE)
        return AudioChunk(part, RATE, "mic", first, round(self._first / RATE * 1e9), at)


class Mic:
    """A stream whose sound a test gives."""

    def __init__(self, folder: Path, hearing: UtterancePerception, **times: float) -> None:
        self.kept, self.hearing, self.folder = Kept(), hearing, folder
        hearing.configure(CONFIG)
        self.said = 0
        self.reporter = Reporter(
            Topics("vedette", "porch"), "mic", PublishConfig(), ModelId("e", "0" * 12), self.kept, self.kept
        )
        delay_s = times.pop("delay_s", 0.0)
        self.words = StreamWords("mic", folder, hearing, self.reporter, **times)
        self.words.delay_s = delay_s
        self.answers = list[tuple[dict[str, Any] | None, str]]()

    def hear(self, *parts: Samples) -> None:
        """Hear some sound, as the pipeline of a stream does that goes on afterwards."""
        self.hearing.reset()
        self.hearing._next = 0
        pipeline = AudioPipeline(
            Sound(np.concatenate([quiet(1.5), *parts, quiet(0.8)])), self.hearing, self.reporter
        )
        pipeline.parts.attach("teaching", self.words)
        while not pipeline._source.ended:
            item = pipeline._source.take(0.0)
            assert item is not None
            pipeline._process(item)

    def teach(self, word: str, count: int = 5, name: str = "command") -> tuple[dict[str, Any] | None, str]:
        before = len(self.answers)
        self.words.teach(Lesson(name, word, count), lambda *answer: self.answers.append(answer))
        self.said += count
        self.hear(*(said(word, 100 + self.said - number) for number in range(count)))
        wait_for(lambda: len(self.answers) > before)
        return self.answers[-1]

    def heard(self) -> list[str]:
        return [event.track.label for event in self.kept.events() if event.kind == "keyword"]


@pytest.fixture
def mic(tmp_path: Path, hearing: UtterancePerception) -> Mic:
    return Mic(tmp_path / "states", hearing)


def taught(mic: Mic) -> Mic:
    for word in TAUGHT:
        result, why = mic.teach(word)
        assert result is not None, why
    return mic


def test_words_are_taught_and_heard_and_others_are_not(mic: Mic) -> None:
    first, _ = mic.teach("alexa")
    assert first is not None
    assert first["examples"] == {"alexa": 5}
    second, _ = mic.teach("okay nabu")
    assert second is not None
    assert second["check"]["okay nabu"]["wrong"] == 0
    assert mic.heard() == [], "what is said in a lesson is an example, and no command"
    mic.hear(said("okay nabu", 31), said("three", 32), said("alexa", 33), said("seven", 34))
    assert mic.heard() == ["okay nabu", "alexa"]
    (event, _) = mic.kept.events()
    assert 0.5 <= event.track.score <= 1.0
    assert timedelta(seconds=0.4) <= event.track.last_seen - event.track.first_seen <= timedelta(seconds=1.2)
    told = mic.words.describe_states()["command"]
    assert (told["value"], told["detail"]) == ("alexa", "")
    assert mic.words.values == {"command": TAUGHT}


def test_one_word_alone_is_enough(mic: Mic) -> None:
    result, _ = mic.teach("alexa")
    assert result is not None
    assert "check" in result
    mic.hear(said("alexa", 31), said("okay nabu", 32))
    assert mic.heard() == ["alexa"]


def test_fewer_than_five_examples_say_so_and_more_may_follow(mic: Mic) -> None:
    result, _ = mic.teach("alexa", 3)
    assert result == {"examples": {"alexa": 3}}
    assert "'alexa' needs 2 more examples" in mic.words.describe_states()["command"]["detail"]
    mic.hear(said("alexa", 31))
    assert mic.heard() == []
    mic.teach("alexa", 4)
    mic.hear(said("alexa", 31))
    assert mic.heard() == ["alexa"]


def test_words_of_two_lessons_give_one_event(mic: Mic) -> None:
    taught(mic)
    mic.teach("alexa", name="names")
    mic.hear(said("alexa", 31))
    assert mic.heard() == ["alexa"]


def test_a_higher_threshold_hears_less(mic: Mic) -> None:
    taught(mic)
    mic.hearing.configure(StreamConfig("mic:", "speech-embedding", decode=DecodeConfig(score_threshold=0.99)))
    mic.hear(said("alexa", 31), said("okay nabu", 32))
    assert mic.heard() == []


def test_what_was_taught_is_read_again_and_holds_no_sound(mic: Mic) -> None:
    taught(mic)
    (file,) = mic.folder.glob("*.json")
    assert file.name == "mic.command.json"
    assert file.stat().st_size < 5_000
    again = Mic(mic.folder, mic.hearing)
    again.hear(said("alexa", 31))
    assert again.heard() == ["alexa"]


def test_a_damaged_file_is_set_aside(mic: Mic) -> None:
    taught(mic)
    (file,) = mic.folder.glob("*.json")
    file.write_bytes(file.read_bytes()[:100])
    assert Mic(mic.folder, mic.hearing).words.describe_states() == {}
    assert list(mic.folder.glob("mic.command.json*")) != [file]


def test_words_are_forgotten_one_by_one_and_together(mic: Mic) -> None:
    taught(mic)
    mic.words.forget("command", "alexa")
    mic.hear(said("alexa", 31), said("okay nabu", 31))
    assert mic.heard() == ["okay nabu"]
    mic.words.forget("command", "")
    assert mic.words.describe_states() == {}
    with pytest.raises(CommandError, match="no state 'command'"):
        mic.words.forget("command", "")


def test_a_lesson_without_words_ends_with_the_reason(tmp_path: Path, hearing: UtterancePerception) -> None:
    mic = Mic(tmp_path, hearing, patience_s=0.0)
    result, why = mic.teach("alexa")
    assert (result, "0 of 5 words came" in why) == (None, True)


def test_a_lesson_ends_with_its_stream(mic: Mic) -> None:
    mic.words.teach(Lesson("command", "alexa"), lambda *answer: mic.answers.append(answer))
    mic.words.finish("shutdown")
    assert [answer[0] for answer in mic.answers] == [None]
    with pytest.raises(CommandError, match="being stopped"):
        mic.words.teach(Lesson("command", "alexa"), lambda *_: None)


def test_what_was_said_before_the_request_is_no_example(tmp_path: Path, hearing: UtterancePerception) -> None:
    mic = Mic(tmp_path, hearing, delay_s=100.0)
    mic.words.teach(Lesson("command", "alexa", 1), lambda *answer: mic.answers.append(answer))
    mic.hear(said("alexa", 1))
    assert mic.answers == []


@pytest.mark.parametrize(
    ("lesson", "why"),
    [
        (Lesson("command", "stop", region=(0.0, 0.0, 1.0, 1.0)), "region"),
        (Lesson("command", "unsure"), "no value"),
        (Lesson("a/b", "stop"), "no name"),
        (Lesson("command", "stop", 21), "1 to 20"),
    ],
)
def test_a_lesson_that_cannot_be_given_is_refused(mic: Mic, lesson: Lesson, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        mic.words.teach(lesson, lambda *_: None)


def test_the_last_word_of_a_recording_is_heard(mic: Mic) -> None:
    taught(mic)
    mic.hearing.reset()
    mic.hearing._next = 0
    sound = Sound(np.concatenate([quiet(1.5), said("alexa", 31, pause_s=0.1)]))
    parts = Parts()
    parts.attach("teaching", mic.words)
    AudioPipeline(sound, mic.hearing, mic.reporter, parts).run(threading.Event())
    assert mic.heard() == ["alexa"]
