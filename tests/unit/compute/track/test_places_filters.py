from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.track.places import DetectionFilters, check_filters
from agent.config.places import FilterConfig
from agent.errors import ConfigError
from agent.types import Box, Detection

WIDE = 16 / 9
LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))


def found(label: str = "person", score: float = 0.5, box: Box | None = (0.6, 0.2, 0.7, 0.6)) -> Detection:
    return Detection(label, score, box)


def kept(*filters: FilterConfig, detections: list[Detection] | None = None, threshold: float = 0.4) -> int:
    return len(DetectionFilters(filters, threshold).keep(detections or [found()], WIDE))


def test_without_filters_everything_passes_as_it_is() -> None:
    given = [found(), found(score=0.1)]
    assert DetectionFilters((), 0.4).keep(given, WIDE) is given


def test_a_label_has_its_own_threshold_above_or_below_the_streams() -> None:
    filters = FilterConfig(("person",), 0.6), FilterConfig(("dog",), 0.3)
    assert DetectionFilters(filters, 0.4).least_score == 0.3
    detections = [found("person", 0.5), found("dog", 0.35), found("cat", 0.35), found("cat", 0.45)]
    assert [one.label for one in DetectionFilters(filters, 0.4).keep(detections, WIDE)] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("one", "passes"),
    [
        pytest.param(FilterConfig(min_area=0.05), False, id="too small"),
        pytest.param(FilterConfig(min_area=0.03, max_area=0.05), True, id="large enough"),
        pytest.param(FilterConfig(max_area=0.03), False, id="too large"),
        pytest.param(FilterConfig(min_ratio=0.5), False, id="too narrow"),
        pytest.param(FilterConfig(min_ratio=0.4, max_ratio=0.5), True, id="a ratio of pixels"),
        pytest.param(FilterConfig(max_ratio=0.4), False, id="too wide"),
        pytest.param(FilterConfig(masks=(LEFT,)), True, id="its foot is beside the mask"),
        pytest.param(FilterConfig(masks=(((0.5, 0.7), (1.0, 0.7), (1.0, 1.0)),)), True, id="above the mask"),
        pytest.param(FilterConfig(masks=(((0.5, 0.5), (1.0, 0.5), (0.5, 1.0)),)), False, id="in the mask"),
        pytest.param(FilterConfig(("car",), max_area=0.01), True, id="of another label"),
    ],
)
def test_size_shape_and_place_of_a_box_decide(one: FilterConfig, passes: bool) -> None:
    assert kept(one) == passes


def test_all_filters_of_a_label_must_let_it_pass() -> None:
    assert kept(FilterConfig(), FilterConfig(("person",), max_area=0.01)) == 0


def test_what_has_no_box_has_no_size_and_no_place() -> None:
    everything = FilterConfig(max_area=0.0, masks=(LEFT,))
    assert kept(everything, detections=[found(box=None)]) == 1
    assert kept(FilterConfig(min_score=0.6), detections=[found(box=None)]) == 0


def test_a_box_without_height_has_no_ratio() -> None:
    assert kept(FilterConfig(max_ratio=5.0), detections=[found(box=(0.1, 0.5, 0.9, 0.5))]) == 0


def test_a_track_begins_when_it_was_sure_enough_once() -> None:
    filters = DetectionFilters([FilterConfig(("person",), start_score=0.7)], 0.4)
    assert [filters.may_begin("person", score) for score in (0.69, 0.7)] == [False, True]
    assert filters.may_begin("dog", 0.1)


boxes = st.tuples(*[st.floats(-0.2, 1.2)] * 4)
filters = st.builds(
    FilterConfig,
    labels=st.sampled_from([(), ("person",), ("dog", "cat")]),
    min_score=st.none() | st.floats(0.0, 0.5),
    min_area=st.floats(0.0, 0.2),
    max_area=st.floats(0.3, 1.0),
    masks=st.sampled_from([(), (LEFT,)]),
)


@given(st.lists(filters, max_size=4), st.lists(st.tuples(st.sampled_from(["person", "dog"]), boxes), max_size=8))
def test_filters_only_leave_out_and_a_further_one_never_adds(
    some: list[FilterConfig], given: list[tuple[str, Box]]
) -> None:
    detections = [found(label, 0.6, box) for label, box in given]
    for number in range(len(some) + 1):
        before = DetectionFilters(some[: max(0, number - 1)], 0.4).keep(detections, WIDE)
        after = DetectionFilters(some[:number], 0.4).keep(detections, WIDE)
        assert [one for one in before if one in after] == after


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            FilterConfig(min_area=0.3, max_area=0.2),
            "filter of all labels: min_area, 0.3, is more than max_area, 0.2",
        ),
        (FilterConfig(("car",), min_ratio=2.0, max_ratio=1.0), "filter of car: min_ratio, 2, is more than"),
        (FilterConfig(min_score=0.6, start_score=0.5), "start_score, 0.5, is less than min_score, 0.6"),
        (FilterConfig(masks=(LEFT, ((0.0, 0.0), (2.0, 1.0)))), "mask 2: the polygon has 2 corners"),
        (
            FilterConfig(masks=(((0, 0), (640, 0), (0, 480)),)),
            r"mask 1: corner \[640, 0\] lies outside the frame",
        ),
    ],
)
def test_a_filter_that_nothing_can_pass_is_refused(one: FilterConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_filters([one])


def test_a_filter_that_is_off_stops_nothing_and_two_of_one_name_are_refused() -> None:
    strict = FilterConfig(min_score=0.9, start_score=0.95, masks=(LEFT,), name="strict", enabled=False)
    filters = DetectionFilters((strict,), 0.4)
    given = [found("cat", 0.5)]
    assert (filters.keep(given, WIDE), filters.may_begin("cat", 0.5), filters.least_score) == (given, True, 0.4)
    assert DetectionFilters((replace(strict, enabled=True),), 0.4).keep(given, WIDE) == []
    with pytest.raises(ConfigError, match="two filters are named 'strict'"):
        check_filters((strict, FilterConfig(name="strict")))
