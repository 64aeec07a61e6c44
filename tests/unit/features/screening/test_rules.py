"""Rules of screening."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.features.screening.rules import (
    Expectation,
    PictureLimits,
    PictureQuality,
    PictureRecord,
    ReviewRecord,
    ScoreCalibration,
    ScreeningFinding,
    ScreeningPoint,
    ScreeningRecord,
    StartRecord,
    joined,
    judge,
    queue_of,
    tiles_of,
)
from agent.types import Box, Detection

AT = datetime(2026, 11, 28, tzinfo=UTC)
LIMITS = PictureLimits(480, 640, (0.1, 2.0), (40.0, 220.0), (5.0, 90.0))
POINT = ScreeningPoint(
    "blood-cells",
    "0" * 64,
    "1" * 64,
    "WBC",
    0.5,
    0.2,
    0.2,
    ScoreCalibration(1.0, 0.0, 0.01),
    Expectation(0.99, (0.97, 1.0), 0.3, 98, 100),
    LIMITS,
)
GOOD = PictureQuality(0.5, 120.0, 30.0)


def found(score: float, box: Box = (0.1, 0.1, 0.3, 0.3), label: str = "WBC") -> Detection:
    return Detection(label, score, box)


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(16, 900), st.floats(0.05, 0.5))
def test_tiles_cover_the_picture_and_overlap(width: int, height: int, side: int, overlap: float) -> None:
    limits = PictureLimits(side, side, (0.0, 1.0), (0.0, 255.0), (0.0, 255.0))
    tiles = tiles_of(width, height, limits, overlap)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(round(tile[low] * length), round(tile[high] * length)) for tile in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(0 <= start < end <= length for start, end in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= overlap * side - 1
        if len(spans) > 1:
            assert {end - start for start, end in spans} == {side}
        else:
            assert length <= side / 0.8 + 1


def test_a_picture_of_the_usual_size_is_one_tile() -> None:
    assert tiles_of(640, 480, LIMITS, 0.2) == [(0.0, 0.0, 1.0, 1.0)]
    assert len(tiles_of(1920, 480, LIMITS, 0.2)) == 4


def test_what_two_tiles_see_is_one_thing() -> None:
    left, right = (0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)
    box = (0.45, 0.4, 0.55, 0.6)
    moved = (0.455, 0.4, 0.56, 0.6)
    assert joined([(left, [found(0.7, box)]), (right, [found(0.9, moved)])], 0.2) == [found(0.9, moved)]
    far = (0.45, 0.7, 0.55, 0.9)
    assert len(joined([(left, [found(0.7, box)]), (right, [found(0.9, far)])], 0.2)) == 2
    # Within a tile the decoder has suppressed already what overlaps.
    assert len(joined([(left, [found(0.7, box), found(0.6, moved)])], 0.2)) == 2


def test_what_an_inner_edge_cuts_off_is_left_to_the_neighbour() -> None:
    left, right = (0.0, 0.0, 0.6, 1.0), (0.4, 0.0, 1.0, 1.0)
    half, whole = (0.54, 0.4, 0.6, 0.6), (0.54, 0.4, 0.66, 0.6)
    assert joined([(left, [found(0.9, half)]), (right, [found(0.8, whole)])], 0.2) == [found(0.8, whole)]
    # The picture's own edge cuts off for good, and what is larger than the overlap may be cut in both.
    edge, large = (0.0, 0.4, 0.05, 0.6), (0.2, 0.4, 0.6, 0.6)
    assert len(joined([(left, [found(0.9, edge), found(0.8, large)])], 0.2)) == 2


@pytest.mark.parametrize(
    ("scores", "quality", "size", "status", "reasons"),
    [
        ([0.5], GOOD, (640, 480), "finding", 0),
        ([0.2], GOOD, (640, 480), "doubt", 0),
        ([0.19], GOOD, (640, 480), "clear", 0),
        ([], GOOD, (640, 480), "clear", 0),
        ([], PictureQuality(0.05, 120.0, 30.0), (640, 480), "unusable", 1),
        ([0.3], PictureQuality(0.05, 250.0, 30.0), (640, 480), "unusable", 2),
        ([0.9], PictureQuality(0.05, 10.0, 30.0), (640, 480), "finding", 2),
        ([], GOOD, (320, 240), "unusable", 1),
        ([], GOOD, (1280, 960), "clear", 0),
        ([], GOOD, (480, 640), "unusable", 1),
        ([], PictureQuality(40.0, 120.0, 30.0), (640, 480), "unusable", 1),
        ([], PictureQuality(0.5, 120.0, 0.0), (640, 480), "unusable", 1),
        ([], PictureQuality(0.5, 120.0, 200.0), (640, 480), "unusable", 1),
    ],
)
def test_a_picture_is_judged(scores: list[float], quality: Any, size: Any, status: str, reasons: int) -> None:
    width, height = size
    result = judge([found(score) for score in scores], quality, width, height, POINT)
    assert (result.status, len(result.reasons)) == (status, reasons)


def test_only_what_is_looked_for_counts() -> None:
    result = judge([found(0.9, label="RBC"), Detection("WBC", 0.8, None)], GOOD, 640, 480, POINT)
    assert result == ("clear", (), ())


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 100), st.floats(-100, 100))
def test_a_larger_score_is_never_less_probable(one: float, other: float, slope: float, offset: float) -> None:
    calibration = ScoreCalibration(slope, offset, 0.0)
    low, high = (calibration.probability(score) for score in sorted((one, other)))
    assert 0 <= low <= high <= 1


def record(name: str, status: Any, probability: float = 0.0) -> PictureRecord:
    findings = (ScreeningFinding((0.0, 0.0, 1.0, 1.0), probability, probability),) if probability else ()
    return PictureRecord(name, AT, 640, 480, status, (), findings)


def test_the_surest_findings_come_first_and_reviewed_pictures_leave() -> None:
    records: list[ScreeningRecord] = [
        StartRecord("", AT, "1", "0", "0", "WBC"),
        record("a", "doubt", 0.4),
        record("b", "finding", 0.8),
        record("c", "clear"),
        record("d", "unusable"),
        record("e", "finding", 0.9),
        ReviewRecord("b", AT, "confirmed"),
    ]
    assert [one.id for one in queue_of(records)] == ["e", "a", "d"]
