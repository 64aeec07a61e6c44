"""Results of a study: its trials and the Pareto front."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace
from optuna.trial import TrialState

from agent.errors import ModelError
from agent.models.files import read
from agent.optimise.recipe import Objective
from agent.optimise.report import OptimiseReport, StepResult
from agent.optimise.search.candidate import INT8, Figures, pareto_front, trial_folder
from agent.optimise.search.study import counts, open_study, study_errors
from agent.structs import convert
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
        origin: number of the trial that it continues; its own if it continues none.
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
    origin: int = -1


class SearchResult(Struct, frozen=True):
    """A study.

    Attributes:
        study: where it is.
        objectives: what is compared.
        measured_on: where the latency is from.
        examples: where they are from.
        trials: all, in order.
        budget: limits that were checked before a network was trained; empty: none.
    """

    study: str
    objectives: tuple[Objective, ...]
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
    objectives = tuple(facts.get("objectives", ("accuracy",)))
    done = [one for one in trials if one.state == "complete"]
    chosen = pareto_front([figures_of(one).values(objectives) for one in done])
    front = {done[at].number for at in chosen}
    return SearchResult(
        location,
        objectives,
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
        origin=facts.get("origin", one.number),
    )


class ChosenCandidate(Struct, frozen=True):
    """A candidate to be written as a model.

    Attributes:
        content: of the INT8 file.
        keys: of the manifest.
        report: with the score on examples that have decided nothing.
    """

    content: bytes
    keys: dict[str, Any]
    report: OptimiseReport


def read_candidate(location: str, files: Path, number: int, command: str = "") -> ChosenCandidate:
    """Read the INT8 file of a trial.

    Args:
        location: of the study.
        files: folder of its networks.
        number: of the trial.
        command: for the report.

    Raises:
        ModelError: there is no such trial, it was not trained to the end, or its file is not here.
    """
    study = open_study(location)
    with study_errors(location):
        found = result_of(location, study)
        facts = dict(study.user_attrs)
        own = {one.number: one.user_attrs for one in study.get_trials(deepcopy=False)}.get(number, {})
    trial = _complete(found, number)
    file = trial_folder(files, trial.origin) / INT8
    if not file.is_file():
        raise ModelError(f"{file}: is not here: the trial was trained by {trial.worker}, which keeps its files")
    content = read(file)
    if hashlib.sha256(content).hexdigest() != own["sha256"]:
        raise ModelError(f"{file}: is not the file that was scored")
    return ChosenCandidate(content, facts["manifest"], _report(trial, own, facts, command))


def _complete(found: SearchResult, number: int) -> TrialResult:
    """Return a trial that was trained to the end."""
    trial = next((one for one in found.trials if one.number == number), None)
    if trial is not None and trial.state == "complete":
        return trial
    known = ", ".join(str(one.number) for one in found.front) or "none yet"
    again = next((f"was begun again as trial {one.number}" for one in found.trials if one.origin == number), "")
    told = f"is {trial.state}{f': {trial.reason}' if trial.reason else ''}" if trial else again or "is not there"
    raise ModelError(f"{found.study}: trial {number} {told}; those on the front are: {known}")


def _report(trial: TrialResult, own: Mapping[str, Any], facts: Mapping[str, Any], command: str) -> OptimiseReport:
    unseen = own["unseen"]
    step = StepResult(
        "search",
        metric="top-1",
        score=unseen["value"],
        interval=convert(unseen["interval"], tuple[float, float] | None),
        size=trial.size or 0,
        latency_ms=trial.latency_ms,
        notes=tuple(f"{name} = {value}" for name, value in trial.parameters.items()),
    )
    compared = f"the candidates were compared on others, where this one has {trial.accuracy or 0.0:.2%}"
    return OptimiseReport(
        step="search",
        model=f"{facts['space']}, trial {trial.number}",
        sha256_after=own["sha256"],
        machine=facts["measured_on"],
        command=command,
        examples=f"{facts['examples']}; {unseen['count']} of them for this score",
        budget=facts["budget"],
        steps=(step,),
        remarks=(compared,),
        learned=tuple(facts.get("learned", ())),
    )
