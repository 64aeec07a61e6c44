"""The steps of `vedette optimise` that work on examples: what each reads, and what it makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.output import show_progress, tell
from agent.compute.manifest import Model
from agent.errors import ModelError, ReportedError
from agent.optimise.data import Examples, read_examples
from agent.optimise.inputs import examples_path, inputs_of
from agent.optimise.recipe import DETECTOR, Recipe, RecipeFile, parse_recipe, read_recipe
from agent.optimise.report import as_png, markdown, new_figure
from agent.optimise.source import learned_parts, open_source
from agent.optimise.tune import split

if TYPE_CHECKING:
    from agent.optimise.calibrate import CalibrationResult
    from agent.optimise.train import TrainingStep

_CHART, _MARKDOWN, _WEIGHTS = ".png", ".report.md", ".pt"
_SIDES = (16, 1024)
_SIZE = re.compile(r"([1-9]\d{1,3})(?:x([1-9]\d{1,3}))?")


def _recipe_of(path: Path | None) -> RecipeFile:
    return read_recipe(path) if path else parse_recipe("", "")


def _read(
    model: Model, data: Path | None, recipe_file: Path | None, recipe: Recipe, limit: int | None
) -> Examples:
    """Read the examples of a step that trains, and tell what is doubtful about them."""
    path = examples_path(data, recipe_file, recipe)
    examples = read_examples(path, model, limit=limit or recipe.data.limit or None)
    examples.remarks += learned_parts(model, *split(examples, recipe.data.held_out)).doubts
    _tell_examples(examples)
    return examples


def _tell_examples(examples: Examples) -> None:
    for line in (examples.description, *examples.remarks):
        tell(line)


def quantise_and_write(out: Path, *, force: bool, as_json: bool, **options: Any) -> None:
    """Quantise a model; `options`: see `agent.optimise.quantisation.request.QuantiseRequest`.

    Raises:
        ModelError: the model cannot be quantised, or see `run_step`.
    """
    try:
        from agent.optimise.quantisation.request import QuantiseRequest, quantise_file
    except ImportError as error:
        raise ModelError(f"quantising needs pip install '.[optimise]' in the clone: {error}") from error
    request, checkpoint = QuantiseRequest(**options), "qat.checkpoint"

    def make(folder: Path) -> MadeModel:
        found = quantise_file(replace(request, checkpoint=folder / checkpoint), show_progress, tell)
        return MadeModel(found.content, found.report)

    inputs = inputs_of(data=request.data, recipe=request.recipe)
    run_step(StepJob(out, request.model, inputs, (), (checkpoint,), force, as_json), make, layers=True)


def tune_and_write(out: Path, *, force: bool, as_json: bool, **options: Any) -> None:
    """Tune a model; `options`: see `agent.optimise.tune_steps.TuneRequest`.

    Raises:
        ReportedError: the budget is not met, or no step helps and one has failed.
        ModelError: the model cannot be tuned, or see `run_step`.
    """
    from agent.optimise.tune_steps import CHECKPOINTS, TuneRequest, tune_file

    request, failures = TuneRequest(**options), list[str]()
    changed = [False]

    def make(folder: Path) -> MadeModel:
        found = tune_file(replace(request, folder=folder), show_progress, tell)
        failures.extend(found.failures)
        changed[0] = found.report.sha256_before != found.report.sha256_after
        return MadeModel(found.content, found.report, {_MARKDOWN: markdown(found.report).encode()}, found.keys)

    inputs = inputs_of(data=request.data, recipe=request.recipe, module=request.module, weights=request.weights)
    run_step(StepJob(out, request.model, inputs, (_MARKDOWN,), CHECKPOINTS, force, as_json), make)
    if failures and not changed[0]:
        raise ReportedError(f"{request.model}: nothing is written, since steps failed: {'; '.join(failures)}")
    if not changed[0]:
        tell(f"{request.model}: no step helps, and nothing is written")


def prune_and_write(
    name: str,
    out: Path,
    *,
    module: str,
    weights: Path | None,
    data: Path | None,
    recipe: Path | None,
    limit: int | None,
    command: str,
    force: bool,
    as_json: bool,
) -> None:
    """Prune a classifier. Raises as `run_step`, and ConfigError if the recipe is wrong."""
    if not module:
        raise click.UsageError("pruning trains: give --module PATH.py:FACTORY, which MODEL was imported from")

    def make(folder: Path) -> MadeModel:
        from agent.optimise.factory import load_factory
        from agent.optimise.pruning.file import prune_model

        model = open_source(name, tell)
        examples = _read(model, data, recipe, stated, limit)
        net = load_factory(module, weights)
        options: dict[str, Any] = {"folder": folder, "command": command, "progress": show_progress}
        found = prune_model(model, net, examples, stated, **options)
        return MadeModel(found.content, found.report, keys=found.keys)

    inputs = inputs_of(data=data, recipe=recipe, module=module, weights=weights)
    stated = _recipe_of(recipe).recipe
    checkpoints = ("rounds.checkpoint", "anneal.checkpoint")
    run_step(StepJob(out, name, inputs, (), checkpoints, force, as_json), make)


def deepen_and_write(
    name: str,
    out: Path,
    *,
    data: Path | None,
    recipe: Path | None,
    exits: int | None,
    at: tuple[str, ...],
    epochs: float | None,
    freeze: bool,
    loss: float | None,
    limit: int | None,
    command: str,
    force: bool,
    as_json: bool,
) -> None:
    """Give a classifier exits; the numbers replace those of the recipe, `loss` in percentage points.

    Raises as `run_step`, and ConfigError if the recipe is wrong.
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

        model = open_source(name, tell)
        backbone(model.content)  # that it cannot have exits is told before the examples are read
        parts = cascade_parts(_read(model, data, recipe, stated, limit), stated)
        options: dict[str, Any] = {"command": command, "progress": show_progress, "tell": tell}
        found = make_cascade(model, parts, stated, folder=folder, **options)
        others = {_CHART: _calibration_png(found.calibration), _MARKDOWN: markdown(found.report).encode()}
        return MadeModel(found.content, found.report, others, found.keys)

    inputs = inputs_of(data=data, recipe=recipe)
    stated = _recipe_of(recipe).recipe
    stated = replace(stated, depth=replace(stated.depth, **{k: v for k, v in given.items() if v is not None}))
    checkpoints = ("heads.checkpoint", "joint.checkpoint")
    run_step(StepJob(out, name, inputs, (_MARKDOWN, _CHART), checkpoints, force, as_json), make)


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


def train_and_write(
    network: str,
    out: Path,
    *,
    data: Path | None,
    size: str | None,
    weights: Path | None,
    recipe: Path | None,
    epochs: float | None,
    limit: int | None,
    command: str,
    force: bool,
    as_json: bool,
) -> None:
    """Train a classifier or a detector. Raises as `run_step`, and ConfigError if the recipe is wrong."""

    def make(folder: Path) -> MadeModel:
        from agent.optimise.factory import find_factory
        from agent.optimise.training.classifier import TrainRequest, read_pictures, train_classifier
        from agent.optimise.training.detector import read_boxes, train_detector

        find_factory(network)  # a wrong name is told before the examples are read
        request = TrainRequest(network, weights, shape, epochs or stated.train.epochs or None, folder, command)
        read, train = (read_boxes, train_detector) if network == DETECTOR else (read_pictures, train_classifier)
        examples, names = read(examples_path(data, recipe, stated), request, stated)
        _tell_examples(examples)
        found = train(examples, names, request, stated, progress=_training(), tell=tell)
        return MadeModel(found.content, found.report, {_WEIGHTS: found.weights}, found.keys)

    inputs = inputs_of(data=data, recipe=recipe, module=network, weights=weights)
    stated, shape = _recipe_of(recipe).recipe, _shape(size)
    if limit:
        stated = replace(stated, data=replace(stated.data, limit=limit))
    job = StepJob(out, "", inputs, (_WEIGHTS,), ("train.checkpoint",), force, as_json)
    run_step(job, make)


def _shape(size: str | None) -> tuple[int, int, int] | None:
    if size is None:
        return None
    found = _SIZE.fullmatch(size)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (_SIDES[0] <= height <= _SIDES[1] and _SIDES[0] <= width <= _SIDES[1]):
        told = f"{size!r}: expected a side of {_SIDES[0]} to {_SIDES[1]} pixels, such as 128, or HEIGHTxWIDTH"
        raise click.BadParameter(told, param_hint="--size")
    return height, width, 3


def _training() -> Callable[[TrainingStep], None]:
    accuracy = [""]

    def show(step: TrainingStep) -> None:
        if step.epoch is not None and step.epoch.accuracy is not None:
            accuracy[0] = f", accuracy {step.epoch.accuracy:.1%}"
        share = f"{step.done * 100 // step.total} %{accuracy[0]}"
        show_progress(f"training {share}, loss {step.loss:.3f}" if step.loss is not None else f"looking {share}")

    return show


def write_anomaly_model(
    name: str,
    out: Path,
    *,
    data: Path,
    faulty: Path | None,
    places: int,
    false_alarms: float,
    label: str,
    limit: int | None,
    command: str,
    force: bool,
    as_json: bool,
) -> None:
    """Learn what sound parts look like; `false_alarms`: sound parts that may be reported, per cent.

    Raises as `run_step`.
    """

    def make(_: Path) -> MadeModel:
        from agent.optimise.anomaly.file import AnomalySettings, make_anomaly_model
        from agent.optimise.anomaly.memory import features_of

        model = open_source(name, lambda _: None)
        if model.manifest.audio is not None:
            raise ModelError("it takes sound: a backbone takes pictures, such as the bundled `inspection`")
        features_of(model.content)
        sound = _pictures(data, model, limit)
        others = _pictures(faulty, model, None) if faulty else None
        settings = AnomalySettings(out.stem, places, false_alarms / 100.0, label)
        found = make_anomaly_model(model, sound, others, settings, command=command, progress=_learning)
        return MadeModel(found.content, found.report, {_CHART: found.sheet}, found.keys)

    run_step(StepJob(out, name, [data, faulty], (_CHART,), (), force, as_json), make)


def _learning(what: str, share: float) -> None:
    show_progress(f"{what} {int(share * 100)} %" if share else what)


def _pictures(path: Path, model: Model, limit: int | None) -> Examples:
    examples = read_examples(path, model, limit=limit, own_classes=True)
    if examples.kind != "none":
        raise ModelError(
            f"{path}: holds {examples.kind}: give the folder of sound parts as --data, that of faulty ones as "
            "--faulty"
        )
    _tell_examples(examples)
    return examples
