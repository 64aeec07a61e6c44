"""`vedette optimise depth`: progress, the table of exits, and the files that are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.chart import calibration_png
from agent.cli.optimise.progress import show_progress
from agent.cli.optimise.work import check_model_room, check_places, tell_written, work_folder
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.errors import ModelError
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.data import read_examples
from agent.optimise.inputs import FIT_COPIES, examples_path, inputs_of
from agent.optimise.recipe import Recipe, parse_recipe, read_recipe
from agent.optimise.report import OptimiseReport, markdown, short_number
from agent.optimise.source import learned_parts, open_source
from agent.optimise.tune import split
from agent.storage.files import remove
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.depth.file import CascadeFile
    from agent.optimise.depth.training import ExitProgress

_WIDTH = 110
_CHECKPOINTS = ("heads.checkpoint", "joint.checkpoint")
_CHART, _MARKDOWN = ".png", ".report.md"


class DepthOptions(Struct, frozen=True):
    """Options of `vedette optimise depth`.

    Attributes:
        data: path of the examples; None: the recipe names it.
        recipe: path; None: defaults.
        exits: number of exits; None: the recipe's.
        at: names of the tensors behind which the early exits are; empty: the recipe's.
        epochs: of the joint training; None: the recipe's.
        freeze: train the heads alone.
        loss: accuracy that may be lost, percentage points; None: the recipe's.
        limit: number of examples; None: the recipe's.
        work: folder for checkpoints; None: beside the result.
        command: for the report.
        force: replace files.
        as_json: print the report as JSON.
    """

    data: Path | None = None
    recipe: Path | None = None
    exits: int | None = None
    at: tuple[str, ...] = ()
    epochs: float | None = None
    freeze: bool = False
    loss: float | None = None
    limit: int | None = None
    work: Path | None = None
    command: str = ""
    force: bool = False
    as_json: bool = False


def deepen_and_write(name: str, out: Path, options: DepthOptions) -> None:
    """Give a model exits, and write the result with its reports and a chart.

    Raises:
        ModelError: the model or the examples cannot be used, or a file is there already. ConfigError: the recipe
            is wrong. StorageError: a file or a checkpoint cannot be written.
    """
    folder = options.work or out.with_suffix(".work")
    _check(name, out, folder, options)
    recipe = _recipe(options)
    with work_folder(folder, _CHECKPOINTS), prefixed_errors(name):
        if recipe.depth.epochs:
            # And with the heads as soon as they are known.
            check_model_room(folder, name, FIT_COPIES, _CHECKPOINTS)
        found = _deepened(name, recipe, folder, options)
        others = {_CHART: calibration_png(found.calibration), _MARKDOWN: markdown(found.report).encode()}
        report = msgspec.to_builtins(found.report)
        write_version(name, out, found.content, report, force=options.force, others=others, keys=found.keys)
        remove(*(folder / one for one in _CHECKPOINTS))
    print_json(found.report) if options.as_json else _print(found.report)
    tell_written(out, ".report.json", _MARKDOWN, _CHART)


def _check(name: str, out: Path, folder: Path, options: DepthOptions) -> None:
    """Check before the work that files can be written, and that none of them is read."""
    if options.at and options.exits is not None:
        raise click.UsageError("--at names the places of the early exits, and --exits is their number: give one")
    if options.freeze and options.epochs is not None:
        raise click.UsageError("--freeze trains the heads alone, and --epochs is of the joint training: give one")
    inputs = inputs_of(data=options.data, recipe=options.recipe)
    check_version(name, out, force=options.force, inputs=inputs, others=[_CHART, _MARKDOWN])
    check_places(out, folder, _CHECKPOINTS, inputs, name)


def _recipe(options: DepthOptions) -> Recipe:
    recipe = read_recipe(options.recipe).recipe if options.recipe else parse_recipe("", "").recipe
    given = {
        "exits": options.exits,
        "at": options.at or None,
        "epochs": 0.0 if options.freeze else options.epochs,
        "loss": None if options.loss is None else options.loss / 100.0,
    }
    return replace(recipe, depth=replace(recipe.depth, **{k: v for k, v in given.items() if v is not None}))


def _deepened(name: str, recipe: Recipe, folder: Path, options: DepthOptions) -> CascadeFile:
    try:
        from agent.optimise.depth.exits import backbone
        from agent.optimise.depth.file import cascade_parts, make_cascade
    except ImportError as error:
        raise ModelError(f"exits need pip install '.[optimise]' in the clone: {error}") from error
    model = open_source(name, _tell)
    backbone(model.content)  # that it cannot have exits is told before the examples are read
    path = examples_path(options.data, options.recipe, recipe)
    examples = read_examples(path, model, limit=options.limit or recipe.data.limit or None)
    examples.remarks += learned_parts(model, *split(examples, recipe.data.held_out)).doubts
    for line in (examples.description, *examples.remarks):
        _tell(line)
    parts = cascade_parts(examples, recipe)
    try:
        return make_cascade(
            model, parts, recipe, folder=folder, command=options.command, progress=_shown(), tell=_tell
        )
    finally:
        show_progress("")


def _shown() -> Callable[[ExitProgress], None]:
    """Return what shows the progress on a line, and each epoch on a line of its own."""
    last = [""]

    def show(state: ExitProgress) -> None:
        if state.accuracy:
            loss = "" if state.loss is None else f", loss {state.loss:.3f}"
            shares = ", ".join(f"{one:.1%}" for one in state.accuracy)
            _tell(f"{state.what}: accuracy of the exits {shares} of the examples for the thresholds{loss}")
            return
        text = f"{state.what} {int(state.share * 100)} %"
        text += "" if state.loss is None else f", loss {state.loss:.3f}"
        if text != last[0]:
            last[0] = text
            show_progress(text)

    return show


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)


def _print(report: OptimiseReport) -> None:
    figures = ("top-1 %", "ms")
    table = open_table("step", *figures, "notes", right=figures)
    for step in report.steps:
        texts = short_number(step.score, 100.0), short_number(step.latency_ms)
        table.add_row(plain(step.name), *(text or NO_VALUE for text in texts), plain("; ".join(step.notes)))
    console(_WIDTH, markup=False).print(table)
    for remark in report.remarks:
        click.echo(plain(remark))
