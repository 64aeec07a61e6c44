from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from agent.comms.messages import ConditionMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.config.features import Problem
from agent.errors import CommandError
from agent.features.condition.part import StreamCondition
from agent.features.condition.rules import PROBLEMS, Watcher
from agent.types import Event, Track
from tests.support.doubles import Kept

BEGAN = datetime(2026, 11, 28, 12, tzinfo=UTC)
TOPIC = "vedette/porch/front/condition"


class Problems(Watcher):
    """A watcher that finds what it is told to."""

    def __init__(self, *, zones: bool = True) -> None:
        self.found: Mapping[Problem, str] = {}
        self.suspensions: list[bool] = []
        self._has_zones = zones
        self.observed, self.closed = 0, False

    @property
    def problems(self) -> Mapping[Problem, str]:
        return self.found

    def suspend_zones(self, suspended: bool) -> bool:
        self.suspensions.append(suspended)
        return self._has_zones

    def observe(self, events: Sequence[Event]) -> None:
        self.observed += len(events)

    def close(self) -> None:
        self.closed = True


class Told:
    """A stream's condition on a made clock, and what it publishes."""

    def __init__(self, *ignored: Problem, zones: bool = True) -> None:
        self.kept, self.watcher = Kept(), Problems(zones=zones)
        topics = Topics("vedette", "porch")
        self.reporter = Reporter(topics, "front", PublishConfig(), ModelId("", ""), self.kept, self.kept)
        self.condition = StreamCondition("front", self.watcher, self.reporter, ignored)

    def poll(self, at_s: float, **problems: str) -> None:
        self.watcher.found = problems  # type: ignore[assignment]
        self.condition.poll(round(at_s * 1e9), BEGAN + timedelta(seconds=at_s))

    @property
    def messages(self) -> list[ConditionMessage]:
        found = [body for topic, body in self.kept.history if topic == TOPIC and body]
        return [msgspec.json.decode(body, type=ConditionMessage) for body in found]


def test_a_problem_is_told_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = Told()
    for at_s in range(5):
        told.poll(at_s)
    for at_s in range(5, 605):
        told.poll(at_s, dark="")
    for at_s in range(605, 700):
        told.poll(at_s)
    assert [[one.problem for one in message.problems] for message in told.messages] == [[], ["dark"], []]
    assert told.messages[1].problems[0].since == BEGAN + timedelta(seconds=5)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages == [
        "stream front: the picture is dark",
        "stream front: the picture is dark no longer, after 10 min",
    ]


def test_every_problem_has_a_text() -> None:
    assert set(PROBLEMS) == set(Problem.__args__)  # type: ignore[attr-defined]


def test_the_zones_of_a_moved_camera_are_suspended_until_it_is_back() -> None:
    told = Told()
    told.poll(0, moved="12% right")
    assert told.condition.trouble == "the camera has moved (12% right): its zones are suspended"
    told.poll(10, moved="12% right", dark="")
    assert set(told.condition.problems) == {"moved", "dark"}
    told.poll(20, dark="")
    assert told.watcher.suspensions == [True, False]
    assert [message.zones_suspended for message in told.messages] == [True, True, False]
    assert told.condition.trouble == "the picture is dark"


def test_without_zones_nothing_is_suspended() -> None:
    told = Told(zones=False)
    told.poll(0, tilted="6° clockwise")
    assert not told.messages[-1].zones_suspended
    assert told.condition.trouble == "the camera is tilted (6° clockwise)"


def test_an_ignored_problem_is_not_told_and_suspends_nothing() -> None:
    told = Told("moved")
    told.poll(0, moved="12% right", dark="")
    assert told.condition.problems == ("dark",)
    assert told.watcher.suspensions == []


def test_a_stopped_stream_has_no_condition() -> None:
    told = Told()
    told.poll(0, dark="")
    told.reporter.stop()
    assert told.kept.retained[TOPIC] == b""
    told.poll(2)
    assert told.kept.retained[TOPIC] == b""


def test_a_microphone_has_no_view_to_accept() -> None:
    with pytest.raises(CommandError, match="stream front"):
        Told().condition.accept()


def test_events_are_learned_from_unless_something_is_wrong_with_the_inputs() -> None:
    told = Told()
    event = Event("end", Track("t", "person", 0.5, 0.6, 3, BEGAN, BEGAN), "lost")
    told.poll(0.0)
    told.condition.observe([event])
    assert told.watcher.observed == 1
    told.poll(1.0, covered="")
    told.condition.observe([event])
    assert told.watcher.observed == 1
    told.poll(2.0, drift="scores 0.40 instead of 0.70")
    told.condition.observe([event])
    assert told.watcher.observed == 2
