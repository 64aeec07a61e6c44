from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.features.snapshots.part import BestShot, quality
from agent.types import Box, Event, EventKind, Track

pytestmark = pytest.mark.numerics

SECOND = 10**9
AT = datetime(2026, 1, 1, tzinfo=UTC)
SMALL: Box = (0.4, 0.4, 0.45, 0.5)
LARGE: Box = (0.3, 0.3, 0.5, 0.7)


def track(name: str, hits: int, score: float = 0.8, box: Box | None = SMALL) -> Track:
    return Track(name, "person", score, score, hits, AT, AT, box)


def event(kind: EventKind, about: Track) -> Event:
    return Event(kind, about, "test")


def begun(name: str = "a") -> BestShot:
    best = BestShot(2.0)
    first = track(name, 3)
    assert best.is_better([event("new", first)], [first], 0)
    return best


def test_nothing_is_shot_before_the_first_event() -> None:
    assert not BestShot(2.0).is_better([], [], 0)


def test_a_better_view_is_shot_again() -> None:
    assert begun().is_better([], [track("a", 4, box=LARGE)], 3 * SECOND)


def test_a_better_view_waits_for_the_rate() -> None:
    best = begun()
    assert not best.is_better([], [track("a", 4, box=LARGE)], 1 * SECOND)
    assert best.is_better([], [track("a", 5, box=LARGE)], 2 * SECOND)


def test_a_worse_or_hardly_better_view_is_not_shot() -> None:
    best = begun()
    assert not best.is_better([], [track("a", 4, score=0.82)], 3 * SECOND)
    assert not best.is_better([], [track("a", 5, score=0.4)], 6 * SECOND)


def test_a_frame_that_did_not_hit_the_track_is_not_shot() -> None:
    best = begun()
    assert not best.is_better([], [track("a", 3, box=LARGE)], 3 * SECOND)


def test_a_new_track_takes_over_even_when_it_looks_worse() -> None:
    best = begun()
    old, new = track("a", 9, box=LARGE), track("b", 3, score=0.5)
    assert best.is_better([event("new", new)], [old, new], 3 * SECOND)


def test_a_new_track_within_the_rate_is_shot_as_soon_as_allowed() -> None:
    best = begun()
    assert not best.is_better([event("new", track("b", 3))], [track("b", 3)], SECOND)
    assert best.is_better([], [track("b", 4)], 2 * SECOND)


def test_an_update_of_another_track_does_not_take_over_while_the_newest_lives() -> None:
    best = begun()
    other = track("z", 9, box=LARGE)
    assert not best.is_better([event("update", other)], [track("a", 4), other], 3 * SECOND)


def test_after_its_end_the_next_event_takes_over() -> None:
    best = begun()
    other = track("z", 9)
    assert not best.is_better([event("end", track("a", 4))], [other], 3 * SECOND)
    assert best.is_better([event("update", other)], [other], 4 * SECOND)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(track("a", 1, box=LARGE), track("a", 1), id="larger"),
        pytest.param(track("a", 1, score=0.9), track("a", 1, score=0.5), id="surer"),
        pytest.param(track("a", 1, box=LARGE), track("a", 1, box=(0.0, 0.3, 0.2, 0.7)), id="not cut on the left"),
        pytest.param(track("a", 1, box=LARGE), track("a", 1, box=(0.3, 0.6, 0.5, 1.0)), id="not cut below"),
        pytest.param(track("a", 1, box=LARGE), track("a", 1, box=(0.9, 0.3, 1.1, 0.7)), id="visible"),
        pytest.param(track("a", 1, 0.9, None), track("a", 1, 0.5, None), id="surer verdict"),
    ],
)
def test_quality(better: Track, worse: Track) -> None:
    assert quality(better) > quality(worse)


def test_another_interval_counts_from_the_next_frame_on() -> None:
    best = begun()
    best.set_interval(6.0)
    assert not best.is_better([], [track("a", 4, box=LARGE)], 3 * SECOND)
    best.set_interval(2.0)
    assert best.is_better([], [track("a", 5, box=LARGE)], 3 * SECOND)
