"""`vedette optimise train`: progress, the right answers of each class, and the files that are written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.optimise.progress import show_progress
from agent.cli.optimise.work import check_places, print_steps, work_folder
from agent.cli.output import print_json
from agent.errors import ModelError
from agent.models.writer import check_first, write_first
from agent.optimise.inputs import examples_path, inputs_of
from agent.optimise.recipe import DETECTOR, Recipe, parse_recipe, read_recipe
from agent.storage.files import remove
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.classifier.file import TrainedNetwork
    from agent.optimise.train import TrainingStep

_BAR = 30
_CHECKPOINTS = ("train.checkpoint",)
_CHART, _WEIGHTS = ".png", ".pt"
_SIDES = (16, 1024)
_SIZE = re.compile(r"([1-9]\d{1,3})(?:x([1-9]\d{1,3}))?")


class TrainOptions(Struct, frozen=True):
    """Options of `vedette optimise train`.

    Attributes:
        data: path of the examples; None: the recipe names it.
        size: side of the pictures, or `HEIGHTxWIDTH`; None: 128, of a detector 320, or that of the pictures in
            an array.
        weights: to begin with; None: random ones, or the function loads some.
        recipe: path; None: defaults.
        epochs: passes over the examples; None: the recipe's, which may be by the number of examples.
        limit: number of examples; None: the recipe's.
        work: folder for the checkpoint; None: beside the result.
        command: for the report.
        force: replace files.
        as_json: print the report as JSON.
    """

    data: Path | None = None
    size: str | None = None
    weights: Path | None = None
    recipe: Path | None = None
    epochs: float | None = None
    limit: int | None = None
    work: Path | None = None
    command: str = ""
    force: bool = False
    as_json: bool = False


def train_and_write(network: str, out: Path, options: TrainOptions) -> None:
    """Train a classifier or a detector, and write it with its manifest, weights, report and chart.

    Raises:
        ModelError: the network or the examples cannot be used, or a file is there already. ConfigError: the
            recipe is wrong. StorageError: a file or the checkpoint cannot be written.
    """
    folder, shape = options.work or out.with_suffix(".work"), _shape(options.size)
    inputs = inputs_of(data=options.data, recipe=options.recipe, module=network, weights=options.weights)
    check_first(out, force=options.force, inputs=inputs, others=[_CHART, _WEIGHTS])
    check_places(out, folder, _CHECKPOINTS, inputs)
    recipe, epochs = _recipe(options)
    with work_folder(folder, _CHECKPOINTS):
        with redirect_stdout(sys.stderr):  # the network's own code may print
            found = _trained(network, recipe, folder, shape, epochs, options)
        report, others = msgspec.to_builtins(found.report), {_CHART: found.chart, _WEIGHTS: found.weights}
        write_first(out, found.content, found.keys, report, force=options.force, others=others)
        remove(*(folder / one for one in _CHECKPOINTS))
    print_json(found.report) if options.as_json else print_steps(found.report)
    _tell(f"{out}: written, with .toml, .report.json, {_WEIGHTS} and {_CHART} beside it")


def _shape(size: str | None) -> tuple[int, int, int] | None:
    if size is None:
        return None
    found = _SIZE.fullmatch(size)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (_SIDES[0] <= height <= _SIDES[1] and _SIDES[0] <= width <= _SIDES[1]):
        told = f"{size!r}: expected a side of {_SIDES[0]} to {_SIDES[1]} pixels, such as 128, or HEIGHTxWIDTH"
        raise click.BadParameter(told, param_hint="--size")
    return height, width, 3


def _recipe(options: TrainOptions) -> tuple[Recipe, float | None]:
    """Return the recipe, and the epochs that it or an option states."""
    recipe = (read_recipe(options.recipe) if options.recipe else parse_recipe("", "")).recipe
    if options.limit:
        recipe = replace(recipe, data=replace(recipe.data, limit=options.limit))
    return recipe, options.epochs or recipe.train.epochs or None


def _trained(
    network: str,
    recipe: Recipe,
    folder: Path,
    shape: tuple[int, int, int] | None,
    epochs: float | None,
    options: TrainOptions,
) -> TrainedNetwork:
    try:
        from agent.optimise.classifier.file import TrainRequest, read_pictures, train_classifier
        from agent.optimise.detector.file import read_boxes, train_detector
        from agent.optimise.factory import find_factory
    except ImportError as error:
        raise ModelError(f"training needs pip install '.[optimise]' in the clone: {error}") from error
    find_factory(network)  # a wrong name is told before the examples are read
    request = TrainRequest(network, options.weights, shape, epochs, folder, options.command)
    read, train = (read_boxes, train_detector) if network == DETECTOR else (read_pictures, train_classifier)
    examples, names = read(examples_path(options.data, options.recipe, recipe), request, recipe)
    for line in (examples.description, *examples.remarks):
        _tell(line)
    try:
        return train(examples, names, request, recipe, progress=_bar(), tell=_tell)
    finally:
        show_progress("")


def _bar() -> Callable[[TrainingStep], None]:
    shown, accuracy = [""], [""]

    def show(step: TrainingStep) -> None:
        if step.epoch is not None and step.epoch.accuracy is not None:
            accuracy[0] = f", accuracy {step.epoch.accuracy:.1%}"
        percent, done = step.done * 100 // step.total, _BAR * step.done // step.total
        told = f"training [{'#' * done}{'.' * (_BAR - done)}] {percent} %{accuracy[0]}"
        if told != shown[0]:
            shown[0] = told
            show_progress(f"{told}, loss {step.loss:.3f}")

    return show


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)
