"""Trains a detector on pictures with boxes, and emits it as a float `.tflite` with a report.

The network `detector`: three levels of cells, a class score and four distances in each.

The levels are joined as in Lin et al., Feature Pyramid Networks for Object Detection (CVPR 2017), without anchors
as in Tian et al., FCOS (ICCV 2019). The distance of a side is the expectation over bins, as in Li et al.,
Generalized Focal Loss (NeurIPS 2020), whose softmax is replaced by sigmoids: the expectation divides by the sum,
and in INT8 a softmax would leave the delegate.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.data.layouts import read_data
from agent.optimise.evaluation.model import EvaluationRequest, evaluate_model
from agent.optimise.factory import learned_of
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.pruning.file import normalisation_of, training_inputs
from agent.optimise.recipe import Recipe
from agent.optimise.report import OptimiseReport, StepResult
from agent.optimise.source import learned_sample
from agent.optimise.train import TrainingSettings, TrainingStep, fastest_device, fit
from agent.optimise.training.boxes import BoxAugmentation, BoxAugmenter, DetectionLoss
from agent.optimise.training.classifier import (
    CHECKPOINT,
    TrainedNetwork,
    TrainRequest,
    build_network,
    check_memory,
    export_network,
    export_trained,
    finished,
    plan_of,
)
from agent.optimise.training.data import PREPARATION, Shape, untaught
from agent.optimise.training.networks import BINS, SMALLEST_BOXED, STRIDES, detector
from agent.optimise.tune import split
from agent.optimise.workers import joined
from agent.text import plain, plural

OUTPUTS = ("scores", "distances")
_SIDE, _BATCH, _STEPS, _EPOCHS = 320, 16, 1000, 12.0
_LEARNING_RATE = 0.02
_START, _END, _PEAK, _LOOK_AHEAD = 0.05, 0.02, 0.2, 0.95
_CLASSES_MAX, _FEW = 1000, 50


def read_boxes(path: Path, request: TrainRequest, recipe: Recipe) -> tuple[Examples, tuple[str, ...]]:
    """Return examples with boxes, and the names of their classes.

    Raises:
        ModelError: they cannot be read, have no boxes, do not fit the memory, or the size is no multiple of 32.
    """
    shape = request.shape or (_SIDE, _SIDE, 3)
    if any(side % STRIDES[-1] or side < SMALLEST_BOXED for side in shape[:2]):
        raise ModelError(
            f"a detector takes pictures whose sides are multiples of {STRIDES[-1]} pixels, {SMALLEST_BOXED} to "
            f"1024: {shape[0]}x{shape[1]} is not"
        )
    content = read_data(path)
    if content.objects is None:
        raise ModelError(
            f"{path}: {content.words}: a detector needs boxes: `labels/*.txt` beside `images/`, .xml files of "
            "VOC, or a .json of COCO"
        )
    count = max((int(one.classes.max(initial=-1)) for one in content.objects), default=-1) + 1
    names = tuple(content.names) or tuple(map(str, range(count)))
    if not 1 <= count <= len(names) <= _CLASSES_MAX or len(set(names)) < len(names):
        raise ModelError(
            f"{path}: {plural(len(names), 'class', 'classes')} of boxes: expected 1 to {_CLASSES_MAX}"
        )
    model = _model(_probe(len(names), shape), names, request)
    examples = read_examples(path, model, limit=recipe.data.limit or None)
    check_memory(len(examples), examples.shape)
    return examples, names


@lru_cache(maxsize=4)
def _probe(classes: int, shape: Shape) -> bytes:
    """Return a detector that has learned nothing; torch takes a while to trace one."""
    network = detector(classes).eval()
    return float_tflite(network, shape, mean=PREPARATION.mean, std=PREPARATION.std, output_names=OUTPUTS)


def train_detector(
    examples: Examples,
    names: Sequence[str],
    request: TrainRequest,
    recipe: Recipe,
    *,
    measured: Examples | None = None,
    progress: Callable[[TrainingStep], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainedNetwork:
    """Train a detector.

    Args:
        examples: pictures with boxes.
        names: of the classes.
        request: what is to be trained.
        recipe: its sections `[train]` and `[data]` count.
        measured: what the result is measured on; None: a part of the examples, which is held out.
        progress: called after each training step.
        tell: called with a line on what is going to be done.

    Raises:
        ModelError: there are no boxes to learn from or to measure on, or training diverges.
        StorageError: the checkpoint cannot be read or written.
    """
    seen, measured = (examples, measured) if measured else split(examples, recipe.data.held_out)
    objects, others = _boxes_of(seen), _boxes_of(measured)
    _check_boxes(examples, objects, others)
    shape: Shape = (examples.shape[0], examples.shape[1], examples.shape[2])
    torch.manual_seed(recipe.train.seed)
    module, parameters = build_network(request, len(names))
    exported = export_network(module.eval(), shape, OUTPUTS)
    settings = _settings(recipe, len(seen), request.epochs)
    learned = learned_sample(seen, known=learned_of(request.weights))
    tell(plan_of(seen, measured, exported, settings.epochs))
    for line in untaught(_classes_of(objects), _classes_of(others), names):
        tell(line)
    _fit(module, training_inputs(seen, PREPARATION), objects, settings, recipe, request, progress)
    exported = export_trained(module.cpu(), shape, request.folder, OUTPUTS)
    model = _model(exported.content, names, request)
    found = evaluate_model(model, measured, EvaluationRequest())
    taught, held = _classes_of(objects), _classes_of(others)
    average = [f"{plain(one.name)}: AP {one.ap:.1%}" for one in found.classes if one.ap is not None]
    notes = (f"AP50 {found.details['AP50']:.1%}", *average)
    step = StepResult("train", metric=found.metric, score=found.value, interval=found.interval, notes=notes)
    remarks = (*untaught(taught, held, names), *found.remarks, *_remarks(taught, held, names))
    report = OptimiseReport(
        "train", request.network, examples=found.data, steps=(step,), remarks=remarks, learned=learned
    )
    return finished(request, module, parameters, exported, model.manifest.output, report)


def _check_boxes(examples: Examples, seen: Sequence[ObjectBoxes], measured: Sequence[ObjectBoxes]) -> None:
    for part, some in (("learn from", seen), ("measure on", measured)):
        if not any(len(one.classes) for one in some):
            raise ModelError(f"{examples.description}: there is no box to {part}: take more of them")


def _boxes_of(examples: Examples) -> list[ObjectBoxes]:
    return [examples.truth(index) for index in range(len(examples))]


def _classes_of(objects: Sequence[ObjectBoxes]) -> NDArray[np.int64]:
    return np.concatenate([one.classes for one in objects])


def _model(content: bytes, names: Sequence[str], request: TrainRequest) -> Model:
    output = OutputManifest("nanodet", tuple(names), options={"strides": list(STRIDES), "bins": BINS})
    manifest = Manifest(request.network, output, PREPARATION)
    return Model(content, hashlib.sha256(content).hexdigest(), manifest, request.network)


def _settings(recipe: Recipe, count: int, epochs: float | None) -> TrainingSettings:
    train = recipe.train
    batch = min(train.batch or _BATCH, count)
    return TrainingSettings(
        epochs=epochs or max(_EPOCHS, _STEPS / max(1, count // batch)),
        batch=batch,
        learning_rate=_LEARNING_RATE * train.learning_rate * batch / _BATCH,
        decay=train.decay,
        momentum=train.momentum,
        normalisation=normalisation_of(PREPARATION, 3),
        start_factor=_START,
        end_factor=_END,
        peak_at=_PEAK,
        look_ahead=_LOOK_AHEAD,
        seed=train.seed,
    )


def _fit(
    module: Any,
    pictures: NDArray[np.uint8],
    objects: list[ObjectBoxes],
    settings: TrainingSettings,
    recipe: Recipe,
    request: TrainRequest,
    progress: Callable[[TrainingStep], None],
) -> Any:
    train, device = recipe.train, fastest_device()
    changes = BoxAugmentation(flip=train.flip, turn=train.turn, light=train.light)
    batches = BoxAugmenter(pictures, objects, changes, settings.normalisation, settings.seed, device)
    loss = DetectionLoss(pictures.shape[1], pictures.shape[2], device)
    return fit(
        module,
        pictures,
        np.array([_digest(one) for one in objects], np.int64),
        settings,
        checkpoint=request.folder and request.folder / CHECKPOINT,
        batches=batches,
        objective=lambda outputs, _inputs, _labels: loss(outputs, batches.boxes, batches.classes),
        progress=progress,
        workers=joined(),
    )


def _digest(objects: ObjectBoxes) -> int:
    """Return a number that changes with the boxes, so that a checkpoint of other ones is not gone on from."""
    return zlib.crc32(objects.classes.tobytes() + objects.boxes.tobytes())


def _remarks(taught: NDArray[np.int64], held: NDArray[np.int64], names: Sequence[str]) -> Iterator[str]:
    counts, others = (np.bincount(one, minlength=len(names)) for one in (taught, held))
    for name, count, other in zip(names, counts, others, strict=True):
        if count < _FEW and (count or not other):  # of those that are all held out, `untaught` tells
            yield f"{plain(name)} has only {plural(int(count), 'box', 'boxes')} to learn from"
