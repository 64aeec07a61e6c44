"""Verdicts: the rules by which the best way to run a model is taken of those that were measured.

Apart from what measures, which a daemon does not need that has measured before.
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
from agent.compute.tensors import TensorSpec
from agent.errors import ModelError
from agent.types import Array

_INPUTS = 3
_LARGEST = 2**25
"""Numbers that inputs are made up of at most: to make them takes some 16 bytes for each, and a board has few."""
_TOLERANCE_FLOAT, _TOLERANCE_INTEGER = 0.02, 0.1
_ALIKE = 1e-4
"""Deviation of numbers that are alike, as a share of the largest: little more than what float32 rounds by."""

_Amount = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=-1, le=2**31)]


class Measurement(Struct, frozen=True):
    """One way to run a model, measured.

    Attributes:
        name, title: of the way.
        threads: of the CPU; 0 where that says nothing.
        here: whether it is on this board at all.
        refused: why it is not used; empty: it may be.
        open_s: to open the model, s. first_ms: the first inference.
        p50_ms, p95_ms: of the others, with pauses as in a stream: of the CPU without the way to its process,
            since the daemon needs none; of anything else with it.
        cpu_ms: CPU time for one, in the process that runs it.
        rss_mb: resident memory of its process, MB.
        nodes, delegated: operations of the model, and how many the delegate has taken; -1: not known.
        error: how far its answers are from the reference's: root mean square of the difference, as a share of the
            reference's own deviation (of its size where its numbers are alike, or it is only one), over the worst
            output; None: they are not finite.
        runtime: name and version.
        software: name of the driver that computes on the CPU in place of a GPU; empty: it is none.
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
    software: str = ""


class Reference(Struct, frozen=True):
    """Inputs, and what the CPU answers.

    Attributes:
        inputs: for each case the arrays of every input.
        answers: for each case the arrays of every output, in reals.
        tolerance: see `tolerance`.
        rss_mb: resident memory of the process that gave them, MB.
        p50_ms: what the CPU takes; 0: not known.
    """

    inputs: list[list[Array]]
    answers: list[list[Array]]
    tolerance: float
    rss_mb: float
    p50_ms: float = 0.0


Inputs = Callable[[Sequence[TensorSpec]], list[list[Array]]]
"""Gives cases for these input tensors: an array for each."""


def golden_inputs(specs: Sequence[TensorSpec], count: int = _INPUTS) -> list[list[Array]]:
    """Inputs that are the same each time: coarse shapes with noise over them, over each dtype's usual range.

    Raises:
        ModelError: they would be too large.
    """
    if (size := sum(prod(spec.shape) for spec in specs)) > _LARGEST:
        raise ModelError(f"its inputs hold {size} numbers; models of at most {_LARGEST} can be measured")
    random = np.random.default_rng(20)
    return [[_picture(random, spec) for spec in specs] for _ in range(count)]


def output_error(reference: list[list[Array]], answers: list[list[Array]], specs: Sequence[TensorSpec]) -> float:
    """See `Measurement.error`; infinite where an answer is not finite."""
    worst = 0.0
    for wanted, given in zip(reference, answers, strict=True):
        for one, other, spec in zip(wanted, given, specs, strict=True):
            if not np.isfinite(other).all():
                return float("inf")
            off = float(np.sqrt(np.square(one - other, dtype=np.float64).mean()))
            worst = max(worst, off / max(_deviation(one), spec.scale, 1e-12))
    return worst


def _deviation(answer: Array) -> float:
    """Of an answer; of one number, or of many that are all alike, their size: they have none."""
    size, deviation = float(np.abs(answer).max(initial=0.0)), float(answer.std())
    return deviation if deviation > _ALIKE * size else size


def describe_error(off: float, allowed: float) -> str:
    """What is wrong with answers; empty: they are right.

    Args:
        off: by `output_error`.
        allowed: by `tolerance`.
    """
    if not isfinite(off):
        return "answers wrongly: some answers are not finite numbers"
    return f"answers wrongly: off by {off:.1%} where {allowed:.1%} are allowed" if off > allowed else ""


def tolerance(manifest: Manifest, specs: Sequence[TensorSpec]) -> float:
    """How far answers may be from the CPU's: rounding differs, and more so between integers."""
    if manifest.golden.tolerance is not None:
        return manifest.golden.tolerance
    return _TOLERANCE_INTEGER if any(spec.quantised for spec in specs) else _TOLERANCE_FLOAT


def _picture(random: np.random.Generator, spec: TensorSpec) -> Array:
    """Between 0 and 1: blocks of eight in each dimension, and a third of noise."""
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
"""A device must save at least a twentieth to be worth it."""
WORTH_A_THREAD = 0.97
"""More threads must save at least this: what is chosen shall be within 5 % of the best, and measuring errs."""


class Selection(Struct, frozen=True):
    """What was chosen, and why.

    Attributes:
        chosen: how to run the model. cpu: how to run it on the CPU.
        by: what was looked at: time or CPU time.
        measured: everything that was tried, and what was found missing.
    """

    chosen: BackendSpec
    cpu: BackendSpec
    by: By
    measured: tuple[Measurement, ...]


def decide(
    measured: Sequence[Measurement], found: Sequence[DelegateProbe], by: By, threads: int = 0
) -> Selection:
    """Take the best of what was measured.

    Args:
        measured: by `selection.survey`.
        found: what it was measured of.
        by: what to look at.
        threads: that the CPU is to have in any case, even where it was refused with them; 0: as many as is best.
    """
    processor = [one for one in measured if one.name == BackendSpec().backend]
    asked = [one for one in processor if one.threads == threads]
    best = best_of(asked, by, WORTH_A_THREAD) or best_of(processor, by, WORTH_A_THREAD)
    if best is None:  # nothing to compare with
        return Selection(BackendSpec(threads=threads), BackendSpec(threads=threads), by, tuple(measured))
    judged = tuple(_against(one, best, by) for one in measured)
    others = [one for one in judged if one.name != best.name]
    chosen = best_of([best, *others], by, _WORTH) or best
    plans = {one.name: one.plan for one in found if one.plan is not None}
    cpu = BackendSpec(threads=threads or best.threads)
    return Selection(plans.get(chosen.name, cpu), cpu, by, judged)


def cost(one: Measurement, by: By) -> float:
    """What is compared, ms."""
    return one.cpu_ms if by == "energy" else one.p50_ms


def best_of(measured: Sequence[Measurement], by: By, worth: float) -> Measurement | None:
    """The one of least cost; the earlier one where the later is not worth it."""
    best = None
    for one in measured:
        if not one.refused and (best is None or cost(one, by) < worth * cost(best, by)):
            best = one
    return best


def _against(one: Measurement, cpu: Measurement, by: By) -> Measurement:
    """Refused if it is no better than the CPU."""
    if one.refused or one.name == cpu.name or cost(one, by) <= _WORTH * cost(cpu, by):
        return one
    return replace(one, refused=f"slower than the CPU: {cost(one, by):.2f} ms against {cost(cpu, by):.2f}")
