"""Rules by which the best backend is chosen from measurements.

They are apart from `benchmark`, which a daemon with stored measurements never loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.compute.infer.delegates import DelegateProbe
from agent.compute.infer.session import BackendSpec
from agent.compute.manifest import Manifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Array

_INPUTS = 3
_LARGEST = 2**25
"""Most elements of golden inputs: making one takes some 16 bytes of the board's memory."""
_TOLERANCE_FLOAT, _TOLERANCE_INTEGER = 0.02, 0.1
_ALIKE = 1e-4
"""Numbers whose deviation is at most this share of the largest count as equal: little more than float32's
rounding."""

_Amount = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=-1, le=2**31)]


class Measurement(Struct, frozen=True):
    """Measurement of one backend.

    Attributes:
        name, title: of the backend.
        threads: of the CPU; 0 for other backends.
        here: whether this board has it.
        refused: reason not to use it; empty: none.
        open_s: time to open the model, s.
        first_ms: latency of the first inference.
        p50_ms, p95_ms: latency of later inferences, with pauses as in a stream; of the CPU without the worker
            process, which the daemon does not use for it.
        cpu_ms: CPU time of one inference.
        rss_mb: resident memory of its process, MB.
        nodes, delegated: operations of the model, and those that the delegate runs; -1: not known.
        error: difference of its answers from the reference's: root mean square, as a share of the reference's own
            deviation (of its size if it is one number, or all are equal), of the worst output; None: not finite.
        runtime: name and version.
    """

    name: str
    title: str = ""
    threads: _Count = 0
    here: bool = True
    refused: str = ""
    open_s: _Amount = 0.0
    first_ms: _Amount = 0.0
    p50_ms: _Amount = 0.0
    p95_ms: _Amount = 0.0
    cpu_ms: _Amount = 0.0
    rss_mb: _Amount = 0.0
    nodes: _Count = 0
    delegated: _Count = -1
    error: Annotated[float, Meta(ge=0.0)] | None = 0.0
    runtime: str = ""


class Reference(Struct, frozen=True):
    """Inputs, and the CPU's answers.

    Attributes:
        inputs: per case one array per input.
        answers: per case one dequantised array per output.
        tolerance: see `tolerance`.
        rss_mb: resident memory of the CPU's process, MB.
        p50_ms: latency of the CPU; 0: not known.
    """

    inputs: list[list[Array]]
    answers: list[list[Array]]
    tolerance: float
    rss_mb: float
    p50_ms: float = 0.0


Inputs = Callable[[Sequence[TensorSpec]], list[list[Array]]]
"""Returns cases for these input tensors, each with one array per tensor."""


def golden_inputs(specs: Sequence[TensorSpec], count: int = _INPUTS) -> list[list[Array]]:
    """Return reproducible noisy inputs over each dtype's usual range. Raises ModelError if they are too large."""
    if (size := sum(prod(spec.shape) for spec in specs)) > _LARGEST:
        raise ModelError(f"its inputs hold {size} numbers; models of at most {_LARGEST} can be measured")
    random = np.random.default_rng(20)
    return [[_golden_input(random, spec) for spec in specs] for _ in range(count)]


def output_error(reference: list[list[Array]], answers: list[list[Array]], specs: Sequence[TensorSpec]) -> float:
    """Return the error of answers, see `Measurement.error`; infinite if one is not finite."""
    worst = 0.0
    for wanted, given in zip(reference, answers, strict=True):
        for one, other, spec in zip(wanted, given, specs, strict=True):
            if not np.isfinite(other).all():
                return float("inf")
            off = float(np.sqrt(np.square(one - other, dtype=np.float64).mean()))
            worst = max(worst, off / max(_deviation(one), spec.scale, 1e-12))
    return worst


def _deviation(answer: Array) -> float:
    size, deviation = float(np.abs(answer).max(initial=0.0)), float(answer.std())
    return deviation if deviation > _ALIKE * size else size


def describe_error(off: float, allowed: float) -> str:
    """Describe answers whose `output_error` exceeds the `tolerance`; empty: they are right."""
    if not isfinite(off):
        return "answers wrongly: not all numbers are finite"
    return f"answers wrongly: error {off:.1%}, allowed {allowed:.1%}" if off > allowed else ""


def tolerance(manifest: Manifest, specs: Sequence[TensorSpec]) -> float:
    """Return the largest error of right answers: rounding differs, and more so for integers."""
    if manifest.golden.tolerance is not None:
        return manifest.golden.tolerance
    return _TOLERANCE_INTEGER if any(spec.quantised for spec in specs) else _TOLERANCE_FLOAT


def _golden_input(random: np.random.Generator, spec: TensorSpec) -> Array:
    """Make an input: blocks of eight in each dimension, and a third of noise."""
    blocks = random.random([-(-size // 8) for size in spec.shape], dtype=np.float32)
    for axis, size in enumerate(spec.shape):
        blocks = np.repeat(blocks, 8, axis=axis).take(np.arange(size), axis=axis)
    unit = 0.67 * blocks + 0.33 * random.random(spec.shape, dtype=np.float32)
    if np.dtype(spec.dtype).kind == "f":
        return unit.astype(spec.dtype)
    bounds = np.iinfo(spec.dtype)
    low, high = max(bounds.min, -128), min(bounds.max, 255)
    return (low + unit * (high - low)).astype(spec.dtype)


By = Literal["latency", "energy"]
_WORTH = 0.95
"""A device must save at least a twentieth against the CPU."""
WORTH_A_THREAD = 0.97
"""More threads must save at least 3 %: the choice shall be within 5 % of the best, with errors of measurement."""


class Selection(Struct, frozen=True):
    """The chosen backend, and what it was chosen from.

    Attributes:
        chosen: the best backend.
        cpu: the best setting of the CPU.
        by: what was compared: latency, or CPU time.
        measured: all candidates, also those missing on this board.
    """

    chosen: BackendSpec
    cpu: BackendSpec
    by: By
    measured: tuple[Measurement, ...]


def decide(
    measured: Sequence[Measurement], found: Sequence[DelegateProbe], by: By, threads: int = 0
) -> Selection:
    """Choose the best of the backends that `benchmark.survey` has measured.

    The CPU runs with `threads` in any case, even if it was refused with them; 0: with the best number.
    """
    processor = [one for one in measured if one.name == BackendSpec().backend]
    asked = [one for one in processor if one.threads == threads]
    best = best_of(asked, by, WORTH_A_THREAD) or best_of(processor, by, WORTH_A_THREAD)
    if best is None:  # nothing to compare with
        return Selection(BackendSpec(threads=threads), BackendSpec(threads=threads), by, tuple(measured))
    judged = tuple(_refuse_slower(one, best, by) for one in measured)
    others = [one for one in judged if one.name != best.name]
    chosen = best_of([best, *others], by, _WORTH) or best
    plans = {one.name: one.plan for one in found if one.plan is not None}
    cpu = BackendSpec(threads=threads or best.threads)
    return Selection(plans.get(chosen.name, cpu), cpu, by, judged)


def cost(one: Measurement, by: By) -> float:
    """Return what is compared: latency or CPU time, ms."""
    return one.cpu_ms if by == "energy" else one.p50_ms


def best_of(measured: Sequence[Measurement], by: By, worth: float) -> Measurement | None:
    """Return the one of least cost; a later one must cost less than `worth` times an earlier one."""
    best = None
    for one in measured:
        if not one.refused and (best is None or cost(one, by) < worth * cost(best, by)):
            best = one
    return best


def _refuse_slower(one: Measurement, cpu: Measurement, by: By) -> Measurement:
    if one.refused or one.name == cpu.name or cost(one, by) <= _WORTH * cost(cpu, by):
        return one
    return replace(one, refused=f"slower than the CPU: {cost(one, by):.2f} ms against {cost(cpu, by):.2f}")
