"""Results of a study: its trials and the Pareto front."""

from __future__ import annotations

import math
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace
from optuna.trial import TrialState

from agent.optimise.search.candidate import Figures, pareto_front
from agent.optimise.search.study import counts, open_study, study_errors
from agent.text import plural

State = Literal["complete", "stopped", "failed", "running", "waiting"]
_STATES: dict[Any, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class TrialResult(Struct, frozen=True):
    """A trial of a study.

    Attributes:
        number: of the trial.
        state: `stopped`: not trained to the end, since others are better or it is over the budget.
        parameters: of the candidate.
        accuracy: of the INT8 file on the examples of the comparison, 0..1; None: not trained to the end.
        latency_ms: of an inference of the INT8 file, ms.
        size: of the INT8 file, bytes.
        rungs: accuracy after each rung, by its epochs.
        reason: why it was stopped or has failed.
        worker: host and process.
        front: True: no other trial beats it.
    """

    number: int
    state: State
    parameters: dict[str, Any]
    accuracy: float | None = None
    latency_ms: float | None = None
    size: int | None = None
    rungs: dict[str, float] = {}
    reason: str = ""
    worker: str = ""
    front: bool = False


class SearchResult(Struct, frozen=True):
    """A study.

    Attributes:
        study: where it is.
        measured_on: where the latency is from.
        examples: where they are from.
        trials: all, in order.
        budget: limits that were checked before a network was trained; empty: none.
    """

    study: str
    measured_on: str
    examples: str
    trials: tuple[TrialResult, ...]
    budget: str = ""

    @property
    def reason_of_none(self) -> str:
        """Why all trials have ended, and none was trained to the end; empty: that is not so."""
        if not self.trials or any(one.state in ("complete", "running", "waiting") for one in self.trials):
            return ""
        stopped = [one for one in self.trials if one.state == "stopped"]
        if not stopped:
            return f"all {plural(len(self.trials), 'trial')} failed: {self.trials[-1].reason}"
        return f"no trial meets the budget {self.budget}; the last one is {stopped[-1].reason}"

    @property
    def front(self) -> tuple[TrialResult, ...]:
        """Trials that no other beats, fastest first."""
        return tuple(sorted((one for one in self.trials if one.front), key=lambda one: one.latency_ms or 0.0))


def read_result(location: str) -> SearchResult:
    """Read a study. Raises as `open_study`."""
    study = open_study(location)
    with study_errors(location):
        return result_of(location, study)


def result_of(location: str, study: Any) -> SearchResult:
    """Return the result of one of Optuna's studies."""
    facts = study.user_attrs
    trials = [_trial(one) for one in study.get_trials(deepcopy=False) if counts(one)]
    done = [one for one in trials if one.state == "complete"]
    chosen = pareto_front([figures_of(one).values for one in done])
    front = {done[at].number for at in chosen}
    return SearchResult(
        location,
        facts.get("measured_on", ""),
        facts.get("examples", ""),
        tuple(replace(one, front=one.number in front) for one in trials),
        facts.get("budget", ""),
    )


def figures_of(trial: TrialResult) -> Figures:
    """Return what a trial that is complete is compared by."""
    return Figures(trial.accuracy or 0.0, trial.latency_ms or math.inf, trial.size or 0)


def _trial(one: Any) -> TrialResult:
    facts = one.user_attrs
    return TrialResult(
        number=one.number,
        state=_STATES[one.state],
        parameters=dict(one.params),
        accuracy=facts.get("accuracy") if one.state == TrialState.COMPLETE else None,
        latency_ms=facts.get("latency_ms"),
        size=facts.get("size"),
        rungs=facts.get("rungs", {}),
        reason=facts.get("reason", ""),
        worker=facts.get("worker", ""),
    )
