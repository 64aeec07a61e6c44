"""Fused events in the daemon: what becomes evidence, what goes on after a reload, and that errors end nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.comms.messages import EventMessage
from agent.comms.topics import Topics
from agent.config import Config, FusionConfig, StorageConfig, StreamConfig, TextConfig
from agent.config.features import InspectionConfig
from agent.config.servers import MqttConfig
from agent.daemon.runtime import Runtime
from agent.errors import BackendError, ConfigError
from agent.features.fusion.checks import evidence_sources, plan_fusion
from agent.features.fusion.expression import Judgement
from agent.features.fusion.part import FusionRunner
from agent.storage.spool.spool import Spool
from agent.types import Event, EventKind, OpenTrack, Track

STREAMS = {
    "front": StreamConfig("test:", "nanodet"),
    "mic": StreamConfig("mic:default", "small-speech"),
}
TOPICS = Topics("vedette", "porch")


class Board:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.events: list[EventMessage] = []
        self.crash_ends: dict[str, bytes | None] = {}
        self.retained: list[tuple[str, bytes]] = []

    def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
        self.events.append(msgspec.json.decode(body, type=EventMessage))
        if track is not None:
            self.crash_ends[track.key] = track.body

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        self.retained.append((topic, payload))

    def send(self, topic: str, payload: bytes) -> None:
        raise AssertionError(topic)


def config(**fusion: FusionConfig) -> Config:
    return Config(streams=STREAMS, text={"gate": TextConfig()}, fusion=fusion)


CALL = FusionConfig(when='person and "help"', window_s=2.0, late_s=0.1, hold_s=0.1)


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def runner(board: Board) -> Iterator[FusionRunner]:
    made = FusionRunner(TOPICS, board, board)
    made.start()
    made.set_present({"front": True, "mic": True, "gate": True})
    yield made
    made.stop(0.5)


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60.0
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def seen(kind: EventKind = "new", label: str = "person", number: int = 1, ago_s: float = 0.0) -> Event:
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return Event(kind, Track(f"front-x-{number}", label, 0.8, 0.8, 3, at, at), "appeared")


def test_streams_and_texts_tell_what_they_can_give() -> None:
    inspected = StreamConfig("test:", "nanodet", inspection=InspectionConfig())
    missing = StreamConfig("test:", "/no/such.tflite")
    sources = evidence_sources(
        Config(streams={**STREAMS, "line": inspected, "new": missing}, text={"gate": TextConfig()})
    )
    assert {name: one.kind for name, one in sources.items()} == {
        "front": "pictures",
        "mic": "words",
        "line": "none",
        "new": "unknown",
        "gate": "text",
    }
    assert "person" in sources["front"].labels
    assert "seven" in sources["mic"].labels


def test_a_track_and_a_text_are_one_event_with_a_crash_end(runner: FusionRunner, board: Board) -> None:
    runner.configure(plan_fusion(config(call=CALL)), {})
    now = datetime.now(UTC)
    runner.add_events("front", [seen()], now)
    runner.add_text("gate", "HELP me", now)
    wait(lambda: board.events)
    new = board.events[0]
    assert (new.stream, new.kind, new.track.hits, new.model.name) == ("call", "new", 2, "rule")
    assert {one.source for one in new.track.evidence} == {"front", "gate"}
    crash_end = board.crash_ends[new.track.id]
    assert crash_end is not None
    assert msgspec.json.decode(crash_end, type=EventMessage).track.evidence == new.track.evidence
    wait(lambda: runner.health()["call"].on)
    wait(lambda: len(board.events) == 2)
    assert board.events[1].kind == "end"
    assert board.crash_ends[new.track.id] is None
    counts = [payload for topic, payload in board.retained if topic == TOPICS.count("call", "call")]
    assert counts == [b"0", b"1", b"0"]


def test_what_is_open_when_an_event_is_configured_is_evidence(runner: FusionRunner, board: Board) -> None:
    runner.configure(plan_fusion(config(call=CALL)), {"front": [seen(ago_s=3600.0).track]})
    runner.add_text("gate", "help", datetime.now(UTC))
    wait(lambda: board.events)
    assert board.events[0].track.hits == 2


@pytest.mark.parametrize("hours", [-5, 5])
def test_capture_times_of_a_replay_or_a_clock_that_was_set_count_as_now(
    runner: FusionRunner, board: Board, hours: int
) -> None:
    runner.configure(plan_fusion(config(call=CALL)), {})
    far = datetime.now(UTC) + timedelta(hours=hours)
    runner.add_events("front", [Event("new", Track("front-x-1", "person", 0.8, 0.8, 3, far, far), "")], far)
    runner.add_text("gate", "help", datetime.now(UTC))
    wait(lambda: board.events)
    assert abs((board.events[0].captured_at - datetime.now(UTC)).total_seconds()) < 60.0


def test_an_event_whose_condition_stays_goes_on_through_a_reload(runner: FusionRunner, board: Board) -> None:
    long = msgspec.structs.replace(CALL, window_s=60.0)
    runner.configure(plan_fusion(config(call=long, other=long)), {})
    runner.add_events("front", [seen()], datetime.now(UTC))
    runner.add_text("gate", "help", datetime.now(UTC))
    wait(lambda: len(board.events) == 2)
    receiver = runner.texts["gate"]
    runner.configure(plan_fusion(config(call=long)), {})
    assert runner.texts["gate"] is receiver
    wait(lambda: len(board.events) == 3)
    assert (board.events[2].stream, board.events[2].kind, board.events[2].reason) == ("other", "end", "reloaded")
    wait(lambda: board.retained[-1] == (TOPICS.count("other", "other"), b""))
    runner.configure(plan_fusion(config(call=msgspec.structs.replace(long, hold_s=9.0))), {})
    wait(lambda: len(board.events) == 4)
    assert (board.events[3].stream, board.events[3].kind) == ("call", "end")


def test_a_stop_ends_every_event(runner: FusionRunner, board: Board) -> None:
    runner.configure(plan_fusion(config(call=msgspec.structs.replace(CALL, window_s=60.0))), {})
    runner.add_events("front", [seen()], datetime.now(UTC))
    runner.add_text("gate", "help", datetime.now(UTC))
    runner.stop(0.5)
    assert [one.kind for one in board.events] == ["new", "end"]
    assert board.events[1].reason == "shutdown"


def test_an_internal_error_ends_nothing(
    runner: FusionRunner, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    runner.configure(plan_fusion(config(call=CALL)), {})
    with caplog.at_level(logging.ERROR):
        runner.add_events("front", ["no event"], datetime.now(UTC))  # type: ignore[list-item]
        runner.add_events("front", [seen()], datetime.now(UTC))
        runner.add_text("gate", "help", datetime.now(UTC))
        wait(lambda: board.events)
    assert "please report" in caplog.text


def test_a_condition_that_fails_is_logged_once_and_disturbs_no_other(
    runner: FusionRunner, board: Board, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_fusion(config(broken=CALL, call=CALL))
    asked: list[object] = []

    def judge(readings: object) -> Judgement:
        asked.append(readings)
        raise BackendError("the inference failed")

    monkeypatch.setattr(plan.fused["broken"].condition, "judge", judge)
    runner.configure(plan, {})
    with caplog.at_level(logging.ERROR):
        runner.add_events("front", [seen()], datetime.now(UTC))
        runner.add_text("gate", "help", datetime.now(UTC))
        wait(lambda: len(board.events) == 2)
    assert {one.stream for one in board.events} == {"call"}
    assert caplog.text.count("fusion broken: internal error") == 1
    assert len(asked) < 50, "it is not tried without a pause"


def test_a_runtime_joins_what_its_streams_report_and_stops_with_its_configuration(tmp_path: Path) -> None:
    spool = Spool(tmp_path, StorageConfig())
    waiting = config(call=msgspec.structs.replace(CALL, window_s=60.0))
    runtime = Runtime(msgspec.structs.replace(waiting, mqtt=MqttConfig(commands=True)), spool)
    parts = runtime.parts
    parts.open(runtime.config)
    parts.start()
    parts.poll(runtime.config)
    fusion: FusionRunner = parts.get("fusion").runner
    assert list(fusion.texts) == ["gate"]
    fusion.add_events("front", [seen()], datetime.now(UTC))
    fusion.add_text("gate", "help", datetime.now(UTC))
    wait(lambda: spool.stats().waiting == 1)
    wait(lambda: parts.health()["fusion"]["call"].on)
    parts.configure(Config(streams=STREAMS))
    wait(lambda: spool.stats().waiting == 2 and not fusion.health())
    assert fusion.texts == {}
    parts.close(0.5)
    other = Runtime(Config(streams=STREAMS), spool).parts
    other.open(Config(streams=STREAMS))
    assert other.get("fusion") is None
    spool.close()


def test_a_calibration_that_is_gone_after_the_check_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, StorageConfig())
    runtime = Runtime(config(call=CALL), spool)
    runtime.parts.open(runtime.config)
    part = runtime.parts.get("fusion")
    part.start()
    wait(part.runner.health)
    gone = FusionConfig(calibration=str(tmp_path / "gone.json"))
    part.configure(config(call=gone))
    assert "keeping the old fused events: fusion call: `calibration`" in caplog.text
    assert list(part.runner.texts) == ["gate"]
    part.close(0.5)
    spool.close()


def test_a_daemon_without_a_fused_event_loads_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys, agent.cli.run, agent.daemon.daemon\n"
        "from agent.config import Config, StreamConfig\n"
        "from agent.daemon.check_device import check_device\n"
        "check_device(Config(streams={'front': StreamConfig('test:', 'nanodet')}))\n"
        "print([name for name in sys.modules if 'fusion' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_event_needs_exactly_one_condition(tmp_path: Path) -> None:
    for one in (FusionConfig(), FusionConfig(when="person", calibration="x.json")):
        with pytest.raises(ConfigError, match="one of `when` and `calibration`"):
            plan_fusion(config(call=one))


def test_without_a_fused_event_no_text_is_taken() -> None:
    assert plan_fusion(config()).texts == ()
