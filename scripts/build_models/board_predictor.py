"""Predict the latency of a model on boards that are not here.

    ms = Σ over classes of (work of the class × cost of the class)

Costs are those of a processor, an arithmetic and a number of threads. They were fitted on published times of
other networks in ncnn, and, for XNNPACK, which LiteRT runs, on the fewer ones that it has published of the same
networks, by `board_rates.py`. The interval comes from the errors of networks that a fit had
not seen. What `vedette bench` measures on the board is better than any of this.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

from board_work import Arithmetic, Work, added, work_of
from msgspec import Struct

from agent.compute.manifest import Manifest
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import look_up
from agent.structs import from_json

_FILE = Path(__file__).with_name("boards.json")
CLASSES = (
    "point", "small", "dense", "large", "depth", "weights", "values", "small_values", "moved", "far",
    "operations",
)  # fmt: skip
"""Classes of work, in the order of a row of costs."""
WINOGRAD_WEIGHTS = 4
"""Weights that Winograd's method reads for each of a 3×3 kernel: F(4×4, 3×3) has 36 for 9."""
_MILLION = 1e6
_MOST = 10**18
"""Largest count; a broken file may state sizes beyond any float."""


class Costs(Struct, frozen=True, forbid_unknown_fields=True):
    """Costs of a processor for one kind of arithmetic.

    Attributes:
        single: ms for a million of each of `CLASSES`, for 1 operation of the last, with one thread.
        four: the same with four threads.
        spread: standard deviation of the logarithm of a prediction's error.
        basis: what the figures are from.
    """

    single: tuple[float, ...]
    four: tuple[float, ...]
    spread: float
    basis: str


class KnownBoard(Struct, frozen=True, forbid_unknown_fields=True):
    """A board whose latencies can be predicted.

    Attributes:
        title: board, processor and clock.
        costs: by arithmetic.
    """

    title: str
    costs: dict[Arithmetic, Costs]


class PredictedLatency(Struct, frozen=True):
    """A predicted latency of one inference.

    Attributes:
        threads: of the CPU.
        ms: expected.
        low_ms, high_ms: between which four of five are expected.
    """

    threads: int
    ms: float
    low_ms: float
    high_ms: float


THREADS = (1, 2, 3, 4)
_FOUR_OF_FIVE = 1.2816
"""Standard deviations on either side of the mean that hold four of five."""


@functools.cache
def known_boards() -> dict[str, KnownBoard]:
    """Return the boards whose latencies can be predicted, by name."""
    return from_json(_FILE.read_bytes(), dict[str, KnownBoard])


def find_board(name: str) -> KnownBoard:
    """Return a board by its name. Raises ModelError if nothing is known of it."""
    boards = known_boards()
    if name not in boards:
        raise ModelError(f"{name}: nothing is known of such a board; there are: {', '.join(boards)}")
    return boards[name]


def row_of(work: Work, *, winograd: bool) -> tuple[float, ...]:
    """Return the work by `CLASSES`, in millions and in operations.

    Without Winograd's method, which XNNPACK does not have, 3×3 convolutions are as others are: Dukhan, The
    Indirect Convolution Algorithm, 2019, https://arxiv.org/abs/1907.02129.
    """
    if winograd:
        weights, small = work.weights + WINOGRAD_WEIGHTS * work.small_weights, work.small_values
        products, values = (work.point, work.small), (work.values, small)
    else:
        weights = work.weights + work.small_weights
        products, values = (work.point + work.small, 0), (work.values + work.small_values, 0)
    counts = (*products, work.dense, work.large, work.depth, weights, *values, work.moved, work.far)
    return (*(min(count, _MOST) / _MILLION for count in counts), float(work.operations))


def predict(work: dict[Arithmetic, Work], board: KnownBoard, threads: int) -> PredictedLatency:
    """Predict the latency of one inference on a CPU that does nothing else.

    Args:
        work: by arithmetic, see `board_work.work_of`.
        board: see `find_board`.
        threads: 1 to 4.
    """
    ms = variance = 0.0
    for arithmetic, one in work.items():
        costs = board.costs[arithmetic]
        part = _dot(row_of(one, winograd=False), _costs(costs, threads))
        ms, variance = ms + part, variance + part * costs.spread
    spread = variance / ms if ms else 0.0  # errors of the kinds of arithmetic go together
    margin = math.exp(_FOUR_OF_FIVE * spread)
    return PredictedLatency(threads, ms, ms / margin, ms * margin)


def _costs(costs: Costs, threads: int) -> list[float]:
    return [with_threads(one, four, threads) for one, four in zip(costs.single, costs.four, strict=True)]


def with_threads(one: float, four: float, threads: int) -> float:
    """Return a time with a number of threads by Amdahl's law, from those with one and with four.

    On a Cortex-A55, of which ncnn's table has 1, 2 and 4 threads, networks with two are within 7 %.
    """
    return four + (one - four) * (1.0 / threads - 0.25) / 0.75


def _dot(first: Iterable[float], second: Iterable[float]) -> float:
    return sum(one * other for one, other in zip(first, second, strict=True))


def predict_model(name_or_path: str, board: str) -> dict[str, tuple[PredictedLatency, ...]]:
    """Predict the latencies of a model's variants on a board, with 1 to 4 threads each.

    Raises:
        ModelError: there is no such model or board.
    """
    known, there = look_up(name_or_path), find_board(board)
    file, manifest = read_modelfile(known.content), known.manifest
    return {
        one.name: tuple(predict(work_of_variant(file, manifest, one.name), there, count) for count in THREADS)
        for one in manifest.variants
    }


def work_of_variant(file: ModelFile, manifest: Manifest, variant: str) -> dict[Arithmetic, Work]:
    """Return the work of one inference of a variant, with those that it continues."""
    return added(work_of(file.graph(one.signature)) for one in manifest.chain(variant))
