"""`vedette optimise prune`: progress, what was done, and the files that are written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct

from agent.cli.optimise.progress import show_progress
from agent.cli.optimise.work import check_model_room, check_places, print_steps, tell_written, work_folder
from agent.cli.output import print_json
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.data import Examples, read_examples
from agent.optimise.inputs import examples_path, inputs_of, prune_copies
from agent.optimise.recipe import Recipe, RecipeFile, parse_recipe, read_recipe
from agent.optimise.source import learned_parts, open_source
from agent.optimise.tune import split
from agent.storage.files import remove
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.pruning.file import PrunedModel, PruningState

_BAR = 30
_CHECKPOINTS = ("rounds.checkpoint", "anneal.checkpoint")
_CHART = ".png"


class PruneOptions(Struct, frozen=True):
    """Options of `vedette optimise prune`.

    Attributes:
        module: `path.py:factory`; empty: the graph of the model is pruned.
        weights: state dict of the module; None: the factory loads it.
        data: path of the examples; None: the recipe names it.
        recipe: path; None: defaults.
        limit: number of examples; None: the recipe's.
        work: folder for checkpoints; None: beside the result.
        command: for the report.
        force: replace files.
        as_json: print the report as JSON.
    """

    module: str = ""
    weights: Path | None = None
    data: Path | None = None
    recipe: Path | None = None
    limit: int | None = None
    work: Path | None = None
    command: str = ""
    force: bool = False
    as_json: bool = False


def prune_and_write(name: str, out: Path, options: PruneOptions) -> None:
    """Prune a model, and write the result with its report and a chart.

    Raises:
        ModelError: the model cannot be pruned, or a file is there already. ConfigError: the recipe is wrong.
        StorageError: a file or a checkpoint cannot be written.
    """
    folder = options.work or out.with_suffix(".work")
    _check(name, out, folder, options)
    recipe = read_recipe(options.recipe) if options.recipe else parse_recipe("", "")
    recipe.check_prune()
    model = open_source(name, _tell)
    examples = _examples(model, recipe.recipe, options)
    with work_folder(folder, _CHECKPOINTS), prefixed_errors(name):
        check_model_room(folder, name, prune_copies(recipe.recipe.prune), _CHECKPOINTS)
        with redirect_stdout(sys.stderr):  # the module's own code may print
            found = _pruned(model, examples, recipe, folder, options)
        report, others = msgspec.to_builtins(found.report), {_CHART: found.chart}
        write_version(name, out, found.content, report, force=options.force, others=others, keys=found.keys)
        remove(*(folder / one for one in _CHECKPOINTS))
    print_json(found.report) if options.as_json else print_steps(found.report, 1)
    tell_written(out, ".report.json", _CHART)


def _check(name: str, out: Path, folder: Path, options: PruneOptions) -> None:
    """Check before the work that files can be written, and that none of them is read."""
    inputs = inputs_of(data=options.data, recipe=options.recipe, module=options.module, weights=options.weights)
    check_version(name, out, force=options.force, inputs=inputs, others=[_CHART])
    check_places(out, folder, _CHECKPOINTS, inputs, name)


def _examples(model: Model, recipe: Recipe, options: PruneOptions) -> Examples:
    path = examples_path(options.data, options.recipe, recipe)
    examples = read_examples(path, model, limit=options.limit or recipe.data.limit or None)
    examples.remarks += learned_parts(model, *split(examples, recipe.data.held_out)).doubts
    for line in (examples.description, *examples.remarks):
        _tell(line)
    return examples


def _pruned(
    model: Model, examples: Examples, recipe: RecipeFile, folder: Path, options: PruneOptions
) -> PrunedModel:
    try:
        from agent.optimise.factory import load_factory
        from agent.optimise.preflight import check_pruning
        from agent.optimise.pruning.file import prune_model
    except ImportError as error:
        raise ModelError(f"pruning needs pip install '.[optimise]' in the clone: {error}") from error
    module = load_factory(options.module, options.weights) if options.module else None
    check_pruning(model, module, examples, recipe)
    try:
        return prune_model(
            model, module, examples, recipe.recipe, folder=folder, command=options.command, progress=_bar()
        )
    finally:
        show_progress("")


def _bar() -> Callable[[PruningState], None]:
    shown = [-1]

    def show(state: PruningState) -> None:
        percent = int(state.share * 100)
        if percent != shown[0]:
            shown[0] = percent
            done = round(_BAR * state.share)
            show_progress(f"pruning [{'#' * done}{'.' * (_BAR - done)}] {percent} %, loss {state.loss:.3f}")

    return show


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)
