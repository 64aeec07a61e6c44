"""Trains a classifier of pictures from the first weight on, and emits it as a float `.tflite` with a report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.manifest import Manifest, OutputManifest
from agent.errors import DivergedError, ModelError
from agent.optimise.data import Examples
from agent.optimise.evaluate import score, time_ms
from agent.optimise.factory import build_classifier, learned_of, load_weights, save_module
from agent.optimise.graph.from_torch import ImportedModule, export
from agent.optimise.pruning.file import training_inputs, training_settings
from agent.optimise.recipe import Recipe
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_sample
from agent.optimise.train import TrainingSettings, TrainingStep, fit
from agent.optimise.training.data import (
    PREPARATION,
    USUAL_SHAPE,
    Shape,
    check_classes,
    check_logits,
    read_class_examples,
    untaught,
)
from agent.optimise.training.networks import LITE0, SMALLEST, PretrainedClassifier
from agent.optimise.training.transfer import transfer
from agent.optimise.tune import split
from agent.optimise.workers import joined
from agent.storage.files import remove
from agent.text import plain, plural

CHECKPOINT = "train.checkpoint"
_STEPS, _EPOCHS = 1500, 12.0
"""Steps and epochs that a training has at least."""
_RARE = 0.2
"""Examples of the rarest class, relative to the most frequent one, below which a remark is made."""
_FEW = 50
"""Measured examples of a class, below which a remark is made."""
_OF_MEMORY = 0.5
"""Share of the machine's memory that the pictures may take."""


class TrainRequest(Struct, frozen=True):
    """Order for a training.

    Attributes:
        network: `path.py:factory`, or a name that `agent.optimise.factory` knows.
        weights: to begin with; None: random ones, or the function loads some.
        shape: of a picture; None: see `agent.optimise.training.data`.
        epochs: passes over the pictures; None: as many as give 1,500 steps, and at least 12.
        folder: for the checkpoint; None: none is written.
        command: for the report.
    """

    network: str
    weights: Path | None = None
    shape: Shape | None = None
    epochs: float | None = None
    folder: Path | None = None
    command: str = ""


class TrainedNetwork(Struct, frozen=True):
    """Result of a training.

    Attributes:
        content: float `.tflite`.
        weights: for `agent.optimise.factory.load_factory`.
        keys: of the manifest.
        report: with the score on examples that training has not seen.
    """

    content: bytes
    weights: bytes
    keys: dict[str, Any]
    report: OptimiseReport


def read_pictures(path: Path, request: TrainRequest, recipe: Recipe) -> tuple[Examples, tuple[str, ...]]:
    """Return examples with two or more classes, and the names of these.

    Raises:
        ModelError: they cannot be read, are no pictures with classes, or too many for the memory.
    """
    shape = request.shape or (USUAL_SHAPE if request.network == LITE0 else None)
    _check_side(request.network, shape)
    examples, count = read_class_examples(
        path, shape, PREPARATION, limit=recipe.data.limit, source=request.network
    )
    if count < 2:
        raise ModelError(f"{examples.description}: a classifier needs two classes or more")
    examples.picture(0)  # real values are no pictures
    check_memory(len(examples), examples.shape)
    return examples, tuple(examples.names) or tuple(map(str, range(count)))


def _check_side(network: str, shape: Shape | None) -> None:
    """Raise ModelError if pictures of a shape are too small for one of our networks."""
    least = SMALLEST.get(network, 1)
    if shape is not None and min(shape[:2]) < least:
        raise ModelError(f"{network}: takes pictures of {least} pixels or more: give --size {least}")


def check_memory(count: int, shape: Sequence[int]) -> None:
    """Raise ModelError if so many pictures of a shape take too much of the machine's memory."""
    needed = count * int(np.prod(shape))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _OF_MEMORY * memory:
        size = f"{needed / 1e9:.1f} GB for {count} pictures of {shape[0]}×{shape[1]}"
        raise ModelError(f"{size}, and this machine has {memory / 1e9:.1f} GB: use --limit or a smaller --size")


def train_classifier(
    examples: Examples,
    names: Sequence[str],
    request: TrainRequest,
    recipe: Recipe,
    *,
    progress: Callable[[TrainingStep], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainedNetwork:
    """Train a classifier of pictures.

    Args:
        examples: pictures with classes; a part is held out to measure on.
        names: of the classes.
        request: what is to be trained.
        recipe: its sections `[train]` and `[data]` count.
        progress: called after each training step.
        tell: called with a line on what is going to be done.

    Raises:
        ModelError: the network cannot be built, trained or emitted, or gives another number of classes; or the
            examples to learn from are of one class.
        StorageError: the checkpoint cannot be read or written.
    """
    seen, measured = split(examples, recipe.data.held_out)
    check_classes(examples, seen)
    shape: Shape = (examples.shape[0], examples.shape[1], examples.shape[2])
    _check_side(request.network, shape)
    torch.manual_seed(recipe.train.seed)
    module, parameters = build_network(request, len(names))
    exported = _checked(module, request.network, shape, len(names))
    settings = _settings(recipe, shape, len(seen), request.epochs)
    pretrained = isinstance(module, PretrainedClassifier)
    epochs = request.epochs or 0.0 if pretrained else settings.epochs
    learned = learned_sample(seen, known=learned_of(request.weights))
    tell(plan_of(seen, measured, exported, epochs))
    for line in untaught(_labels(seen), _labels(measured), names):
        tell(line)
    data = training_inputs(seen, PREPARATION), _labels(seen)
    test = training_inputs(measured, PREPARATION), _labels(measured)
    checkpoint = request.folder and request.folder / CHECKPOINT
    if pretrained:
        transfer(module, *data, recipe.train, epochs, checkpoint=checkpoint, test=test, progress=progress)
    else:
        fit(module, *data, settings, checkpoint=checkpoint, test=test, progress=progress, workers=joined())
    exported = export_trained(module.cpu(), shape, request.folder)
    output = OutputManifest("classify", tuple(names), options={"logits": True})
    found = score(exported.content, measured, Manifest(request.network, output, PREPARATION))
    right, labels, taught = np.array(found.right), _labels(measured), _labels(seen)
    shares = zip(names, _shares(right, labels, len(names)), strict=True)
    step = StepResult(
        "train",
        metric=found.metric,
        score=found.value,
        interval=found.interval,
        notes=tuple(f"{plain(name)}: {share}" for name, share in shares),
    )
    remarks = (*untaught(taught, labels, names), *_remarks(labels, taught, names), *measured.remarks)
    report = OptimiseReport(
        "train", request.network, examples=measured.description, steps=(step,), remarks=remarks, learned=learned
    )
    return finished(request, module, parameters, exported, output, report)


def plan_of(seen: Examples, measured: Examples, exported: ImportedModule, epochs: float) -> str:
    """Return in a line what is going to be done."""
    return (
        f"{plural(len(seen), 'example')} to learn from, {len(measured)} to measure on; "
        f"{exported.parameters} parameters, {exported.multiply_adds / 1e6:.1f} million multiply-adds; "
        f"{plural(float(epochs), 'epoch') if epochs else 'the last layer alone'}"
    )


def finished(
    request: TrainRequest,
    module: Any,
    parameters: dict[str, Any],
    exported: ImportedModule,
    output: OutputManifest,
    report: OptimiseReport,
) -> TrainedNetwork:
    """Return the result of a training, with the size and the time of its file.

    Args:
        request: of the training.
        module: trained.
        parameters: of its function.
        exported: its file.
        output: of its manifest.
        report: with one step, the examples, remarks and what was learned from.
    """
    latency_ms = time_ms([exported.content])[0]
    report = replace(
        report,
        sha256_after=hashlib.sha256(exported.content).hexdigest(),
        machine=describe_machine(),
        command=request.command,
        steps=(replace(report.steps[0], size=len(exported.content), latency_ms=latency_ms),),
    )
    keys = {
        "input": {"order": "rgb", "mean": list(PREPARATION.mean), "std": list(PREPARATION.std)},
        "output": {"decoder": output.decoder, "labels": list(output.labels), "options": output.options},
    }
    weights = save_module(module, request.network, parameters, report.learned)
    return TrainedNetwork(exported.content, weights, keys, report)


def build_network(request: TrainRequest, classes: int) -> tuple[Any, dict[str, Any]]:
    """Return the module that is to be trained, and the arguments of its function.

    Args:
        request: names the network.
        classes: number of its classes.

    Raises:
        ModelError: it cannot be built, or has nothing to train.
    """
    module, parameters = build_classifier(request.network, classes)
    if request.weights:
        load_weights(module, request.weights, parameters.get("classes"))
    if not any(one.requires_grad for one in module.parameters()):
        raise ModelError(f"{request.network}: has no parameters to train")
    return module, parameters


def export_network(module: Any, shape: Shape, output_names: Sequence[str] = ()) -> ImportedModule:
    """Return the file of a module that takes pictures as `PREPARATION` says."""
    return export(module, shape, mean=PREPARATION.mean, std=PREPARATION.std, output_names=output_names)


def export_trained(
    module: Any, shape: Shape, folder: Path | None, output_names: Sequence[str] = ()
) -> ImportedModule:
    """Return the file of a trained module; of one whose training has diverged, remove the checkpoint.

    Raises:
        DivergedError: it has.
        ModelError: it cannot be emitted.
    """
    if all(bool(torch.isfinite(one).all()) for one in module.state_dict().values()):
        try:
            return export_network(module, shape, output_names)
        except ModelError as error:
            if "not finite" not in str(error):
                raise
    if folder is not None:
        remove(folder / CHECKPOINT)
    raise DivergedError("training has diverged: give a lower `learning_rate` in [train] of the recipe")


def _checked(module: Any, network: str, shape: Shape, classes: int) -> ImportedModule:
    """Return the module's file before the training, which shows that it can be emitted."""
    exported = export_network(module.eval(), shape)
    shapes = list(exported.outputs.values())
    if len(shapes) != 1 or list(shapes[0]) != [1, classes]:
        found = " and ".join(str(list(one)) for one in shapes)
        raise ModelError(
            f"{network}: gives {found} for one picture, and the examples have {classes} classes: expected "
            f"[1, {classes}]; a function with an argument `classes` is told their number"
        )
    check_logits(exported.content, network)
    return exported


def _settings(recipe: Recipe, shape: Shape, count: int, epochs: float | None) -> TrainingSettings:
    settings = training_settings(recipe, PREPARATION, shape, count)
    per_epoch = max(1, count // min(settings.batch, count))
    return replace(settings, epochs=epochs or max(_EPOCHS, _STEPS / per_epoch))


def _labels(examples: Examples) -> NDArray[np.int64]:
    assert examples.labels is not None
    return examples.labels


def _shares(right: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> Iterator[str]:
    """Yield how many examples of each class are told right."""
    for number in range(classes):
        own = right[labels == number]
        yield f"{int(own.sum())} of {len(own)} right"


def _remarks(measured: NDArray[np.int64], seen: NDArray[np.int64], names: Sequence[str]) -> Iterator[str]:
    counts = np.bincount(seen, minlength=len(names))
    rarest = int(np.where(counts, counts, counts.max()).argmin())  # of those that have one
    if counts[rarest] < _RARE * counts.max():
        rare, often = plain(names[rarest]), plain(names[int(counts.argmax())])
        yield f"{rare} has {plural(int(counts[rarest]), 'example')} to learn from, and {often} {counts.max()}"
    if (few := np.bincount(measured, minlength=len(names)).min()) < _FEW:
        yield f"a class has only {plural(int(few), 'example')} to measure on: the score may be some per cent off"
