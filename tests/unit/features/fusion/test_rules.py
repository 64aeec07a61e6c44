"""Fusion over time: what joins, what does not, when it is told, and that no order of arrival changes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.features.fusion.expression import EvidenceSource, Rule
from agent.features.fusion.rules import PIECES_MAX, SHOWN_MAX, Evidence, Fusion, FusionTimes
from agent.types import Event

SOURCES = {
    "front": EvidenceSource("pictures", ("person", "badge")),
    "mic": EvidenceSource("words", ("help",)),
    "gate": EvidenceSource("text"),
}
BOTH, WITHOUT = 'person and "help"', 'person and "help" and not badge'
START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = 1_000_000_000


class Clock:
    """One fusion, asked at given seconds as the daemon asks it: when something comes, and when one is due."""

    def __init__(self, rule: str = BOTH, *, window: float = 5.0, late: float = 0.5, hold: float = 1.0) -> None:
        times = FusionTimes.of_seconds(window, late, hold, 2.0)
        self.fusion = Fusion("alarm", Rule(rule, SOURCES), times, run="r")
        self.told: list[Event] = []
        for source in SOURCES:
            self.fusion.set_away(source, -1000 * SECOND, away=False)
        self.until(0.0)

    def until(self, seconds: float) -> list[Event]:
        """Let time pass; gives what is told meanwhile."""
        before = len(self.told)
        while (due := self.fusion.next_due_ns) is not None and due < seconds * SECOND:
            self._poll(due)
            assert self.fusion.next_due_ns is None or self.fusion.next_due_ns > due, "it is due without end"
        self._poll(round(seconds * SECOND))
        return self.told[before:]

    def _poll(self, now_ns: int) -> None:
        self.told += self.fusion.poll(now_ns, START + timedelta(microseconds=now_ns // 1000))

    def add(self, at: float, evidence: Evidence) -> list[Event]:
        before = len(self.told)
        self.until(at)
        self.fusion.add(evidence)
        self._poll(round(at * SECOND))
        return self.told[before:]


def piece(label: str, begins: float, ends: float | None, *, key: str = "", score: float = 0.9) -> Evidence:
    source = "front" if label in ("person", "badge") else "mic"
    to_ns = None if ends is None else round(ends * SECOND)
    return Evidence(source, label, score, key or f"{label}-{begins}", round(begins * SECOND), to_ns, f"{label}-1")


def at(moment: datetime) -> float:
    return (moment - START).total_seconds()


def test_a_word_while_somebody_is_in_view_is_one_event_with_its_evidence() -> None:
    clock = Clock()
    assert clock.add(1.0, piece("person", 1.0, None)) == []
    (new,) = clock.add(3.2, piece("help", 3.0, 3.0, score=0.8))
    assert (new.kind, new.track.label, new.track.score, at(new.track.first_seen)) == ("new", "alarm", 0.8, 3.0)
    assert [(one.source, one.label, one.track, one.age_s) for one in new.track.evidence] == [
        ("mic", "help", "help-1", 0.2),
        ("front", "person", "person-1", None),
    ]
    (end,) = clock.until(20.0)
    assert (end.kind, end.reason, end.track.id) == ("end", "ended", new.track.id)
    assert at(end.track.last_seen) == pytest.approx(8.0), "a word counts for the window"
    assert not clock.fusion.is_on


def test_what_lies_further_apart_than_the_window_does_not_join() -> None:
    clock = Clock()
    clock.add(1.0, piece("person", 1.0, 2.0))
    assert clock.add(7.1, piece("help", 7.1, 7.1)) == []
    assert clock.add(7.2, piece("person", 7.2, None)) != []


def test_an_event_is_told_at_once_without_a_not_and_after_the_lateness_with_one() -> None:
    assert [one.kind for one in _both(Clock(BOTH), until=1.0)] == ["new"]
    assert _both(Clock(WITHOUT), until=1.4) == []
    assert [one.kind for one in _both(Clock(WITHOUT), until=1.6)] == ["new"]


def _both(clock: Clock, until: float) -> list[Event]:
    return [
        *clock.add(1.0, piece("person", 1.0, None)),
        *clock.add(1.0, piece("help", 1.0, 1.0)),
        *clock.until(until),
    ]


def test_a_late_badge_prevents_the_event() -> None:
    clock = Clock(WITHOUT)
    assert _both(clock, until=1.3) == []
    assert clock.add(1.4, piece("badge", 0.9, None)) == []
    assert clock.until(30.0) == []


def test_nobody_is_absent_while_the_camera_is_away() -> None:
    clock = Clock('"help" and not person')
    clock.until(1.0)
    clock.fusion.set_away("front", SECOND, away=True)
    assert clock.fusion.away == ("front",)
    assert clock.add(10.0, piece("help", 10.0, 10.0)) == []
    clock.until(12.0)
    clock.fusion.set_away("front", 12 * SECOND, away=False)
    assert clock.until(18.0) == [], "the window reaches back to where nobody could see"
    assert [one.kind for one in clock.add(20.0, piece("help", 20.0, 20.0)) + clock.until(21.0)] == ["new"]


def test_what_a_lost_camera_saw_ends_when_it_is_lost() -> None:
    clock = Clock()
    clock.add(1.0, piece("person", 1.0, None))
    clock.fusion.set_away("front", 2 * SECOND, away=True)
    assert clock.add(7.5, piece("help", 7.5, 7.5)) == []


def test_a_source_that_was_never_there_is_unknown() -> None:
    fusion = Fusion("x", Rule('"help" and not person', SOURCES), FusionTimes.of_seconds(5, 0, 0, 1))
    fusion.poll(0, START)
    fusion.add(piece("help", 0.0, 0.0))
    assert fusion.poll(SECOND, START) == []
    assert set(fusion.away) == {"front", "mic", "gate"}


def test_short_gaps_are_one_event_and_long_ones_two() -> None:
    for pause, events in ((0.9, 1), (1.1, 2)):
        clock = Clock(window=0.1, hold=1.0, late=0.1)
        for begins in (1.0, 1.0 + 0.1 + pause):
            clock.add(begins, piece("person", begins, begins))
            clock.add(begins, piece("help", begins, begins))
        clock.until(30.0)
        assert [one.kind for one in clock.told].count("new") == events


def test_more_evidence_is_an_update_no_more_often_than_asked() -> None:
    clock = Clock()
    _both(clock, until=1.0)
    assert clock.add(1.5, piece("person", 1.5, None)) == []
    (update,) = clock.until(3.5)
    assert (update.kind, update.reason, update.track.hits) == ("update", "evidence", 3)
    assert clock.add(5.2, piece("person", 1.5, None, key="person-1.5", score=0.91)) == []
    assert [one.reason for one in clock.add(5.3, piece("help", 5.3, 5.3, score=0.99))] == ["evidence"]


def test_a_higher_score_is_an_update() -> None:
    clock = Clock()
    clock.add(1.0, piece("person", 1.0, None, key="p", score=0.5))
    clock.add(1.0, piece("help", 1.0, 1.0))
    told = clock.add(4.0, piece("person", 1.0, None, key="p", score=0.8))
    assert [(one.kind, one.reason, one.track.best_score) for one in told] == [("update", "clearer", 0.8)]


def test_evidence_that_nobody_asked_for_is_dropped() -> None:
    clock = Clock()
    assert clock.fusion.add(piece("person", 0.0, None))
    assert not clock.fusion.add(Evidence("front", "car", 0.9, "c", 0, None))
    assert not clock.fusion.add(Evidence("gate", "stop", 1.0, "t", 0, 0))
    assert clock.fusion.add(Evidence("gate", "Help!", 1.0, "u", 0, 0))
    assert not clock.fusion.add(Evidence("front", "help", 1.0, "v", 0, None))


def test_a_flood_of_evidence_is_bounded_and_one_message_too() -> None:
    clock = Clock()
    for number in range(3 * PIECES_MAX):
        clock.fusion.add(piece("person", 0.5, None, key=str(number)))
    (new,) = clock.add(1.0, piece("help", 1.0, 1.0))
    assert new.track.hits <= PIECES_MAX
    assert len(new.track.evidence) == SHOWN_MAX
    assert new.track.evidence[0].label == "help", "the newest is shown"


def test_a_stop_ends_what_goes_on_and_nothing_twice() -> None:
    clock = Clock()
    _both(clock, until=1.0)
    now = START + timedelta(seconds=1)
    assert [(one.kind, one.reason) for one in clock.fusion.finish(SECOND, now, "shutdown")] == [
        ("end", "shutdown")
    ]
    assert clock.fusion.finish(SECOND, now, "shutdown") == []


class Message(NamedTuple):
    """News of a piece: when it happened, when it comes, in tenths of a second, and what it says."""

    happens: int
    comes: int
    evidence: Evidence


@some.composite
def messages(draw: some.DrawFn, late: int = 5) -> list[Message]:
    """News of tracks and words within 8 s, each up to `late` tenths of a second late."""
    made: list[Message] = []
    for number in range(draw(some.integers(0, 8))):
        label = draw(some.sampled_from(("person", "help", "badge")))
        begins = draw(some.integers(0, 80))
        length = 0 if label == "help" else draw(some.integers(0, 40))
        ends = [None, begins + length] if length else [begins]
        for end in ends:
            happens = begins if end is None else end
            told = piece(label, begins / 10, None if end is None else end / 10, key=str(number))
            made.append(Message(happens, happens + draw(some.integers(0, late)), told))
    return made


def outcome(rule: str, news: Iterable[tuple[int, Evidence]], window: float) -> list[Event]:
    clock = Clock(rule, window=window, late=0.5, hold=0.3)
    for comes, evidence in sorted(news, key=lambda one: one[0]):
        clock.add(comes / 10, evidence)
    clock.until(60.0)
    return clock.told


def spans(events: Sequence[Event]) -> list[tuple[float, float]]:
    return [(at(one.track.first_seen), at(one.track.last_seen)) for one in events if one.kind == "end"]


@given(messages(), some.sampled_from((BOTH, WITHOUT, "person or badge")), some.sampled_from((0.5, 1.0, 3.0)))
def test_the_order_of_arrival_changes_nothing(news: list[Message], rule: str, window: float) -> None:
    late = outcome(rule, ((one.comes, one.evidence) for one in news), window)
    in_time = outcome(rule, ((one.happens, one.evidence) for one in news), window)
    assert [end for _, end in spans(late)] == [end for _, end in spans(in_time)]
    for (told, _), (began, _) in zip(spans(late), spans(in_time), strict=True):
        assert began <= told <= began + 0.5, "a beginning that was told stays, whatever comes late"


@given(messages(late=80), some.sampled_from((BOTH, WITHOUT)))
def test_every_new_has_one_end_and_no_event_is_without_evidence(news: list[Message], rule: str) -> None:
    told = outcome(rule, ((one.comes, one.evidence) for one in news), 1.0)
    is_open = ""
    for event in told:
        assert event.track.evidence
        assert {"person", "help"} <= {one.label for one in event.track.evidence}
        if event.kind == "new":
            assert not is_open
            is_open = event.track.id
        else:
            assert event.track.id == is_open
            is_open = "" if event.kind == "end" else is_open
    assert not is_open
    assert len({one.track.id for one in told if one.kind == "new"}) == sum(one.kind == "new" for one in told)
