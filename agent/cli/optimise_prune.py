"""`vedette optimise prune`: progress, what was done, and the files that are written."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct

from agent.cli.optimise import show_progress
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.compute.manifest import Model
from agent.errors import ConfigError, ModelError
from agent.models.files import load_file
from agent.models.library import open_manifest
from agent.models.manifest_writer import check_version, write_version
from agent.optimise.data import Examples, read_examples
from agent.optimise.recipe import Recipe, parse_recipe, read_recipe
from agent.optimise.report import OptimiseReport, short_number
from agent.storage.files import storage_errors, write_atomic
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.pruning.file import PrunedModel, PruningState

_WIDTH, _BAR = 110, 30
_CHECKPOINTS = ("rounds.checkpoint", "anneal.checkpoint")


class PruneOptions(Struct, frozen=True):
    """What `vedette optimise prune` is asked to do.

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
    check_version(name, out, force=options.force)
    chart = out.with_suffix(".png")
    if chart.exists() and not options.force:
        raise ModelError(f"{chart}: exists; --force replaces it")
    recipe = read_recipe(options.recipe).recipe if options.recipe else parse_recipe("", "").recipe
    content, manifest = load_file(name)[0], open_manifest(name)
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, name)
    examples = _examples(model, recipe, options)
    folder = options.work or out.with_suffix(".work")
    with storage_errors(f"{folder}: cannot be made"):
        folder.mkdir(exist_ok=True)
    found = _pruned(model, examples, recipe, folder, options)
    write_version(name, out, found.content, msgspec.to_builtins(found.report))
    write_atomic(chart, found.chart)
    _remove_checkpoints(folder)
    print_json(found.report) if options.as_json else _print(found.report)
    _tell(f"{out}: written, with .report.json and .png beside it")


def _examples(model: Model, recipe: Recipe, options: PruneOptions) -> Examples:
    if options.data is not None:
        path = options.data
    elif recipe.data.path and options.recipe is not None:
        path = options.recipe.parent / recipe.data.path
    else:
        raise ConfigError("there are no examples: give --data, or `path` in [data] of the recipe")
    examples = read_examples(path, model, limit=options.limit or recipe.data.limit or None)
    for line in (examples.description, *examples.remarks):
        _tell(line)
    return examples


def _pruned(model: Model, examples: Examples, recipe: Recipe, folder: Path, options: PruneOptions) -> PrunedModel:
    try:
        from agent.optimise.factory import load_factory
        from agent.optimise.pruning.file import prune_model
    except ImportError as error:
        raise ModelError(f"pruning needs pip install '.[optimise]' in the clone: {error}") from error
    module = load_factory(options.module, options.weights) if options.module else None
    try:
        return prune_model(
            model, module, examples, recipe, folder=folder, command=options.command, progress=_bar()
        )
    finally:
        show_progress("")


def _bar() -> Callable[[PruningState], None]:
    shown = [-1]

    def show(state: PruningState) -> None:
        percent = int(state.share * 100)
        if percent != shown[0] and sys.stderr.isatty():
            shown[0] = percent
            done = round(_BAR * state.share)
            show_progress(f"pruning [{'#' * done}{'.' * (_BAR - done)}] {percent} %, loss {state.loss:.3f}")

    return show


def _remove_checkpoints(folder: Path) -> None:
    """Remove what is no longer needed; a folder in which something else lies stays."""
    for name in _CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)


def _print(report: OptimiseReport) -> None:
    figures = ("top-1 %", "kB", "ms")
    table = open_table("step", *figures, "notes", right=figures)
    for step in report.steps:
        values = (short_number(step.score, 100.0), short_number(step.size, 1e-3), short_number(step.latency_ms))
        table.add_row(step.name, *(text or NO_VALUE for text in values), plain("; ".join(step.notes[:1])))
    console(_WIDTH, markup=False).print(table)
