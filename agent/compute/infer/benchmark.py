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
from math import isfinite

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.chain import PAUSE_S, ModelChain, TimingRun, time_runs
from agent.compute.infer.choice import (
    By,
    Inputs,
    Measurement,
    Reference,
    Selection,
    decide,
    describe_error,
    golden_inputs,
    output_error,
    tolerance,
)
from agent.compute.infer.delegates import DelegateProbe, device_nodes, unsuited
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError
from agent.text import plural

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
