from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.running import ROOT

sys.path.append(str(ROOT / "scripts" / "build_models"))
from board_networks import NETWORKS, work_of
from board_predictor import CLASSES, find_board, known_boards, predict, predict_model, row_of, with_threads
from board_rates import Boards, read_scaling, read_times
from board_work import Arithmetic, Work

MOBILENETS: dict[str, float] = {"mobilenet": 569, "mobilenet_v2": 301, "mobilenet_v3": 217}
COUNTS = MOBILENETS | {
    "resnet18": 1814,
    "resnet50": 3858,
    "vgg16": 15347,
    "alexnet": 666,
    "efficientnet_b0": 386,
    "mnasnet": 314,
    "proxylessnasnet": 320,
    "shufflenet_v2": 145,
    "regnety_400m": 402,
    "yolov3-tiny": 2783,
    "yolov4-tiny": 3454,
}
"""Multiply-adds as the authors of the networks tell them, millions; some with those of the last layer."""


@pytest.mark.parametrize("name", COUNTS)
def test_a_network_is_described_with_its_published_multiply_adds(name: str) -> None:
    work = work_of(name)
    total = work.point + work.small + work.dense + work.large + work.depth
    assert total / 1e6 == pytest.approx(COUNTS[name], rel=0.025)


def test_every_published_time_is_of_a_network_that_is_described() -> None:
    assert {one.network for one in read_times()} == set(NETWORKS)


def test_the_costs_are_those_that_the_fit_gives() -> None:
    boards = Boards(read_times())
    for name, board in known_boards().items():
        for kind, costs in board.costs.items():
            assert costs.single == pytest.approx(boards.costs(name, kind, 1, "xnnpack"), rel=0.02)
            assert costs.four == pytest.approx(boards.costs(name, kind, 4, "xnnpack"), rel=0.02)


@pytest.mark.parametrize(
    ("network", "kind", "published"),
    [
        ("mobilenet", "int8", 24),
        ("mobilenet_v2", "int8", 17),
        ("mobilenet", "float32", 77),
        ("mobilenet_v2", "float32", 46),
    ],
)
def test_xnnpacks_own_times_on_a_pi_4b_are_met(network: str, kind: Arithmetic, published: float) -> None:
    found = predict({kind: work_of(network)}, find_board("pi4b"), 4)
    assert found.ms * 1.8 / 1.5 == pytest.approx(published, rel=0.25)  # theirs ran at 1.5 GHz


@pytest.mark.parametrize(("network", "four", "two", "one"), read_scaling())
def test_published_times_with_two_threads_follow_amdahls_law(
    network: str, four: float, two: float, one: float
) -> None:
    assert with_threads(one, four, 2) == pytest.approx(two, rel=0.07)
    assert with_threads(one, four, 1) == pytest.approx(one)
    assert with_threads(one, four, 4) == four


works = st.builds(Work, *[st.integers(0, 10**9)] * 12).filter(lambda work: work.operations > 0)


@given(works, st.sampled_from(sorted(known_boards())), st.sampled_from(["int8", "float32"]))
def test_more_threads_are_not_slower_and_the_interval_holds_the_expectation(
    work: Work, board: str, kind: Arithmetic
) -> None:
    found = [predict({kind: work}, find_board(board), threads) for threads in (1, 2, 3, 4)]
    assert all(before.ms >= after.ms for before, after in pairwise(found))
    assert all(one.low_ms < one.ms < one.high_ms for one in found)


@given(works, works, st.integers(1, 4))
def test_the_time_of_two_works_is_the_sum_of_both(first: Work, second: Work, threads: int) -> None:
    board = find_board("pi5")
    alone = [predict({"int8": one}, board, threads).ms for one in (first, second)]
    assert predict({"int8": first + second}, board, threads).ms == pytest.approx(sum(alone))
    mixed = predict({"int8": first, "float32": second}, board, threads).ms
    assert mixed == pytest.approx(alone[0] + predict({"float32": second}, board, threads).ms)


def test_without_winograds_method_a_small_convolution_is_a_product_of_matrices() -> None:
    work = Work(point=1_000_000, small=2_000_000, small_weights=3_000_000, small_values=4_000_000, operations=2)
    row = dict(zip(CLASSES, row_of(work, winograd=False), strict=True))
    assert (row["point"], row["small"], row["weights"], row["values"]) == (3, 0, 3, 4)
    row = dict(zip(CLASSES, row_of(work, winograd=True), strict=True))
    assert (row["point"], row["small"], row["weights"], row["small_values"]) == (1, 2, 12, 4)


def test_absurd_sizes_are_a_long_time_and_no_error() -> None:
    assert predict({"int8": Work(point=10**400, operations=1)}, find_board("pi4b"), 1).ms > 1e6


def test_a_deeper_exit_takes_the_time_of_those_before_it() -> None:
    found = predict_model("small-speech", "pi4b")
    assert list(found) == ["12", "6", "4", "3"]
    times = [one[0].ms for one in found.values()]
    assert times == sorted(times, reverse=True)
