"""Measures one way to run a model, in a process of its own: are its answers right, and how fast are they?

Whatever goes wrong there, a crash, a hang, wrong answers, is a reason and no exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.compute.infer.backend import Options, Plan
from agent.compute.infer.whole import Whole
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.tensors import TensorSpec
from agent.errors import BackendError, ModelError
from agent.manifest import Manifest, Model
from agent.messages import Array

_INPUTS = 3
_LARGEST = 2**25
"""Numbers that inputs are made up of at most: to make them takes some 16 bytes for each, and a board has few."""
_WARM = 3
_RUNS, _LEAST = 100, 10
_SECONDS = 0.7
_FAR_SLOWER = 4.0
"""Beyond so many times the reference's time nothing more is measured."""
_TOLERANCE_FLOAT, _TOLERANCE_INTEGER = 0.02, 0.1
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference that takes longer than this, and than so many times the reference's, hangs."""

_Amount = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=-1, le=2**31)]


class Measured(Struct, frozen=True):
    """One way to run a model, measured.

    Attributes:
        name, title: of the way.
        threads: of the CPU; 0 where that says nothing.
        here: whether it is on this board at all.
        refused: why it is not used; empty: it may be.
        open_s: to open the model, s. first_ms: the first inference.
        p50_ms, p95_ms: of the others.
        cpu_ms: CPU time for one.
        rss_mb: resident memory of its process, MB.
        nodes, delegated: operations of the model, and how many the delegate has taken; -1: not known.
        error: how far its answers are from the reference's: root mean square of the difference, as a share of the
            reference's own deviation, over the worst output; None: they are not finite.
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
    """Inputs, and what the CPU answers.

    Attributes:
        inputs: for each case the arrays of every input.
        answers: for each case the arrays of every output, in reals.
        tolerance: see `tolerance`.
        p50_ms: what the CPU takes; 0: not known.
    """

    inputs: list[list[Array]]
    answers: list[list[Array]]
    tolerance: float
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


def wrong(off: float, allowed: float) -> str:
    """What is wrong with answers; empty: they are right.

    Args:
        off: by `distance`.
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


def measure(
    model: Model,
    plan: Plan,
    title: str,
    reference: Reference,
    *,
    patience_s: float = PATIENCE_S,
) -> Measured:
    """Open the model so in a process of its own, and measure it.

    Args:
        model: to run.
        plan: how.
        title: for people.
        reference: what it must answer.
        patience_s: for opening it and for its first inference, s.
    """
    began = time.monotonic()
    try:
        deadline_s = max(_HANGS_S, reference.p50_ms * _HANGS / 1e3)
        options = Options(threads=plan.threads)
        session = WorkerSession(model, plan, options, deadline_s=deadline_s, patience_s=patience_s)
    except (BackendError, ModelError) as error:
        return Measured(plan.backend, title, plan.threads, refused=str(error))
    known = Measured(
        plan.backend,
        title,
        plan.threads,
        open_s=time.monotonic() - began,
        nodes=session.opened.nodes,
        delegated=session.opened.delegated,
        runtime=session.opened.runtime,
    )
    try:
        if plan.kind == "delegate" and known.delegated == 0:
            return replace(known, refused=f"takes none of the model's {known.nodes} operations")
        return _measured(known, Whole(session, model.manifest), session, reference)
    except (BackendError, ModelError) as error:
        return replace(known, refused=str(error))
    finally:
        session.close()


def _measured(known: Measured, whole: Whole, session: WorkerSession, reference: Reference) -> Measured:
    began = time.monotonic()
    answers = whole.answers(reference.inputs[:1])
    known = replace(known, first_ms=(time.monotonic() - began) * 1e3)
    answers += whole.answers(reference.inputs[1:])
    off = distance(reference.answers, answers, whole.outputs)
    known = replace(known, error=off if isfinite(off) else None)
    if reason := wrong(off, reference.tolerance):
        return replace(known, refused=reason)
    times, cpu_s = _timed(whole, session, reference.p50_ms)
    return replace(
        known,
        p50_ms=float(np.percentile(times, 50)) * 1e3,
        p95_ms=float(np.percentile(times, 95)) * 1e3,
        cpu_ms=cpu_s / len(times) * 1e3,
        rss_mb=session.usage().rss_mb,
    )


def _timed(whole: Whole, session: WorkerSession, reference_ms: float) -> tuple[list[float], float]:
    """Seconds of each inference, and CPU seconds of all of them."""
    for _ in range(_WARM):
        whole.invoke()
    used = session.usage().cpu_s
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(times) < _RUNS and (len(times) < _LEAST or time.perf_counter() < until):
        began = time.perf_counter()
        whole.invoke()
        times.append(time.perf_counter() - began)
        if reference_ms and len(times) >= 3 and min(times) * 1e3 > _FAR_SLOWER * reference_ms:
            break
    return times, session.usage().cpu_s - used


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
