"""Make a model smaller and faster in steps, and keep of them what helps.

Every step is measured on this machine, in turns with the model before it, and on examples that no step has seen.
A step is kept if the model loses no more than is allowed, and gets smaller or faster by more than noise, and not
slower or larger, unless it comes nearer to the budget by that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.read import read_modelfile
from agent.errors import CheckpointError, ModelError
from agent.models.library import installed_runtime
from agent.optimise.data import Examples
from agent.optimise.evaluate import Score, change, doubt_guesses, memory_mb, score, time_ms
from agent.optimise.profile import ModelProfile, bottlenecks, operation_times, profile
from agent.optimise.recipe.budget import Budget
from agent.optimise.report import (
    LayerResult,
    OperationTime,
    OptimiseReport,
    StepResult,
    describe_machine,
    told_slower,
)

Progress = Callable[[str], None]


class Meters(NamedTuple):
    """What measures models.

    Attributes:
        times: returns the time of an inference of each file, ms.
        memory: returns the memory of a process that runs a file, MB.
        profiler: returns the time by operation; raises a ModelError if it cannot.
    """

    times: Callable[[Sequence[bytes]], list[float]] = time_ms
    memory: Callable[[bytes, Manifest], float] = memory_mb
    profiler: Callable[[Model], ModelProfile] = partial(profile, threads=1)


ALLOWED_LOSS = 0.01
"""Score that may be lost if the budget does not say."""
_NOISE_TIME, _NOISE_SIZE = 0.03, 0.005
"""Shares of time and of size by which a step has to help. If the model, timed against itself, differs by more, it
is that share of time."""
_NOISE_MS = 0.01
"""Times of an inference that differ by less decide nothing, whatever their share."""
_COPIES = 3
"""Number of copies of the first model that are timed against each other."""


class ModelState(NamedTuple):
    """A model between two steps of `tune`.

    Attributes:
        content: what would be written now.
        source: the float model that it was made of; the same bytes while it is float itself.
        layers: of `content`, if a step knows them.
        notes: what the last step did.
        derive: makes the same of another float model as was made of `source`; None: nothing was.
    """

    content: bytes
    source: bytes
    layers: tuple[LayerResult, ...] = ()
    notes: tuple[str, ...] = ()
    derive: Callable[[bytes, Progress], ModelState] | None = None


class TuningStep(NamedTuple):
    """A step that may help.

    Attributes:
        name: in the report.
        apply: returns the next state; the same content: there is nothing to do. Raises a ModelError if the step
            cannot be applied to the model. Its second argument is called with what is being done.
        always: False: it is left out if the budget is met before it.
        left_out: why it is left out if the budget is not met; empty: it is tried.
        mends: name of a step before it; it is left out unless the result of that one has lost too much.
    """

    name: str
    apply: Callable[[ModelState, Progress], ModelState]
    always: bool = True
    left_out: str = ""
    mends: str = ""


class TunedModel(Struct, frozen=True):
    """Result of `tune`.

    Attributes:
        content: of the best file.
        report: with `missed` if the budget is not met.
        failures: reasons of the steps that could not be applied.
        keys: of its manifest that differ from the model's.
    """

    content: bytes
    report: OptimiseReport
    failures: tuple[str, ...] = ()
    keys: Mapping[str, Any] = {}


def with_allowed_loss(budget: Budget) -> Budget:
    """Return a budget that limits the loss: one that does not allows `ALLOWED_LOSS`."""
    if budget.loss is not None:
        return budget
    return replace(budget, loss=ALLOWED_LOSS)


def split(examples: Examples, held_out: float) -> tuple[Examples, Examples]:
    """Return examples for the steps, and others to measure on, by a fixed rule."""
    order = np.random.default_rng(1).permutation(len(examples))
    count = min(len(examples) - 1, max(1, round(held_out * len(examples))))
    return examples.take(np.sort(order[count:])), examples.take(np.sort(order[:count]))


def tune(
    model: Model,
    examples: Examples,
    steps: Sequence[TuningStep],
    budget: Budget,
    *,
    judging: Examples | None = None,
    command: str = "",
    meters: Meters = Meters(),  # noqa: B008 - it is frozen
    progress: Progress = lambda _: None,
) -> TunedModel:
    """Apply steps one after the other, and keep what helps.

    Args:
        model: to begin with; its first variant counts.
        examples: to measure on; the steps must not have seen them.
        judging: others that the steps have not seen, which alone decide on them; None: `examples` do.
        steps: in their order.
        budget: what the result must meet; without a limit for the loss it is `ALLOWED_LOSS`.
        command: for the report.
        meters: measure models.
        progress: called with what is being done.

    Raises:
        ModelError: the model cannot be measured on these examples.
        CheckpointError: a step refuses the checkpoint of another run.
    """
    run = _Run(model, (examples, judging or examples), budget, meters, progress)
    for step in steps:
        run.try_step(step)
    return TunedModel(run.state.content, run.report(command), tuple(run.failures))


class _Run:
    """The model on its way, and the steps so far."""

    def __init__(
        self,
        model: Model,
        examples: tuple[Examples, Examples],
        budget: Budget,
        meters: Meters,
        progress: Progress,
    ) -> None:
        self._model, self._budget = model, budget
        self._examples, self._judging = examples
        self._meters, self._progress = meters, progress
        self._allowed = with_allowed_loss(budget)
        self.state = ModelState(model.content, model.content)
        self.failures: list[str] = []
        self._lossy: set[str] = set()
        progress("measuring the model as it is")
        self._first_score = self._score(model.content, self._examples)
        self._first_judged = self._judged(model.content, self._first_score)
        same = meters.times([model.content] * _COPIES)
        latency = min(same)
        self._spread = max(same) / latency - 1
        self._noise = max(_NOISE_TIME, self._spread, _NOISE_MS / latency)
        self._best = self._result("before", model.content, self._first_score, latency)
        self._best_lost, self._steps = 0.0, [self._best]

    def try_step(self, step: TuningStep) -> None:
        """Apply a step to the best model so far, and keep its result if it helps."""
        if not step.always and not self._missed(self._best, self._best_lost):
            self._leave_out(step.name, "the budget is met without it")
            return
        if step.left_out:
            self._leave_out(step.name, step.left_out)
            return
        if step.mends and step.mends not in self._lossy:
            kept = any(one.name == step.mends and one.kept for one in self._steps)
            told = "is kept" if kept else "has no result that loses too much"
            self._leave_out(step.name, f"not needed: {step.mends} {told}")
            return
        try:
            found = step.apply(self.state, self._progress)
        except CheckpointError:
            raise  # without its checkpoint the training would be left out, and hours of it lost
        except ModelError as error:
            self.failures.append(f"{step.name}: {error}")
            self._leave_out(step.name, str(error))
            return
        if found.content == self.state.content:
            self._leave_out(step.name, "nothing to do")
            return
        self._judge(step.name, found)

    def _leave_out(self, name: str, reason: str) -> None:
        self._steps.append(StepResult(name, kept=False, notes=(reason,)))

    def _judge(self, name: str, found: ModelState) -> None:
        self._progress(f"measuring the model after {name}")
        scored = self._score(found.content, self._examples)
        lost = self._first_judged.value - self._judged(found.content, scored).value
        before_ms, after_ms = self._meters.times([self.state.content, found.content])
        result = self._result(name, found.content, scored, after_ms)
        reasons = self._against(result, lost, before_ms)
        result = replace(result, kept=not reasons, notes=(*found.notes, *self._told(scored), *reasons))
        if not self._allowed.meets("loss", lost):
            self._lossy.add(name)
        self._steps.append(result)
        if not reasons:
            self._best, self._best_lost, self.state = result, lost, found

    def _against(self, result: StepResult, loss: float, before_ms: float) -> list[str]:
        """Return the reasons not to keep a result; empty: it helps. Its time is compared with one beside it."""
        if not self._allowed.meets("loss", loss):
            by = "" if self._judging is self._examples else f" of the {len(self._judging)} examples that judge"
            return [f"loses {loss * 100:.2f} pp{by}, and {self._allowed.told('loss')} is allowed"]
        best = self._best
        assert result.latency_ms is not None
        time, size = result.latency_ms / before_ms - 1, result.size / best.size - 1
        faster, smaller = time < -self._noise, size < -_NOISE_SIZE
        before, after = self._missed(best, self._best_lost), self._missed(result, loss)
        slower = time > self._noise and not (smaller and self._only_misses("size", before, after))
        larger = size > _NOISE_SIZE and not (faster and self._only_misses("latency", before, after))
        if (faster or smaller) and (not (slower or larger) or len(after) < len(before)):
            return []
        new = [one for one in after if one.split()[0] not in {two.split()[0] for two in before}]
        missed = f"; it would miss the budget: {', '.join(new)}" if new else ""
        return [f"does not help: time {time:+.1%}, size {size:+.1%}{missed}"]

    @staticmethod
    def _only_misses(limit: str, before: Sequence[str], after: Sequence[str]) -> bool:
        """Return True if a limit was missed before, and no other one is now."""
        return any(one.startswith(limit) for one in before) and all(one.startswith(limit) for one in after)

    def _loss(self, result: StepResult) -> float:
        assert result.score is not None
        return self._first_score.value - result.score

    def _told(self, scored: Score) -> Iterator[str]:
        found = change(self._first_score, scored)
        if found.interval is not None:
            low, high = (value * 100 for value in found.interval)
            yield f"score {found.value * 100:+.2f} pp (95 %: {low:+.2f} to {high:+.2f})"

    def _missed(self, result: StepResult, loss: float | None = None) -> list[str]:
        """Say which limits a result misses; with the loss of the examples that are reported, if none is given."""
        loss = self._loss(result) if loss is None else loss
        return self._budget.missed(size=float(result.size), loss=loss, latency_ms=result.latency_ms)

    def _score(self, content: bytes, examples: Examples) -> Score:
        return score(content, examples, self._model.manifest, reference=self._model.content)

    def _judged(self, content: bytes, scored: Score) -> Score:
        """Return the score by which a step is judged; `scored` is that of the examples that are reported."""
        return scored if self._judging is self._examples else self._score(content, self._judging)

    def _result(self, name: str, content: bytes, scored: Score, latency_ms: float) -> StepResult:
        memory = self._meters.memory(content, self._model.manifest)
        return StepResult(name, scored.metric, scored.value, scored.interval, len(content), latency_ms, memory)

    def report(self, command: str) -> OptimiseReport:
        """Return the report; the profiler runs for the first and the last model only."""
        ends = list(dict.fromkeys((self._model.content, self.state.content)))
        profiles = [self._profile(content) for content in ends]
        steps = list(self._steps)
        if len(ends) > 1:
            steps.append(replace(self._best, name="after", notes=()))
        missed = self._missed(self._best)
        return OptimiseReport(
            "tune",
            self._model.path,
            hashlib.sha256(self._model.content).hexdigest(),
            "" if missed else hashlib.sha256(self.state.content).hexdigest(),
            describe_machine(),
            command,
            self._examples.description,
            str(self._budget),
            tuple(missed),
            tuple(steps),
            self.state.layers,
            tuple(OperationTime(*one) for one in operation_times(profiles)),
            (
                *doubt_guesses(self._first_score.value, self._examples),
                *told_slower(self._steps[0], self._best, "the model as it was", self._spread),
                *bottlenecks(profiles),
                self._roles(),
                *self._examples.remarks,
            ),
        )

    def _roles(self) -> str:
        """Say which examples have decided on the steps."""
        if self._judging is self._examples:
            told = "have also decided on the steps, so that a loss may be told a little too small"
            return f"the {len(self._examples)} examples of these figures {told}"
        return f"{len(self._judging)} other examples have decided on the steps"

    def _profile(self, content: bytes) -> ModelProfile | str:
        self._progress("profiling")
        try:
            return self._meters.profiler(_model(content, self._model))
        except ModelError as error:
            return str(error)


def _model(content: bytes, of: Model) -> Model:
    sha256 = hashlib.sha256(content).hexdigest()
    runs = expand_int4(content, installed_runtime())
    return Model(runs, sha256, replace(of.manifest, sha256=sha256), of.path)


def is_float(content: bytes) -> bool:
    """Return True for a model without quantised weights."""
    graphs = read_modelfile(content).subgraphs
    return all(
        not tensor.size or tensor.quantisation.kind == "none" for graph in graphs for tensor in graph.tensors
    )
