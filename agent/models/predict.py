"""Predict the latency of a model on boards that are not here.

    ms = Σ over classes of (work of the class × cost of the class)

Costs are those of a processor, an arithmetic and a number of threads. They were fitted on published times of
other networks in ncnn, and, for XNNPACK, which LiteRT runs, on the fewer ones that it has published of the same
networks, by `scripts/build_models/board_rates.py`. The interval comes from the errors of networks that a fit had
not seen. What `vedette bench` measures on the board is better than any of this.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.compute.manifest import Manifest
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.compute.tflite.work import Arithmetic, Work, added, work_of
from agent.config.wording import nearest
from agent.errors import ModelError
from agent.models.library import look_up
from agent.structs import from_json
from agent.text import plain

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
Reach = Literal["yes", "likely", "no"]


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
        also: other names of it.
        costs: by arithmetic.
    """

    title: str
    costs: dict[Arithmetic, Costs]
    also: tuple[str, ...] = ()


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

    def reaches(self, fps: float) -> Reach:
        """Tell if so many inferences in a second are possible: in four of five cases, as expected, or not."""
        budget_ms = 1e3 / fps
        return "yes" if self.high_ms <= budget_ms else "likely" if self.ms <= budget_ms else "no"


THREADS = (1, 2, 3, 4)
_FOUR_OF_FIVE = 1.2816
"""Standard deviations on either side of the mean that hold four of five."""


@functools.cache
def known_boards() -> dict[str, KnownBoard]:
    """Return the boards whose latencies can be predicted, by name."""
    return from_json(_FILE.read_bytes(), dict[str, KnownBoard])


def find_board(name: str) -> tuple[str, KnownBoard]:
    """Return a board and its name, by that or another name of it.

    Raises:
        ModelError: nothing is known of it; the message lists the known ones.
    """
    boards = known_boards()
    for key, board in boards.items():
        if name in (key, *board.also):
            return key, board
    near = nearest(name, list(boards))
    raise ModelError(f"{plain(name)}: nothing is known of such a board{near}; there are: {', '.join(boards)}")


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
        work: by arithmetic, see `agent.compute.tflite.work.work_of`.
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


class VariantPrediction(Struct, frozen=True):
    """Predictions of one variant, for 1 to 4 threads."""

    variant: str
    predictions: tuple[PredictedLatency, ...]

    def fewest_threads(self, fps: float, *, sure: bool) -> PredictedLatency | None:
        """Return the prediction with the fewest threads that reaches a rate; None: no number of threads does.

        Args:
            fps: inferences in a second.
            sure: `likely` is not enough.
        """
        wanted = ("yes",) if sure else ("yes", "likely")
        return next((one for one in self.predictions if one.reaches(fps) in wanted), None)


class ModelPrediction(Struct, frozen=True):
    """Predictions of a model on a board.

    Attributes:
        model: as given.
        board, title, basis: of the board, see `KnownBoard` and `Costs`.
        fps: inferences in a second that are asked for.
        variants: largest or deepest first.
    """

    model: str
    board: str
    title: str
    basis: str
    fps: float
    variants: tuple[VariantPrediction, ...]


def predict_model(name_or_path: str, board: str, *, variant: str = "", fps: float = 0.0) -> ModelPrediction:
    """Predict the latencies of a model's variants.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        board: see `find_board`.
        variant: its name; empty: all.
        fps: see `ModelPrediction`; 0: what the model needs, see `needed_fps`.

    Raises:
        ModelError: there is no such model, variant or board, or nothing in the model can be predicted.
    """
    name, there = find_board(board)
    known = look_up(name_or_path)
    file, manifest = read_modelfile(known.content), known.manifest
    chosen = [manifest.variant(variant)] if variant else manifest.variants
    found = []
    for one in chosen:
        work = work_of_variant(file, manifest, one.name)
        if not work:
            raise ModelError(
                f"{plain(name_or_path)}: none of its operations can be predicted; measure it on the board"
            )
        found.append(VariantPrediction(one.name, tuple(predict(work, there, threads) for threads in THREADS)))
    basis = "; ".join(dict.fromkeys(costs.basis for costs in there.costs.values()))
    return ModelPrediction(
        plain(name_or_path), name, there.title, basis, fps or needed_fps(manifest), tuple(found)
    )


PICTURES_FPS = 15.0
"""Inferences in a second that are asked for of a model of pictures."""
_MICRO_ROW_S = 0.01
"""Time between two rows of the front end `micro`, s."""


def needed_fps(manifest: Manifest, rows: int = 1) -> float:
    """Return the inferences in a second that a stream of this model makes.

    Args:
        manifest: of the model.
        rows: of the input, for a model of sound that runs whenever it is full of new ones.
    """
    if manifest.audio is None:
        return PICTURES_FPS
    return 1.0 / (manifest.audio.every_s or rows * _MICRO_ROW_S)


def work_of_variant(file: ModelFile, manifest: Manifest, variant: str) -> dict[Arithmetic, Work]:
    """Return the work of one inference of a variant, with those that it continues."""
    return added(work_of(file.graph(one.signature)) for one in manifest.chain(variant))
