"""`vedette optimise prune`: prune a classifier in rounds, with training between and after."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.optimise.options import (
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
from agent.cli.optimise.work import MadeModel, StepJob, read_for_training, recipe_of, run_step
from agent.cli.output import show_progress, tell
from agent.optimise.inputs import inputs_of
from agent.optimise.source import open_source


@click.command()
@MODEL
@OUT
@MODULE
@WEIGHTS
@DATA
@RECIPE
@LIMIT
@FORCE
@JSON
def prune(
    model: str,
    out: Path,
    module: str,
    weights: Path | None,
    data: Path | None,
    recipe: Path | None,
    limit: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Prune the classifier MODEL in rounds, with training between and after, and write OUT with reports.

    Connections become zero, which speeds up float 1x1 convolutions on ARM only; with `structured = true` in the
    recipe, whole channels go, and the model becomes smaller and faster everywhere.

    --module names the network that MODEL was imported from, or trained as.

    One part of the examples is for training, on the other the result is measured. An interrupted run goes on from
    its checkpoints, in the folder OUT.work, and ends with the same bytes.
    """
    if not module:
        raise click.UsageError("pruning trains: give --module PATH.py:FACTORY, which MODEL was imported from")

    def make(folder: Path) -> MadeModel:
        from agent.optimise.factory import load_factory
        from agent.optimise.pruning.file import prune_model

        source = open_source(model, tell)
        examples = read_for_training(source, data, recipe, stated, limit)
        net = load_factory(module, weights)
        found = prune_model(
            source, net, examples, stated, folder=folder, command=command_line(), progress=show_progress
        )
        return MadeModel(found.content, found.report, keys=found.keys)

    inputs = inputs_of(data=data, recipe=recipe, module=module, weights=weights)
    stated = recipe_of(recipe).recipe
    checkpoints = ("rounds.checkpoint", "anneal.checkpoint")
    run_step(StepJob(out, model, inputs, (), checkpoints, force, as_json), make)
