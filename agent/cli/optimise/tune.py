"""`vedette optimise tune`: measure a model, try what makes it smaller and faster, keep what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from agent.cli.optimise.options import (
    BUDGET,
    DATA,
    FORCE,
    JSON,
    LIMIT,
    MODEL,
    MODULE,
    OUT,
    RECIPE,
    WEIGHTS,
    command_line,
)
from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.output import show_progress, tell
from agent.errors import ReportedError
from agent.optimise.inputs import inputs_of
from agent.optimise.report import markdown


@click.command()
@MODEL
@OUT
@DATA
@RECIPE
@BUDGET
@MODULE
@WEIGHTS
@click.option("--qat/--no-qat", default=True, help="Train a quantised model that loses too much; by default.")
@LIMIT
@FORCE
@JSON
def tune(model: str, out: Path, limit: int | None, force: bool, as_json: bool, **options: Any) -> None:
    """Measure MODEL, try what makes it smaller and faster, keep what helps, and write OUT with reports.

    One part of the examples is for the steps, on the other everything is measured. The time is that of one thread
    of this machine; so is a limit for it in the budget. The reports lie beside OUT: .report.json and .report.md.

    If the budget cannot be met, nothing is written, and the exit code is 1. In an interrupted run, given again,
    trainings go on from their checkpoints, in the folder OUT.work; what was measured is measured anew.
    """
    from agent.optimise.tune_steps import CHECKPOINTS, TuneRequest, tune_file

    request, failures = TuneRequest(model, limit=limit or 0, command=command_line(), **options), list[str]()
    changed = [False]

    def make(folder: Path) -> MadeModel:
        found = tune_file(replace(request, folder=folder), show_progress, tell)
        failures.extend(found.failures)
        changed[0] = found.report.sha256_before != found.report.sha256_after
        return MadeModel(found.content, found.report, {".report.md": markdown(found.report).encode()}, found.keys)

    inputs = inputs_of(data=request.data, recipe=request.recipe, module=request.module, weights=request.weights)
    run_step(StepJob(out, request.model, inputs, (".report.md",), CHECKPOINTS, force, as_json), make)
    if failures and not changed[0]:
        raise ReportedError(f"{request.model}: nothing is written, since steps failed: {'; '.join(failures)}")
    if not changed[0]:
        tell(f"{request.model}: no step helps, and nothing is written")
