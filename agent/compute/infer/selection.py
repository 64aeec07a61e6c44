"""Chooses how to run a model: measures every candidate of this board, and takes the best that answers rightly.

Measured are the CPU with each number of threads, in turns, and each row of `delegates` that is found. A candidate
that crashes, hangs, answers wrongly, takes nothing over or is slower than the CPU is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from msgspec.structs import replace

from agent.compute.infer.backend import Options, Plan
from agent.compute.infer.delegates import unsuited
from agent.compute.infer.finding import Found
from agent.compute.infer.measure import Inputs, Measured, Reference, golden_inputs, tolerance
from agent.compute.infer.modelfile import read_modelfile
from agent.compute.infer.trial import Progress, Way, race
from agent.compute.infer.verdict import WORTH_A_THREAD, By, Verdict, best_of, decide
from agent.compute.infer.vulkan import software_driver
from agent.compute.infer.whole import Whole
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.errors import BackendError
from agent.manifest import Model

_THREADS = 4


def survey(
    model: Model,
    found: Sequence[Found],
    threads_max: int,
    *,
    inputs: Inputs = golden_inputs,
    patience_s: float = PATIENCE_S,
    spare_mb: float = math.inf,
    software: bool = True,
    progress: Progress = lambda _: None,
) -> tuple[Measured, ...]:
    """Measure everything that may run a model.

    Args:
        model: to run.
        found: candidates besides the CPU, see `finding.candidates`.
        threads_max: the CPU is tried with 1 thread to so many.
        inputs: that everything must answer as the CPU does.
        patience_s: see `race`.
        spare_mb: memory for processes, MB; where it is short, fewer numbers of threads take turns.
        software: also measure a GPU that a software driver computes on the CPU; it takes minutes, and is slower
            than the CPU itself.
        progress: is told what is measured next; what it raises ends the survey.

    Raises:
        ModelError, BackendError: not even the CPU runs the model.
    """
    reference = _reference(model, inputs)
    ways = [Way(Plan(threads=threads), "CPU (XNNPACK)") for threads in range(1, threads_max + 1)]
    at_once = max(1, int(min(spare_mb / reference.rss_mb, threads_max)))
    measured: list[Measured] = []
    for first in range(0, threads_max, at_once):
        measured += race(model, ways[first : first + at_once], reference, judge=_best_threads, progress=progress)
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
            result = Measured(one.name, one.title, here=one.plan is not None, refused=reason)
        else:
            way = Way(one.plan, one.title)
            (result,) = race(model, [way], reference, patience_s=patience_s, progress=progress)
        measured.append(replace(result, software=slow))
    return tuple(measured)


def _is_gpu(found: Found) -> bool:
    return found.plan is not None and (found.plan.kind, found.plan.library) == ("accelerator", "GPU")


def choose(
    model: Model,
    found: Sequence[Found],
    cores: int,
    by: By = "latency",
    *,
    inputs: Inputs = golden_inputs,
    patience_s: float = PATIENCE_S,
    spare_mb: float = math.inf,
    progress: Progress = lambda _: None,
) -> Verdict:
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
    session = WorkerSession(model, Plan(threads=1), Options(threads=1), deadline_s=PATIENCE_S)
    try:
        whole = Whole(session, model.manifest)
        cases = inputs(whole.inputs)
        answers, allowed = whole.answers(cases), tolerance(model.manifest, whole.outputs)
        return Reference(cases, answers, allowed, session.usage().rss_mb)
    except MemoryError:
        raise BackendError(f"{model.path}: too large to be measured in the memory of this board") from None
    finally:
        session.close()


def _best_threads(measured: Sequence[Measured]) -> list[int]:
    """The best number of threads by latency and by energy; 0: none is."""
    found = (best_of(measured, by, WORTH_A_THREAD) for by in get_args(By))
    return [0 if one is None else one.threads for one in found]
