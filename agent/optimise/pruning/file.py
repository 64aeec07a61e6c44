"""Prune the torch module that a model file was imported from, and emit it as a new file with a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import InputManifest, Model
from agent.errors import ModelError
from agent.optimise.augment import Augmentation, Normalisation
from agent.optimise.data import Examples
from agent.optimise.evaluate import open_content, outputs_of, score, time_ms
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.pruning.channels import MULTIPLE, ChannelPruning, trained_groups
from agent.optimise.pruning.rounds import ConnectionPruning, PruningRun, prunable
from agent.optimise.quantise import spread
from agent.optimise.recipe import PruneRecipe, Recipe
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_sample, logits_keys
from agent.optimise.train import Pictures, TrainingSettings, TrainingStep, predict
from agent.optimise.training.data import check_classes, check_logits
from agent.optimise.tune import split

_COMPARED = 64
_AGREE = 0.9
"""Share of the examples that module and file must give the same class."""
_BATCH, _LEAST_BATCH, _STEPS = 1024, 16, 16
"""Examples of a batch at most and at least, and steps of an epoch that smaller ones are taken for."""
_AT_ONCE = 32_000_000
"""Values of pictures that are prepared together."""
_NOISE = 0.02
"""Share by which a time or a size must fall to be told as smaller."""
_ROUNDED = 0.01
"""Difference from the share of channels that the recipe asks for, from which on it is told."""


class PrunedModel(Struct, frozen=True):
    """Result of `prune_model`.

    Attributes:
        content: the new file, float.
        report: with the scores before and after, on examples that pruning has not seen.
        keys: of its manifest that differ from the model's.
    """

    content: bytes
    report: OptimiseReport
    keys: dict[str, Any]


def prune_model(
    model: Model,
    module: Any,
    examples: Examples,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    command: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> PrunedModel:
    """Prune a classifier of pictures, or of arrays with their axes, as sound has.

    Args:
        model: float, with its manifest; of one input [1, height, width, channels].
        module: the torch module that it was imported from, trained.
        examples: with classes; a part is held out to measure on.
        recipe: its sections `[prune]`, `[train]` and `[data]` count.
        folder: see `PruningRun.run`.
        command: for the report.
        progress: told after each training step.

    Raises:
        ModelError: see `check_pruning` and `PruningRun`.
        StorageError: a checkpoint cannot be read or written.
    """
    check_pruning(model, module, examples, recipe)
    preparation = preparation_of(model, examples)
    seen, measured = split(examples, recipe.data.held_out)
    training = training_settings(recipe, preparation, seen.shape, len(seen), pictures=seen.are_pixels)
    rounds = recipe.prune.rounds + recipe.prune.needs_gradients
    per_epoch = len(seen) // min(training.batch, len(seen))
    steps = rounds * recipe.prune.round_steps + per_epoch * recipe.prune.anneal_epochs
    done = count(1)

    def show(step: TrainingStep) -> None:
        assert step.loss is not None
        progress(f"pruning {min(1.0, next(done) / steps):.0%}, loss {step.loss:.3f}")

    kind = ChannelPruning if recipe.prune.structured else ConnectionPruning
    run = kind(module, training_inputs(seen, preparation), seen.labels, recipe.prune, training, show)
    run.run(folder)
    content = emitted(run.module, examples.shape, preparation)
    report = _report(model, content, measured, run, recipe, command)
    report = replace(report, learned=learned_sample(seen, model))
    return PrunedModel(content, report, logits_keys(model, content))


def emitted(module: Any, shape: tuple[int, ...], preparation: InputManifest) -> bytes:
    """Return the float `.tflite` of a module.

    Args:
        module: a torch module, which is moved to the processor.
        shape: of one input: height, width, channels.
        preparation: of pictures.
    """
    height, width, channels = shape
    mean, std = preparation.mean[:channels], preparation.std[:channels]
    return float_tflite(module.cpu(), (height, width, channels), mean=mean, std=std)


def training_settings(
    recipe: Recipe, preparation: InputManifest, shape: tuple[int, ...], count: int, *, pictures: bool = True
) -> TrainingSettings:
    """Return the settings of training that a recipe states.

    Args:
        recipe: its section `[train]` counts.
        preparation: of the examples.
        shape: of one input: height, width, channels.
        count: of examples that are trained on.
        pictures: False: they are none, and not changed.
    """
    train = recipe.train
    batch = train.batch or min(_BATCH, max(_LEAST_BATCH, count // _STEPS))
    changes = Augmentation(shift=min(shape[:2]) // 16, flip=train.flip, turn=train.turn, light=train.light)
    if not pictures:
        changes = Augmentation(shift=0, flip=False)
    settings = TrainingSettings(
        epochs=train.epochs or TrainingSettings().epochs,
        batch=batch,
        learning_rate=train.learning_rate,
        decay=train.decay,
        momentum=train.momentum,
        label_smoothing=train.label_smoothing,
        augmentation=changes,
        normalisation=normalisation_of(preparation, shape[2]),
        seed=train.seed,
    )
    return settings if train.batch else settings.slower(batch / _BATCH)


def preparation_of(model: Model, examples: Examples) -> InputManifest:
    """Return how examples are prepared: as the manifest states, but for real values that are no pictures."""
    return model.manifest.input if examples.are_pixels else InputManifest()


def normalisation_of(preparation: InputManifest, channels: int) -> Normalisation:
    """Return the normalisation that a manifest states."""
    mean, std = preparation.mean[:channels], preparation.std[:channels]
    if len({*mean}) == len({*std}) == 1:
        return Normalisation(mean[0], std[0])
    return Normalisation(mean, std)


def training_inputs(examples: Examples, preparation: InputManifest) -> Pictures:
    """Return what is trained on, [n, height, width, channels].

    Pictures are uint8, as the model takes them before the normalisation; what is no picture is float32.
    """
    if not examples.are_pixels:
        return examples.batch(range(len(examples)))
    channels = examples.shape[2]
    mean, std = (np.array(one[:channels], np.float32) for one in (preparation.mean, preparation.std))
    found = np.empty((len(examples), *examples.shape), np.uint8)
    step = max(1, _AT_ONCE // int(np.prod(examples.shape)))
    for start in range(0, len(examples), step):
        places = range(start, min(start + step, len(examples)))
        values = examples.batch(places) * std + mean
        found[start : start + step] = np.clip(np.rint(values), 0, 255)
    return found


def check_same_classes(module: Any, model: Model, examples: Examples) -> None:
    """Check that a module gives the classes that a file gives, on a few examples of all classes.

    Raises:
        ModelError: it does not, or the file is quantised.
    """
    few, preparation = spread(examples, _COMPARED), preparation_of(model, examples)
    normalisation = normalisation_of(preparation, few.shape[2])
    own = predict(module, training_inputs(few, preparation), normalisation, exact=True).flatten(1).numpy()
    with open_content(model.content, model.manifest) as session:
        if session.inputs[0].quantised:
            raise ModelError(f"{model.path}: is quantised already: give the float model that it was made from")
        found = np.stack([outputs[0].reshape(-1) for outputs in outputs_of(session, few)])
    other = 1 - float(np.mean(own.argmax(1) == found.argmax(1))) if own.shape == found.shape else 1.0
    if other > 1 - _AGREE:
        raise ModelError(
            f"{model.path}: gives another class than the module for {other:.0%} of {len(few)} examples: is it "
            "made from this module and these weights, and are [input] mean, std and order right?"
        )


def _report(
    model: Model, content: bytes, examples: Examples, run: PruningRun, recipe: Recipe, command: str
) -> OptimiseReport:
    files = [model.content, content]
    unit = "channels" if recipe.prune.structured else "connections"
    notes = [f"{run.gone:.1%} of the {unit} are gone, by {recipe.prune.ranked_by}"]
    notes += [f"{name}: {share:.1%}" for name, share in run.layers.items()]
    times = time_ms(files)
    scores = [score(one, examples, model.manifest) for one in files]
    before, after = (
        StepResult(
            name,
            metric=found.metric,
            score=found.value,
            interval=found.interval,
            size=len(one),
            latency_ms=latency_ms,
        )
        for name, one, found, latency_ms in zip(("before", "prune"), files, scores, times, strict=True)
    )
    after = replace(after, notes=tuple(notes))
    return OptimiseReport(
        step="prune",
        model=model.path,
        sha256_before=model.sha256,
        sha256_after=hashlib.sha256(content).hexdigest(),
        machine=describe_machine(),
        command=command,
        examples=examples.description,
        steps=(before, after),
        remarks=(
            *_remarks(before, after),
            *_rounded(run.gone, recipe.prune),
            *examples.remarks,
        ),
    )


def _remarks(before: StepResult, after: StepResult) -> Iterator[str]:
    """Yield what somebody who reads only one line should know of the result."""
    was, now = before.score or 0.0, after.score or 0.0
    if now < was:
        told = f"{was:.1%} before, {now:.1%} after"
        yield f"{after.metric} fell by {100 * (was - now):.1f} percentage points: {told}"
    is_faster = (after.latency_ms or 0.0) <= (1 - _NOISE) * (before.latency_ms or 0.0)
    if after.size > (1 - _NOISE) * before.size and not is_faster:
        yield "the file is neither smaller nor faster on this machine: channels would have to go (`structured`)"


def _rounded(gone: float, recipe: PruneRecipe) -> Iterator[str]:
    """Yield why another share of the channels is gone than the recipe asks for."""
    if recipe.structured and abs(gone - recipe.target) >= _ROUNDED:
        yield (
            f"{gone:.1%} of the channels are gone, not {recipe.target:.0%}: what stays of a layer is a multiple "
            f"of {MULTIPLE}, which is much of a narrow one"
        )


def check_pruning(model: Model, module: Any, examples: Examples, recipe: Recipe) -> None:
    """Check a request to prune; args as of `prune_model`.

    Raises:
        ModelError: the model has exits, the examples have no classes or are all of one, the network cannot be
            pruned or gives no logits, or module and model differ, as with weights of another training.
    """
    if model.manifest.variants[0].after:
        raise ModelError(f"{model.path}: has exits: prune the model first, and give it exits then")
    if examples.kind != "classes":
        raise ModelError(f"{examples.description}: pruning trains, and needs examples with classes")
    check_classes(examples, split(examples, recipe.data.held_out)[0])
    if recipe.prune.structured:
        height, width, channels = examples.shape
        trained_groups(module, (channels, height, width))
    else:
        prunable(module)
    check_logits(emitted(module, examples.shape, preparation_of(model, examples)), type(module).__name__)
    check_same_classes(module, model, examples)
