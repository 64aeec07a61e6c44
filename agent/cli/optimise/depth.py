"""`vedette optimise depth`: give a classifier early exits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from agent.cli.optimise.options import DATA, FORCE, JSON, LIMIT, MODEL, OUT, RECIPE, command_line
from agent.cli.optimise.work import MadeModel, StepJob, read_for_training, recipe_of, run_step
from agent.cli.options import NumberRange
from agent.cli.output import show_progress, tell
from agent.optimise.inputs import inputs_of
from agent.optimise.report import as_png, markdown, new_figure
from agent.optimise.source import open_source

if TYPE_CHECKING:
    from agent.optimise.calibrate import CalibrationResult


def _tensor_names(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",")) if text is not None else ()
    if text is not None and not all(names):
        raise click.BadParameter(f"{text!r}: expected names of tensors, separated by commas", param=option)
    return names


@click.command()
@MODEL
@OUT
@DATA
@RECIPE
@click.option("--exits", type=click.IntRange(2, 16), help="Number of exits, with the last one.")
@click.option(
    "--at", callback=_tensor_names, metavar="TENSOR,…", help="Tensors behind which the early exits are."
)
@click.option("--epochs", type=NumberRange(0.0, 1e6, min_open=True), help="Passes of the joint training.")
@click.option("--freeze", is_flag=True, help="Train the heads alone: MODEL's own answers stay as they are.")
@click.option(
    "--loss",
    type=NumberRange(0.0, 100.0, max_open=True),
    help="Accuracy that may be lost, percentage points.",
)
@LIMIT
@FORCE
@JSON
def depth(
    model: str,
    out: Path,
    data: Path | None,
    recipe: Path | None,
    exits: int | None,
    at: tuple[str, ...],
    epochs: float | None,
    freeze: bool,
    loss: float | None,
    limit: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Give the classifier MODEL early exits, train and calibrate them, and write OUT with reports.

    Easy inputs are then answered by an early exit, and hard ones go on to a deeper one, which repeats nothing.
    OUT is float, as MODEL has to be; `vedette optimise quantise` takes it, and `optimise calibrate` learns its
    thresholds again.

    One part of the examples is for training. Of the rest, one half is for the thresholds, on the other the result
    is measured. An interrupted run goes on from its checkpoints, in the folder OUT.work.
    """
    if at and exits is not None:
        raise click.UsageError("--at names the places of the early exits, and --exits is their number: give one")
    if freeze and epochs is not None:
        raise click.UsageError("--freeze trains the heads alone, and --epochs is of the joint training: give one")
    given = {
        "exits": exits,
        "at": at or None,
        "epochs": 0.0 if freeze else epochs,
        "loss": None if loss is None else loss / 100.0,
    }

    def make(folder: Path) -> MadeModel:
        from agent.optimise.depth.file import cascade_parts, make_cascade
        from agent.optimise.depth.stages import backbone

        source = open_source(model, tell)
        backbone(source.content)  # that it cannot have exits is told before the examples are read
        parts = cascade_parts(read_for_training(source, data, recipe, stated, limit), stated)
        found = make_cascade(
            source, parts, stated, folder=folder, command=command_line(), progress=show_progress, tell=tell
        )
        others = {".png": _calibration_png(found.calibration), ".report.md": markdown(found.report).encode()}
        return MadeModel(found.content, found.report, others, found.keys)

    inputs = inputs_of(data=data, recipe=recipe)
    stated = recipe_of(recipe).recipe
    stated = replace(stated, depth=replace(stated.depth, **{k: v for k, v in given.items() if v is not None}))
    checkpoints = ("heads.checkpoint", "joint.checkpoint")
    run_step(StepJob(out, model, inputs, (".report.md", ".png"), checkpoints, force, as_json), make)


def _calibration_png(result: CalibrationResult) -> bytes:
    """Draw accuracy against cost, with the chosen point."""
    figure, learned = new_figure(7.0, 4.5), result.learned
    axes, chosen = figure.add_subplot(), learned.chosen
    curve = [(point.cost * 100, point.accuracy * 100) for point in learned.curve]
    axes.plot(*zip(*curve, strict=True), ".-", label="cascade")
    spent = [sum(result.costs[: n + 1]) / sum(result.costs) * 100 for n in range(len(result.costs))]
    axes.plot(spent, [share * 100 for share in learned.alone], "s", label="one depth for all")
    for name, x, y in zip(result.variants, spent, learned.alone, strict=True):
        axes.annotate(name, (x, y * 100), textcoords="offset points", xytext=(4, -12))
    axes.plot(chosen.cost * 100, chosen.accuracy * 100, "o", markersize=10, fillstyle="none", label="chosen")
    axes.set(xlabel="multiply-adds, % of the whole depth", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
