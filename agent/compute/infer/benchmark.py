"""Measures ways to run a model, each in a process of its own: are its answers right, and how fast are they?

Those that are to be compared take turns: what slows the board down for a moment slows all of them. Whatever goes
wrong, a crash, a hang, wrong answers, is a reason and no exception.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from math import isfinite
from typing import get_args

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.chain import ModelChain, TimingRun, time_inference
from agent.compute.infer.choice import (
    WORTH_A_THREAD,
    By,
    Inputs,
    Measurement,
    Reference,
    Selection,
    best_of,
    decide,
    describe_error,
    golden_inputs,
    output_error,
    tolerance,
)
from agent.compute.infer.delegates import DelegateProbe, unsuited
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.vulkan import software_driver
from agent.compute.infer.worker.session import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError

_TURN_S = 0.1
_LEAST, _MOST = 10, 30
_PARTS = 5
"""Where every one of so many parts of the turns has the same best way, more turns would hardly have another."""
_FAR_SLOWER = 4.0
"""Beyond so many times the reference's time nothing more is measured."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference that takes longer than this, and than so many times the reference's, hangs."""

Progress = Callable[[str], None]
Judge = Callable[[Sequence[Measurement]], object]
"""Says which of these is best, in any way that can be compared."""


class Candidate(Struct, frozen=True):
    """A way to run a model.

    Attributes:
        plan: how. title: for people.
    """

    plan: BackendSpec
    title: str

    @property
    def label(self) -> str:
        """Such as `cpu, 2 threads`."""
        threads = self.plan.threads
        return self.plan.backend + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


def benchmark(
    model: Model,
    ways: Sequence[Candidate],
    reference: Reference,
    *,
    patience_s: float = PATIENCE_S,
    judge: Judge = lambda _: None,
    progress: Progress = lambda _: None,
) -> list[Measurement]:
    """Measure ways to run a model, all of them open at the same time, until it is plain which is best.

    Args:
        model: to run.
        ways: to be compared.
        reference: what they must answer.
        patience_s: for opening one and for its first inference, s.
        judge: see `Judge`; without one there are as few turns as there may be.
        progress: is told what is measured next; what it raises ends the race.
    """
    with ExitStack() as open_:
        trials = []
        for way in ways:
            progress(way.label)
            trials.append(open_.enter_context(closing(CandidateRun(model, way, reference, patience_s))))
        number = 0
        while number < _LEAST or (number < _MOST and not _is_decided(trials, judge)):
            for trial in trials[:: -1 if number % 2 else 1]:
                progress(trial.way.label)
                trial.turn()
            number += 1
        return [trial.measured() for trial in trials]


def _is_decided(trials: Sequence[CandidateRun], judge: Judge) -> bool:
    parts = [judge([trial.sampled(part) for trial in trials]) for part in range(_PARTS)]
    return all(best == parts[0] for best in parts)


class CandidateRun:
    """One way, open and answering rightly, or refused.

    Attributes:
        way: see `Candidate`.
    """

    def __init__(self, model: Model, way: Candidate, reference: Reference, patience_s: float) -> None:
        self.way, self._reference = way, reference
        self._known = Measurement(way.plan.backend, way.title, way.plan.threads)
        self._session: WorkerSession | None = None
        self._turns: list[TimingRun] = []
        try:
            self._open(model, patience_s)
        except (BackendError, ModelError) as error:
            self._refuse(str(error))

    def turn(self) -> None:
        """Time it for a moment."""
        session = self._session
        if session is None or self._is_far_slower():
            return
        try:
            if self.way.plan.kind == "cpu":
                self._turns.append(session.timed(_TURN_S))
            else:
                self._turns.append(time_inference(self._whole, _TURN_S, lambda: session.usage().cpu_s))
        except BackendError as error:
            self._refuse(str(error))

    def measured(self) -> Measurement:
        """What is known of it by now."""
        if self._session is None:
            return self._known
        try:
            return replace(self._of(self._turns), rss_mb=self._session.usage().rss_mb)
        except BackendError as error:
            return replace(self._known, refused=str(error))

    def sampled(self, part: int) -> Measurement:
        """The same from one part of the turns alone, but for the memory."""
        ends = [len(self._turns) * end // _PARTS for end in (part, part + 1)]
        return self._of(self._turns[slice(*ends)])

    def _of(self, turns: Sequence[TimingRun]) -> Measurement:
        if self._known.refused or not turns:
            return self._known
        times = np.concatenate([turn.ms for turn in turns])
        return replace(
            self._known,
            p50_ms=float(np.percentile(times, 50)),
            p95_ms=float(np.percentile(times, 95)),
            cpu_ms=sum(turn.cpu_ms for turn in turns) / len(times),
        )

    def close(self) -> None:
        """End its process."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self, model: Model, patience_s: float) -> None:
        plan, reference, began = self.way.plan, self._reference, time.monotonic()
        is_known = reference.p50_ms > 0.0  # else nobody knows yet what is long for this model on this board
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
        self._whole = ModelChain(session, model.manifest)
        self._answer()

    def _answer(self) -> None:
        reference, began = self._reference, time.monotonic()
        answers = self._whole.run_cases(reference.inputs[:1])
        self._known = replace(self._known, first_ms=(time.monotonic() - began) * 1e3)
        answers += self._whole.run_cases(reference.inputs[1:])
        off = output_error(reference.answers, answers, self._whole.outputs)
        self._known = replace(self._known, error=off if isfinite(off) else None)
        if reason := describe_error(off, reference.tolerance):
            raise BackendError(reason)

    def _is_far_slower(self) -> bool:
        limit_ms = _FAR_SLOWER * self._reference.p50_ms
        return bool(limit_ms and self._turns and min(self._turns[0].ms) > limit_ms)

    def _refuse(self, reason: str) -> None:
        self._known = replace(self._known, refused=reason)
        self.close()


# Chooses how to run a model: measures every candidate of this board, and takes the best that answers rightly.
#
# Measured are the CPU with each number of threads, in turns, and each row of `delegates` that is found. A
# candidate that crashes, hangs, answers wrongly, takes nothing over or is slower than the CPU is refused, with
# the reason.

_THREADS = 4


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
    """Measure everything that may run a model.

    Args:
        model: to run.
        found: candidates besides the CPU, see `finding.candidates`.
        threads_max: the CPU is tried with 1 thread to so many.
        inputs: that everything must answer as the CPU does.
        patience_s: see `benchmark`.
        spare_mb: memory for processes, MB; where it is short, fewer numbers of threads take turns.
        software: also measure a GPU that a software driver computes on the CPU; it takes minutes, and is slower
            than the CPU itself.
        progress: is told what is measured next; what it raises ends the survey.

    Raises:
        ModelError, BackendError: not even the CPU runs the model.
    """
    reference = _reference(model, inputs)
    ways = [Candidate(BackendSpec(threads=threads), "CPU (XNNPACK)") for threads in range(1, threads_max + 1)]
    at_once = max(1, int(min(spare_mb / reference.rss_mb, threads_max)))
    measured: list[Measurement] = []
    for first in range(0, threads_max, at_once):
        measured += benchmark(
            model, ways[first : first + at_once], reference, judge=_best_threads, progress=progress
        )
    if all(one.refused for one in measured):
        raise BackendError(measured[0].refused)
    reference = replace(reference, p50_ms=next(one.p50_ms for one in measured if not one.refused))
    file = read_modelfile(model.content)
    driver = software_driver() if any(map(_is_gpu, found)) else ""
    for one in found:
        slow = driver if _is_gpu(one) else ""
        reason = one.missing or unsuited(one.name, file)
        if slow and not software:
            reason = reason or f"the Vulkan driver {slow} is software, which computes on the CPU: not measured"
        if reason or one.plan is None:
            result = Measurement(one.name, one.title, here=one.plan is not None, refused=reason)
        else:
            way = Candidate(one.plan, one.title)
            (result,) = benchmark(model, [way], reference, patience_s=patience_s, progress=progress)
        measured.append(replace(result, software=slow))
    return tuple(measured)


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
    """Measure and choose.

    Args:
        model: see `survey`.
        found: see `survey`.
        cores: that this process may use.
        by: what to look at.
        inputs: see `survey`.
        patience_s: see `survey`.
        spare_mb: see `survey`.
        progress: see `survey`.

    Raises:
        ModelError, BackendError: not even the CPU runs the model.
    """
    threads_max = min(_THREADS, cores)
    measured = survey(
        model, found, threads_max, inputs=inputs, patience_s=patience_s, spare_mb=spare_mb, progress=progress
    )
    return decide(measured, found, by)


def _reference(model: Model, inputs: Inputs) -> Reference:
    """The CPU's answers, of one thread, in a process of its own: a model may crash the runtime, too."""
    # Nobody knows yet what is long for this model on this board.
    session = WorkerSession(model, BackendSpec(threads=1), SessionOptions(threads=1), deadline_s=PATIENCE_S)
    try:
        whole = ModelChain(session, model.manifest)
        cases = inputs(whole.inputs)
        answers, allowed = whole.run_cases(cases), tolerance(model.manifest, whole.outputs)
        return Reference(cases, answers, allowed, session.usage().rss_mb)
    except MemoryError:
        raise BackendError(f"{model.path}: too large to be measured in the memory of this board") from None
    finally:
        session.close()


def _best_threads(measured: Sequence[Measurement]) -> list[int]:
    """The best number of threads by latency and by energy; 0: none is."""
    found = (best_of(measured, by, WORTH_A_THREAD) for by in get_args(By))
    return [0 if one is None else one.threads for one in found]
