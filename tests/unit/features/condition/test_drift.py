"""Days of tracks are compared with the days before."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.features.condition.answers import (
    DAY_S,
    KEPT,
    KNOWN,
    LEAST,
    AnswerDrift,
    Day,
    DriftMemory,
    compare,
    difference,
)
from agent.types import Event, Track

AT = datetime(2026, 11, 28, 12, tzinfo=UTC)


def end(label: str, score: float, kind: str = "end") -> Event:
    return Event(kind, Track("t", label, score, score, 3, AT, AT), "lost")  # type: ignore[arg-type]


class Days:
    """Days of a camera, an hour at a time."""

    def __init__(self, drift: AnswerDrift, seed: int = 1) -> None:
        self.drift, self.random, self.hours = drift, random.Random(seed), 0
        drift.pass_time(0)

    def live(self, days: int, score: float = 0.7, cars: float = 0.2, per_hour: int = 5) -> str:
        for _ in range(days * 24):
            found = [
                end("car" if self.random.random() < cars else "person", self.random.gauss(score, 0.1))
                for _ in range(per_hour)
            ]
            self.drift.add([*found, end("car", 0.1, "update"), end("car", 0.1, "new")])
            self.hours += 1
            self.drift.pass_time(round(self.hours * 3600e9))
        return self.drift.drifted


def test_days_like_those_before_are_no_drift() -> None:
    days = Days(AnswerDrift("m"))
    assert [days.live(1) for _ in range(60)] == [""] * 60
    assert len(days.drift.remember().days) == KEPT


def test_lower_scores_are_told_until_they_are_back() -> None:
    days = Days(AnswerDrift("m"))
    assert days.live(KNOWN) == ""
    assert [days.live(1, score=0.5) for _ in range(4)][:3] == ["", "", ""]
    assert re.fullmatch(r"scores 0\.(49|50|51) instead of 0\.(69|70)", days.drift.drifted)
    assert days.live(40, score=0.5).startswith("scores ")
    told = [bool(days.live(1)) for _ in range(8)]
    assert (told[0], told[-1]) == (True, False)
    assert told == sorted(told, reverse=True)


def test_a_holiday_is_no_drift() -> None:
    days = Days(AnswerDrift("m"))
    days.live(KNOWN)
    assert days.live(2, score=0.4, cars=1.0) == ""
    assert days.live(20) == ""


def test_higher_scores_are_no_problem() -> None:
    days = Days(AnswerDrift("m"))
    days.live(KNOWN)
    assert days.live(9, score=0.9) == ""


def test_other_labels_are_told() -> None:
    days = Days(AnswerDrift("m"))
    days.live(KNOWN)
    told = days.live(4, cars=0.9)
    assert re.fullmatch(r"car (8|9)\d% instead of \d\d%, person \d+% instead of \d\d%", told), told


def test_nothing_is_told_before_the_usual_is_known() -> None:
    days = Days(AnswerDrift("m"))
    assert days.live(KNOWN, score=0.2) == ""


def test_a_day_with_few_tracks_goes_on() -> None:
    days = Days(AnswerDrift("m"))
    for _ in range(24 * 3):
        days.drift.add([end("person", 0.7)] if days.hours % 12 == 0 else [])
        days.hours += 1
        days.drift.pass_time(round(days.hours * 3600e9))
    assert days.drift.remember().days == ()
    assert sum(days.drift.remember().today.labels.values()) == 6
    days.live(1)
    (day,) = days.drift.remember().days
    assert sum(day.labels.values()) >= LEAST


def test_accepting_learns_anew() -> None:
    days = Days(AnswerDrift("m"))
    days.live(KNOWN)
    assert days.live(5, score=0.4)
    days.drift.accept()
    assert days.live(KNOWN + 3, score=0.4) == ""
    assert days.live(5, score=0.2)


def test_it_goes_on_after_a_restart_and_begins_anew_with_another_model() -> None:
    days = Days(AnswerDrift("m"))
    days.live(KNOWN)
    assert days.live(5, score=0.4)
    kept = msgspec.json.decode(msgspec.json.encode(days.drift.remember()), type=DriftMemory)
    assert AnswerDrift("m", kept).drifted == days.drift.drifted
    assert AnswerDrift("m", kept).remember() == kept
    assert AnswerDrift("other", kept).remember() == DriftMemory("other")


def test_time_that_jumps_is_no_day() -> None:
    drift = AnswerDrift("m")
    drift.pass_time(0)
    drift.add([end("person", 0.7)] * 100)
    drift.pass_time(-(10**18))
    drift.pass_time(-(10**18) + 1)
    assert drift.remember().days == ()
    drift.pass_time(10**18)
    assert len(drift.remember().days) == 1


def test_many_labels_are_counted_together() -> None:
    drift = AnswerDrift("m")
    drift.add([end(f"label{number}", 0.5) for number in range(1000)])
    assert sum(drift.remember().today.labels.values()) == 1000
    assert len(drift.remember().today.labels) == 65


labels = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 100), min_size=1)
made = labels.map(lambda found: Day(found, {label: count / 2 for label, count in found.items()}))


@given(st.lists(made, min_size=KNOWN, max_size=KEPT), st.floats(0.0, 2.0), st.data())
def test_a_day_is_the_odder_the_lower_its_scores(days: list[Day], factor: float, data: st.DataObject) -> None:
    day = data.draw(st.sampled_from(days))
    other = Day(day.labels, {label: score * factor for label, score in day.scores.items()})
    assert compare(day, days).scores == pytest.approx(0.0, abs=1e-6)
    assert (compare(other, days).scores > 1e-6) == (factor < 1.0 - 1e-6) or abs(factor - 1.0) < 1e-3
    assert compare(other, days).labels == compare(day, days).labels


@given(labels, labels)
def test_the_difference_of_distributions_is_a_distance(one: dict[str, int], other: dict[str, int]) -> None:
    a, b = ({label: count / sum(day.values()) for label, count in day.items()} for day in (one, other))
    assert -1e-9 <= difference(a, b) <= 1.0 + 1e-9
    assert difference(a, b) == pytest.approx(difference(b, a))
    assert difference(a, a) == 0.0
    assert DAY_S == 86400.0
