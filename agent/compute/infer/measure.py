"""What is measured of a way to run a model, and the inputs and answers that it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from agent.compute.tensors import TensorSpec
from agent.manifest import Manifest
from agent.messages import Array

_INPUTS = 3
_TOLERANCE_FLOAT, _TOLERANCE_INTEGER = 0.02, 0.1


class Measured(Struct, frozen=True):
    """One way to run a model, measured.

    Attributes:
        name, title: of the way.
        threads: of the CPU; 0 where that says nothing.
        here: whether it is on this board at all.
        refused: why it is not used; empty: it may be.
        open_s: to open the model, s. first_ms: the first inference.
        p50_ms, p95_ms: of the others: of the CPU without the way to its process, for the daemon needs none; of
            anything else with it.
        cpu_ms: CPU time for one, in the process that runs it.
        rss_mb: resident memory of its process, MB.
        nodes, delegated: operations of the model, and how many the delegate has taken; -1: not known.
        error: how far its answers are from the reference's: root mean square of the difference, as a share of the
            reference's own deviation, over the worst output.
        runtime: name and version.
    """

    name: str
    title: str = ""
    threads: int = 0
    here: bool = True
    refused: str = ""
    open_s: float = 0.0
    first_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    cpu_ms: float = 0.0
    rss_mb: float = 0.0
    nodes: int = 0
    delegated: int = -1
    error: float = 0.0
    runtime: str = ""


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
    """Inputs that are the same each time: coarse shapes with noise over them, over each dtype's usual range."""
    random = np.random.default_rng(20)
    return [[_picture(random, spec) for spec in specs] for _ in range(count)]


def distance(reference: list[list[Array]], answers: list[list[Array]], specs: Sequence[TensorSpec]) -> float:
    """See `Measured.error`; infinite where an answer is not finite."""
    worst = 0.0
    for wanted, given in zip(reference, answers, strict=True):
        for one, other, spec in zip(wanted, given, specs, strict=True):
            if not np.isfinite(other).all():
                return float("inf")
            deviation = max(float(one.std()), spec.scale, 1e-6 * float(np.abs(one).max(initial=0.0)), 1e-12)
            worst = max(worst, float(np.sqrt(np.square(one - other, dtype=np.float64).mean())) / deviation)
    return worst


def tolerance(manifest: Manifest, specs: Sequence[TensorSpec]) -> float:
    """How far answers may be from the CPU's: rounding differs, and more so between integers."""
    if manifest.golden.tolerance is not None:
        return manifest.golden.tolerance
    return _TOLERANCE_INTEGER if any(spec.quantised for spec in specs) else _TOLERANCE_FLOAT


def _picture(random: np.random.Generator, spec: TensorSpec) -> Array:
    """Between 0 and 1: blocks of eight in each dimension, and a third of noise."""
    blocks = random.random([-(-size // 8) for size in spec.shape])
    for axis, size in enumerate(spec.shape):
        blocks = np.repeat(blocks, 8, axis=axis).take(np.arange(size), axis=axis)
    unit = 0.67 * blocks + 0.33 * random.random(spec.shape)
    if np.dtype(spec.dtype).kind == "f":
        return unit.astype(spec.dtype)
    bounds = np.iinfo(spec.dtype)
    low, high = max(bounds.min, -128), min(bounds.max, 255)
    return (low + unit * (high - low)).astype(spec.dtype)
