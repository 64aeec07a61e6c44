"""`vedette optimise train`: train a classifier or a detector."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from agent.cli.optimise.options import DATA, FORCE, JSON, LIMIT, OUT, RECIPE, WEIGHTS, command_line
from agent.cli.optimise.work import MadeModel, StepJob, recipe_of, run_step, tell_examples
from agent.cli.options import NumberRange
from agent.cli.output import show_progress, tell
from agent.optimise.inputs import examples_path, inputs_of
from agent.optimise.recipe import DETECTOR

if TYPE_CHECKING:
    from agent.optimise.train import TrainingStep


_SIDES = (16, 1024)


_SIZE = re.compile(r"([1-9]\d{1,3})(?:x([1-9]\d{1,3}))?")


@click.command()
@click.argument("network", metavar="efficientnet_lite0|tiny|detector|PATH.py:FACTORY")
@OUT
@DATA
@click.option("--size", metavar="SIDE|HxW", help="Of the pictures the network takes; 128, of a detector 320.")
@WEIGHTS
@RECIPE
@click.option(
    "--epochs",
    type=NumberRange(0.0, 1e6, min_open=True),
    help="Passes over the pictures; of efficientnet_lite0 those of its last blocks, by default none.",
)
@LIMIT
@FORCE
@JSON
def train(
    network: str,
    out: Path,
    data: Path | None,
    size: str | None,
    weights: Path | None,
    recipe: Path | None,
    epochs: float | None,
    limit: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a classifier or a detector, and write the float model OUT with its manifest and reports.

    The network is one of

    \b
    efficientnet_lite0  a classifier that knows things and animals already, and learns yours in seconds
    tiny                a classifier of three stages of convolutions, from nothing, in minutes; small
    detector            learns boxes, from nothing

    or a function that returns a torch.nn.Module, a classifier, and may take the number of classes as `classes`.
    OUT.pt are its weights: the steps `prune` and `tune` take the network as --module, and OUT.pt as --weights.

    One part of the examples is for training, on the other the result is measured; steps with the same recipe and
    the same --limit divide them the same way. An interrupted run goes on from its checkpoint, in the folder
    OUT.work.
    """  # noqa: D301

    def make(folder: Path) -> MadeModel:
        from agent.optimise.factory import find_factory
        from agent.optimise.training.classifier import TrainRequest, read_pictures, train_classifier
        from agent.optimise.training.detector import read_boxes, train_detector

        find_factory(network)  # a wrong name is told before the examples are read
        request = TrainRequest(
            network, weights, shape, epochs or stated.train.epochs or None, folder, command_line()
        )
        read, train = (read_boxes, train_detector) if network == DETECTOR else (read_pictures, train_classifier)
        examples, names = read(examples_path(data, recipe, stated), request, stated)
        tell_examples(examples)
        found = train(examples, names, request, stated, progress=_training(), tell=tell)
        return MadeModel(found.content, found.report, {".pt": found.weights}, found.keys)

    inputs = inputs_of(data=data, recipe=recipe, module=network, weights=weights)
    stated, shape = recipe_of(recipe).recipe, _shape(size)
    if limit:
        stated = replace(stated, data=replace(stated.data, limit=limit))
    job = StepJob(out, "", inputs, (".pt",), ("train.checkpoint",), force, as_json)
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
