"""Measures the backends that can run a model and chooses the best.

Each candidate runs in a worker process: the CPU with each number of threads, and each delegate that is found. Its
answers are checked first. Candidates that are compared take turns, so that what slows the board down for a moment
slows all of them. One that crashes, hangs, answers wrongly, takes no operation or is slower than the CPU is
refused with the reason; that is no exception.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from math import isfinite, prod
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.compute.infer.chain import PAUSE_S, ModelChain, TimingRun, time_runs
from agent.compute.infer.delegates import DelegateProbe, device_nodes, unsuited
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError
from agent.text import plural
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


_TURNS, _TURN_S = 20, 0.1
"""Number and length, s, of the turns of each candidate."""
_FAR_SLOWER = 4.0
"""A candidate that takes so many times the reference's latency gets no further turn."""
_HANGS_S, _HANGS = 2.0, 50.0
"""Deadline of an inference: this, s, or so many times the reference's latency if that is longer."""

Progress = Callable[[str], None]


class Candidate(Struct, frozen=True):
    """A backend to measure, and its title for people."""

    plan: BackendSpec
    title: str

    @property
    def label(self) -> str:
        """Label such as `cpu, 2 threads`."""
        threads = self.plan.threads
        return self.plan.backend + (f", {plural(threads, 'thread')}" if threads else "")


def benchmark(
    model: Model,
    candidates: Sequence[Candidate],
    reference: Reference,
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress = lambda _: None,
) -> list[Measurement]:
    """Measure candidates, all of them open at the same time.

    Args:
        model: to run.
        candidates: to be compared.
        reference: right answers.
        patience_s: timeout for opening one and for its first inference, s.
        progress: called with the label of what is measured next; its errors end the benchmark.
    """
    with ExitStack() as open_:
        trials = []
        for candidate in candidates:
            progress(candidate.label)
            trials.append(open_.enter_context(closing(CandidateRun(model, candidate, reference, patience_s))))
        for number in range(_TURNS):
            for trial in trials[:: -1 if number % 2 else 1]:
                progress(trial.candidate.label)
                trial.measure()
        return [trial.result() for trial in trials]


class CandidateRun:
    """One candidate: open and with right answers, or refused."""

    def __init__(self, model: Model, candidate: Candidate, reference: Reference, patience_s: float) -> None:
        self.candidate, self._reference = candidate, reference
        self._known = Measurement(candidate.plan.backend, candidate.title, candidate.plan.threads)
        self._session: WorkerSession | None = None
        self._turns: list[TimingRun] = []
        try:
            self._open(model, patience_s)
        except (BackendError, ModelError) as error:
            self._refuse(str(error))

    def measure(self) -> None:
        """Time inferences for `_TURN_S`."""
        session = self._session
        if session is None or self._is_far_slower():
            return
        try:
            if self.candidate.plan.kind == "cpu":
                self._turns.append(session.time_model(_TURN_S))
            else:
                self._turns.append(time_runs(self._chain.invoke, _TURN_S, lambda: session.usage().cpu_s, PAUSE_S))
        except BackendError as error:
            self._refuse(str(error))

    def result(self) -> Measurement:
        """Return the measurement so far."""
        if self._session is None or not self._turns:
            return self._known
        times = np.concatenate([turn.ms for turn in self._turns])
        try:
            rss_mb = self._session.usage().rss_mb
        except BackendError as error:
            return replace(self._known, refused=str(error))
        return replace(
            self._known,
            p50_ms=float(np.percentile(times, 50)),
            p95_ms=float(np.percentile(times, 95)),
            cpu_ms=sum(turn.cpu_ms for turn in self._turns) / len(times),
            rss_mb=rss_mb,
        )

    def close(self) -> None:
        """End the worker process."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self, model: Model, patience_s: float) -> None:
        plan, reference, began = self.candidate.plan, self._reference, time.monotonic()
        is_known = reference.p50_ms > 0.0  # else the model's usual latency on this board is not known yet
        deadline_s = max(_HANGS_S, reference.p50_ms * _HANGS / 1e3) if is_known else patience_s
        options = SessionOptions(threads=plan.threads)
        session = WorkerSession(model, plan, options, deadline_s=deadline_s, patience_s=patience_s)
        self._session = session
        self._known = replace(
            self._known,
            open_s=time.monotonic() - began,
            nodes=session.opened.nodes,
            delegated=session.opened.delegated,
            runtime=session.opened.runtime,
        )
        if plan.kind == "delegate" and session.opened.delegated == 0:
            raise BackendError(f"takes none of the model's {session.opened.nodes} operations")
        self._chain = ModelChain(session, model.manifest)
        self._check_answers()

    def _check_answers(self) -> None:
        reference, began = self._reference, time.monotonic()
        answers = self._chain.run_cases(reference.inputs[:1])
        self._known = replace(self._known, first_ms=(time.monotonic() - began) * 1e3)
        answers += self._chain.run_cases(reference.inputs[1:])
        off = output_error(reference.answers, answers, self._chain.outputs)
        self._known = replace(self._known, error=off if isfinite(off) else None)
        if reason := describe_error(off, reference.tolerance):
            raise BackendError(reason)

    def _is_far_slower(self) -> bool:
        limit_ms = _FAR_SLOWER * self._reference.p50_ms
        return bool(limit_ms and self._turns and min(self._turns[0].ms) > limit_ms)

    def _refuse(self, reason: str) -> None:
        self._known = replace(self._known, refused=reason)
        self.close()


_THREADS = 4
"""Most threads of the CPU that are measured."""


def survey(
    model: Model,
    found: Sequence[DelegateProbe],
    threads_max: int,
    *,
    inputs: Inputs = golden_inputs,
    patience_s: float = PATIENCE_S,
    spare_mb: float = math.inf,
    software: bool = True,
    progress: Progress = lambda _: None,
) -> tuple[Measurement, ...]:
    """Measure every backend that may run a model.

    Args:
        model: to run.
        found: delegates besides the CPU, by `probe_delegates`.
        threads_max: the CPU is tried with 1 thread to so many.
        inputs: returns the inputs that all candidates must answer as the CPU does.
        patience_s: see `benchmark`.
        spare_mb: memory for processes, MB; if it is short, fewer candidates take turns.
        software: also measure a GPU without a device node, whose driver computes on the CPU: that takes minutes.
        progress: see `benchmark`.

    Raises:
        ModelError, BackendError: not even the CPU runs the model.
    """
    reference = _reference(model, inputs)
    at_once = max(1, int(min(spare_mb / reference.rss_mb, threads_max)))
    measured = _survey_cpu(model, reference, threads_max, at_once, progress)
    if all(one.refused for one in measured):
        raise BackendError(measured[0].refused)
    reference = replace(reference, p50_ms=next(one.p50_ms for one in measured if not one.refused))
    file = read_modelfile(model.content)
    for one in found:
        reason = one.missing or unsuited(one.name, file)
        if _is_gpu(one) and not software and not device_nodes(one.name):
            reason = reason or "not measured: there is no GPU's device node, so that Vulkan computes on the CPU"
        if reason or one.plan is None:
            result = Measurement(one.name, one.title, here=one.plan is not None, refused=reason)
        else:
            candidate = Candidate(one.plan, one.title)
            (result,) = benchmark(model, [candidate], reference, patience_s=patience_s, progress=progress)
        measured.append(result)
    return tuple(measured)


def _survey_cpu(
    model: Model, reference: Reference, threads_max: int, at_once: int, progress: Progress
) -> list[Measurement]:
    """Measure the CPU with 1 thread to `threads_max`; so many candidates `at_once` take turns."""
    candidates = [
        Candidate(BackendSpec(threads=threads), "CPU (XNNPACK)") for threads in range(1, threads_max + 1)
    ]
    measured: list[Measurement] = []
    for first in range(0, threads_max, at_once):
        group = candidates[first : first + at_once]
        measured += benchmark(model, group, reference, progress=progress)
    return measured


def _is_gpu(found: DelegateProbe) -> bool:
    return found.plan is not None and (found.plan.kind, found.plan.library) == ("accelerator", "GPU")


def choose(
    model: Model,
    found: Sequence[DelegateProbe],
    cores: int,
    by: By = "latency",
    *,
    inputs: Inputs = golden_inputs,
    patience_s: float = PATIENCE_S,
    spare_mb: float = math.inf,
    progress: Progress = lambda _: None,
) -> Selection:
    """Measure every backend that may run a model as `survey` does, on up to so many cores; choose the best."""
    threads_max = min(_THREADS, cores)
    measured = survey(
        model, found, threads_max, inputs=inputs, patience_s=patience_s, spare_mb=spare_mb, progress=progress
    )
    return decide(measured, found, by)


def _reference(model: Model, inputs: Inputs) -> Reference:
    """Return the CPU's answers with one thread, from a worker process, because a model may crash the runtime."""
    session = WorkerSession(model, BackendSpec(threads=1), SessionOptions(threads=1), deadline_s=PATIENCE_S)
    try:
        chain = ModelChain(session, model.manifest)
        cases = inputs(chain.inputs)
        answers, allowed = chain.run_cases(cases), tolerance(model.manifest, chain.outputs)
        return Reference(cases, answers, allowed, session.usage().rss_mb)
    except MemoryError:
        raise BackendError(f"{model.path}: too large to be measured with the memory of this board") from None
    finally:
        session.close()
