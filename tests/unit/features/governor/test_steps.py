"""The ways to run a stream: from everything to little, and never below what is promised."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.features.governor.readings import StreamReading, VariantCost
from agent.features.governor.steps import cheaper, cost_of, dearer, longest_stride, smaller_variant, steps

SIZES = (VariantCost(), VariantCost("320", 0.6), VariantCost("256", 0.4))


def stream(fps: float = 15.0, min_fps: float = 0.0, variants: tuple[VariantCost, ...] = SIZES) -> StreamReading:
    return StreamReading(fps=fps, min_fps=min_fps, open_share=1.0, cost_ms=20.0, variants=variants)


streams = st.builds(
    StreamReading,
    fps=st.floats(0.0, 120.0),
    min_fps=st.floats(0.0, 60.0),
    open_share=st.floats(0.0, 1.0),
    cost_ms=st.floats(0.0, 500.0),
    variants=st.sampled_from([SIZES, SIZES[:1], SIZES[:2]]),
)


@given(streams, st.integers(1, 20))
def test_each_step_costs_less_than_the_one_before_and_the_first_is_everything(
    reading: StreamReading, most: int
) -> None:
    ladder = steps(reading, most)
    assert (ladder[0].stride, ladder[0].variant) == (1, "")
    assert all(later.cost < earlier.cost for earlier, later in pairwise(ladder))
    assert all(1 <= step.stride <= most for step in ladder)


@given(streams, st.integers(1, 20))
def test_no_stride_leaves_clearly_less_than_is_promised(reading: StreamReading, most: int) -> None:
    stride = longest_stride(reading, most)
    assert stride == 1 or reading.fps / stride >= 0.97 * max(reading.min_fps, 2.0)


@pytest.mark.parametrize(("promised", "longest"), [(5.0, 2), (0.0, 5), (10.0, 1)])
@pytest.mark.parametrize("fps", [10.0, 9.99, 9.85])
def test_a_camera_that_gives_a_little_less_than_its_rate_gives_way_as_far(
    fps: float, promised: float, longest: int
) -> None:
    assert longest_stride(stream(fps, promised), 6) == longest


@given(streams, st.integers(1, 20), st.floats(0.0, 50.0))
def test_a_cheaper_step_costs_less_until_there_is_none(reading: StreamReading, most: int, at_most: float) -> None:
    ladder = steps(reading, most)
    at = ladder[0]
    for _ in range(len(ladder)):
        step = cheaper(reading, most, at, at_most)
        assert step.cost < at.cost or step == at
        at = step
    assert at == ladder[-1] or at.cost <= at_most


@given(streams, st.integers(1, 20))
def test_dearer_steps_lead_back_to_everything(reading: StreamReading, most: int) -> None:
    ladder = steps(reading, most)
    at = ladder[-1]
    for _ in range(len(ladder)):
        at = dearer(reading, most, at)
    assert at == ladder[0]


def test_a_stride_of_three_comes_before_a_smaller_size_and_longer_strides_last() -> None:
    assert [(step.stride, step.variant) for step in steps(stream(), 6)] == [
        (1, ""),
        (2, ""),
        (3, ""),
        (3, "320"),
        (3, "256"),
        (4, "256"),
        (5, "256"),
        (6, "256"),
    ]


def test_a_promised_rate_leaves_the_sizes() -> None:
    assert [(step.stride, step.variant) for step in steps(stream(min_fps=10.0), 6)] == [
        (1, ""),
        (1, "320"),
        (1, "256"),
    ]


def test_the_cost_is_processor_time_per_second() -> None:
    assert cost_of(stream(), 3, SIZES[1]) == 15.0 * 0.02 * 0.6 / 3


def test_a_stream_without_another_size_has_no_smaller_one() -> None:
    alone = stream(variants=SIZES[:1])
    now = steps(alone, 6)[0]
    assert smaller_variant(alone, now) == now
