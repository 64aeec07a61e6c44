from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.maps import picture_score, score_of
from agent.compute.manifest import FEATURES
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.types import Array
from tests.support.decoding import decoder, picture, spec

pytestmark = pytest.mark.numerics

MAP = spec("anomaly", 1, 8, 16, 1)


def distances(*places: tuple[int, int, float], background: float = 1.0) -> list[Array]:
    """A map with these squared distances at (row, column)."""
    found = np.full(MAP.shape, background, np.float32)
    for row, column, value in places:
        found[0, row, column, 0] = value
    return [found]


def test_each_region_is_a_detection_with_the_score_of_the_picture() -> None:
    decode = decoder("anomaly", picture(64), (MAP,), ("scratch",), score=0.5, limit=10.0, top=2)
    near, far = decode(distances((1, 2, 30.0), (1, 3, 20.0), (6, 15, 40.0)))
    assert near.label == "scratch"
    assert near.score == pytest.approx(score_of(35.0 / 10.0))
    assert near.box == (15 / 16, 6 / 8, 1.0, 7 / 8), "the largest distance comes first"
    assert far.box == (2 / 16, 1 / 8, 4 / 16, 2 / 8)
    assert far.score == near.score
    assert (near.area, far.area) == (1 / 128, 2 / 128)


def test_one_place_alone_may_be_noise() -> None:
    decode = decoder("anomaly", picture(64), (MAP,), limit=10.0, top=8, score=0.5)
    assert decode(distances((1, 2, 30.0))) == []
    assert len(decode(distances(*((4, column, 12.0) for column in range(8))))) == 1


def test_a_place_counts_from_the_distance_of_the_threshold() -> None:
    strict = decoder("anomaly", picture(64), (MAP,), limit=10.0, top=1, score=0.9)
    assert strict(distances((1, 2, 12.0), (5, 5, 12.0))) == []
    (found,) = strict(distances((1, 2, 20.0), (5, 5, 12.0)))
    assert found.label == "defect"
    assert found.score == pytest.approx(score_of(2.0))
    everything = decoder("anomaly", picture(64), (MAP,), limit=10.0, top=1, score=0.0)
    (found,) = everything(distances(background=0.0))
    assert (found.score, found.box) == (0.0, (0.0, 0.0, 1.0, 1.0))


def test_places_that_sound_parts_reach_are_no_region() -> None:
    found = distances((1, 2, 30.0), (5, 5, 18.0))
    decode = decoder("anomaly", picture(64), (MAP,), limit=10.0, place_limit=20.0, top=2, score=0.5)
    assert [one.box for one in decode(found)] == [(2 / 16, 1 / 8, 3 / 16, 2 / 8)]
    decode = decoder("anomaly", picture(64), (MAP,), limit=10.0, place_limit=50.0, top=2, score=0.5)
    assert [one.box for one in decode(found)] == [(2 / 16, 1 / 8, 3 / 16, 2 / 8)], "at least the farthest"


@given(share=st.floats(0.0, 1e9), more=st.floats(1.0, 10.0))
def test_a_larger_distance_never_has_a_smaller_score(share: float, more: float) -> None:
    assert 0.0 <= score_of(share) <= score_of(share * more) <= 1.0
    assert score_of(1.0) == 0.5


def test_a_picture_is_scored_by_its_largest_distances() -> None:
    found = np.zeros((4, 4), np.float32)
    found[0] = (4.0, 3.0, 2.0, 1.0)
    assert picture_score(found, top=2) == 3.5
    assert picture_score(found, top=100) == pytest.approx(10.0 / 16.0)


def test_small_regions_and_too_many_are_left_out() -> None:
    found = distances((1, 2, 30.0), (1, 3, 30.0), (6, 15, 40.0))
    options: dict[str, Any] = {"limit": 10.0, "top": 1, "score": 0.5}
    (only,) = decoder("anomaly", picture(64), (MAP,), min_area=0.01, **options)(found)
    assert only.area == 2 / 128
    (only,) = decoder("anomaly", picture(64), (MAP,), config=DecodeConfig(max_detections=1), **options)(found)
    assert only.area == 1 / 128


def test_a_quantised_map_is_read_as_real_distances() -> None:
    stored = TensorSpec("anomaly", MAP.shape, "int8", 0.5, -128)
    decode = decoder("anomaly", picture(64), (stored,), limit=10.0, top=1, score=0.5)
    values = np.full(MAP.shape, -128, np.int8)
    assert decode([values]) == []
    values[0, 3, 3] = 0
    assert decode([values])[0].score == pytest.approx(score_of(6.4))


@pytest.mark.parametrize(
    ("output", "options", "expected"),
    [
        (MAP, {}, "`limit` has to be stated; `vedette optimise anomaly` learns it"),
        (MAP, {"limit": -1.0}, "limit"),
        (spec("anomaly", 1, -1, -1, 1), {"limit": 1.0}, "a map of a fixed size"),
        (spec("scores", 1, 10), {"limit": 1.0}, r"expected an output distances \[1,\*,\*,1\]"),
    ],
)
def test_what_is_no_map_of_distances_is_refused(
    output: TensorSpec, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        decoder("anomaly", picture(64), (output,), **options)


def test_a_label_that_is_empty_is_refused() -> None:
    with pytest.raises(ModelError, match="its label is empty"):
        decoder("anomaly", picture(64), (MAP,), ("",), limit=1.0)
    assert decoder("anomaly", picture(64), (MAP,), ("scratch", "unused"), limit=1.0)


def test_a_backbone_is_refused_with_what_to_make_of_it() -> None:
    with pytest.raises(ModelError, match="features, which are no detections: `vedette optimise anomaly`"):
        decoder(FEATURES, picture(64), (spec("features", 1, 8, 8, 32),))
