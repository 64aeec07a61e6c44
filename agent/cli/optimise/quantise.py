"""`vedette optimise quantise`: give a float model weights, or all, in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from agent.cli.optimise.options import BUDGET, DATA, FORCE, JSON, LIMIT, MODEL, OUT, RECIPE, command_line
from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.output import show_progress, tell
from agent.errors import ModelError
from agent.optimise.inputs import inputs_of


@click.command()
@MODEL
@OUT
@DATA
@RECIPE
@click.option(
    "--method", type=click.Choice(["int8", "dynamic", "int4", "mixed"]), help="Instead of the recipe's."
)
@BUDGET
@click.option("--qat/--no-qat", default=None, help="Train afterwards; by default if the loss misses the budget.")
@LIMIT
@FORCE
@JSON
def quantise(model: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Quantise the float MODEL, and write OUT with its manifest and a report.

    \b
    int8     weights and activations in 8 bits
    dynamic  weights in 8 bits, activations stay float
    int4     weights in 4 bits, but for the first and last layer and depthwise ones
    mixed    4 bits where the examples show that they do least harm

    One part of the examples is for ranges, rounding and training. The others decide on bits and training, and the
    figures are of them; where there are 800 or more, a quarter of them decides, and the figures are of the rest.
    Without a budget, mixed takes 4 bits where they lose less than half a percentage point. A latency, on one
    thread of this machine, is checked: pruning channels does more for it than 4 bits.

    If the budget cannot be met, nothing is written, and the exit code is 1. An interrupted training goes on from
    its checkpoint, in the folder OUT.work, and ends with the same bytes.
    """  # noqa: D301
    try:
        from agent.optimise.quantisation.request import QuantiseRequest, quantise_file
    except ImportError as error:
        raise ModelError(f"quantising needs pip install '.[optimise]' in the clone: {error}") from error
    request, checkpoint = QuantiseRequest(model, command=command_line(), **options), "qat.checkpoint"

    def make(folder: Path) -> MadeModel:
        found = quantise_file(replace(request, checkpoint=folder / checkpoint), show_progress, tell)
        return MadeModel(found.content, found.report)

    inputs = inputs_of(data=request.data, recipe=request.recipe)
    run_step(StepJob(out, request.model, inputs, (), (checkpoint,), force, as_json), make, layers=True)
