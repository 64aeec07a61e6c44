from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import ClipsConfig, ZoneConfig
from agent.errors import ConfigError
from agent.features.clips.checks import check_clips
from agent.features.clips.rules import ClipTrigger
from agent.types import ClipReason, Event, EventKind, Track

SECOND = 1_000_000_000
AT = datetime(2026, 11, 25, tzinfo=UTC)


def event(kind: EventKind, track: str = "1", reason: str = "", **fields: Any) -> Event:
    seen = {"label": "person", "score": 0.5, "best_score": 0.5, "zones": (), **fields}
    made = Track(id=track, hits=3, first_seen=AT, last_seen=AT, **seen)
    return Event(kind, made, reason or {"new": "appeared", "end": "lost"}.get(kind, "moved"))


def occasions(only_zones: bool = False, **config: Any) -> ClipTrigger:
    return ClipTrigger("front", ClipsConfig(**{"after_s": 5.0, "max_s": 20.0, **config}), only_zones=only_zones)


def told(made: ClipTrigger, at_s: float, *events: Event) -> bool:
    return made.on_events(events, round(at_s * SECOND)) is not None


def until(made: ClipTrigger) -> float:
    return made.until_ns / SECOND


def test_a_clip_lasts_until_some_time_after_the_thing_is_gone() -> None:
    made = occasions()
    assert made.on_events([event("new")], 100 * SECOND) == ClipReason("front", "appeared", "1", "person")
    assert until(made) == 120
    assert not told(made, 104, event("update"))
    assert not told(made, 107, event("end"))
    assert until(made) == 112


def test_what_comes_meanwhile_is_in_the_same_clip() -> None:
    made = occasions()
    told(made, 100, event("new", "1"))
    assert not told(made, 103, event("end", "1"), event("new", "2"))
    assert not told(made, 105, event("new", "3"))
    assert (made.tracks, until(made)) == (("1", "2", "3"), 120)
    assert not told(made, 109, event("end", "2"))
    assert until(made) == 120
    assert not told(made, 110, event("end", "3"))
    assert until(made) == 115


def test_what_comes_in_the_time_after_makes_it_longer() -> None:
    made = occasions()
    told(made, 100, event("new", "1"))
    told(made, 101, event("end", "1"))
    assert not told(made, 106, event("new", "2"))
    assert until(made) == 120
    assert told(made, 130, event("new", "3"))


def test_a_thing_that_stays_makes_one_clip_of_the_longest_length() -> None:
    made = occasions()
    told(made, 100, event("new"))
    for at in range(105, 400, 5):
        assert not told(made, at, event("update"))
    assert until(made) == 120
    told(made, 400, event("end"))
    assert until(made) == 120, "and its end makes no longer one"


def test_a_thing_that_comes_too_late_for_the_clip_begins_another() -> None:
    made = occasions()
    told(made, 100, event("new", "1"))
    assert not told(made, 115, event("new", "2"))
    assert told(made, 115.5, event("new", "3"))
    assert (made.tracks, until(made)) == (("3",), 135.5)
    assert not told(made, 117, event("update", "1"), event("update", "2"))
    told(made, 118, event("end", "3"))
    assert until(made) == 123, "those of the clip before do not make it longer"


@pytest.mark.parametrize(
    ("config", "fields", "wanted"),
    [
        ({}, {}, True),
        ({"events": False}, {}, False),
        ({"labels": ("person", "cat")}, {}, True),
        ({"labels": ("cat",)}, {}, False),
        ({"min_score": 0.5}, {}, True),
        ({"min_score": 0.6}, {}, False),
        ({"min_score": 0.6}, {"best_score": 0.7}, True),
        ({"zones": ("door",)}, {}, False),
        ({"zones": ("door",)}, {"zones": ("yard",)}, False),
        ({"zones": ("door", "gate")}, {"zones": ("yard", "gate")}, True),
        ({"only_zones": True}, {}, False),
        ({"only_zones": True}, {"zones": ("yard",)}, True),
        ({"only_zones": True, "zones": ("door",)}, {"zones": ("yard",)}, False),
    ],
)
def test_only_what_is_asked_for_makes_a_clip(
    config: dict[str, Any], fields: dict[str, Any], wanted: bool
) -> None:
    assert told(occasions(**config), 100, event("new", **fields)) == wanted


def test_a_thing_that_becomes_worth_it_makes_a_clip_then() -> None:
    made = occasions(zones=("door",))
    assert not told(made, 100, event("new"))
    begins = made.on_events([event("update", reason="zone", zones=("door",))], 110 * SECOND)
    assert begins == ClipReason("front", "zone", "1", "person")
    assert until(made) == 130


STEPS = st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["new", "end"]), st.integers(1, 4)), max_size=50)


@given(STEPS, st.floats(0.0, 10.0), st.floats(10.0, 30.0))
def test_every_thing_has_its_time_and_no_clip_is_too_long(
    steps: list[tuple[int, Any, int]], after_s: float, max_s: float
) -> None:
    made, now, began, alive = occasions(after_s=after_s, max_s=max_s), 0, None, set[int]()
    for passed, kind, track in steps:
        now += passed * SECOND // 10
        begins = None
        if (kind == "new") != (track in alive):
            begins = made.on_events([event(kind, str(track))], now)
            alive ^= {track}
            if kind == "new":
                assert str(track) in made.tracks
                assert made.until_ns >= now + after_s * SECOND - 1
        began = now if begins else began
        if began is not None:
            assert made.until_ns - began <= max_s * SECOND + 1


ZONES = (ZoneConfig("door", ((0, 0), (1, 0), (1, 1))), ZoneConfig("yard", ((0, 0), (1, 0), (1, 1))))


@pytest.mark.parametrize(
    ("config", "zones", "said"),
    [
        (ClipsConfig(zones=("gate",)), ZONES, r"clips\.zones: no zone is called 'gate'; known: door, yard"),
        (ClipsConfig(zones=("gate",)), (), r"clips\.zones: .* the stream has no \[\[zones\]\]"),
        (ClipsConfig(after_s=90), (), r"clips\.after_s: 90 is more than max_s, 60"),
    ],
)
def test_what_would_never_make_a_clip_is_refused(
    config: ClipsConfig, zones: tuple[ZoneConfig, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_clips(config, zones)


def test_what_can_make_a_clip_is_taken() -> None:
    check_clips(ClipsConfig(zones=("yard",), labels=("cat",)), ZONES)
    check_clips(ClipsConfig(labels=("anything",)), ())
