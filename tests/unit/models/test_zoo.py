"""Detections of the bundled model on stored pictures. Other kernels round otherwise: a little is allowed."""

from __future__ import annotations

import functools

import pytest

from agent.types import Box, Detection
from tests.support.golden import GOLDEN, expected, picture, seen, variants

pytestmark = pytest.mark.numerics

_COUNTS = 0.4
_SCORE, _OVERLAP = 0.06, 0.75
"""Largest difference of two scores, and least overlap of two boxes, that are the same."""
_PEOPLE = {"walkers-020": 3, "walkers-150": 3, "walkers-280": 4}
"""People that are plain to see on each picture, at least: counted by eye."""
_REMAKE = "if the model has changed on purpose, run scripts/build_models/golden"


@functools.cache
def found(name: str, variant: str) -> tuple[Detection, ...]:
    return tuple(seen(variant, picture(name)))


def overlap(a: Box | None, b: Box | None) -> float:
    """Intersection over union."""
    assert a is not None
    assert b is not None
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (area(a) + area(b) - both)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def unmatched(these: list[Detection], those: list[Detection]) -> list[Detection]:
    """Those of the first that count, and have no equal among the second."""

    def same(a: Detection, b: Detection) -> bool:
        is_near = abs(a.score - b.score) <= _SCORE and overlap(a.box, b.box) >= _OVERLAP
        return a.label == b.label and is_near

    return [a for a in these if a.score >= _COUNTS and not any(same(a, b) for b in those)]


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("name", _PEOPLE)
def test_the_model_sees_what_it_saw(name: str, variant: str) -> None:
    before, now = expected()[name][variant], list(found(name, variant))
    assert unmatched(before, now) == [], f"not seen any more; {_REMAKE}"
    assert unmatched(now, before) == [], f"not seen before; {_REMAKE}"


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("name", _PEOPLE)
def test_the_model_sees_the_people_that_are_there(name: str, variant: str) -> None:
    people = [d for d in found(name, variant) if d.label == "person" and d.score >= _COUNTS]
    assert len(people) >= _PEOPLE[name]


def test_nothing_is_seen_on_a_grey_wall() -> None:
    wall = picture("walkers-020")
    wall[:] = 128
    assert all(detection.score < _COUNTS for variant in variants() for detection in seen(variant, wall))


def test_every_picture_has_its_expectation_and_is_small() -> None:
    pictures = {path.stem: path.stat().st_size for path in GOLDEN.glob("*.png")}
    assert pictures.keys() == expected().keys() == _PEOPLE.keys()
    assert max(pictures.values()) < 200_000
