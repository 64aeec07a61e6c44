"""Prune the network of a model file, and emit it as a new one with a report.

The network is the torch module that the file was imported from, whose batch norms can still be trained, or the
graph of the file itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.infer.session import Session
from agent.compute.manifest import InputManifest, Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import ConfigError, ModelError
from agent.optimise.augment import Augmentation, Normalisation
from agent.optimise.data import Examples
from agent.optimise.evaluate import Score, open_content, outputs_of, score, time_ms
from agent.optimise.pruning.channels import ROUND_FACTOR, prune_channels, trained_groups
from agent.optimise.pruning.connections import PruneHistory, PruneSettings, draw_curves, frozen, prunable, prune
from agent.optimise.pruning.network import PrunableNetwork, of_file, of_module
from agent.optimise.quantise import spread
from agent.optimise.recipe import NEED_GRADIENTS, PruneRecipe, Recipe, RecipeFile
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_sample, logits_keys
from agent.optimise.train import Pictures, TrainingSettings, TrainingStep, predict
from agent.optimise.training.data import check_classes, check_logits
from agent.optimise.tune import split
from agent.structs import convert

_COMPARED = 64
_FOLDED = 0.02
"""Learning rate of a network whose batch norms are part of its weights, relative to the recipe's."""
_AGREE = 0.9
"""Share of the examples that module and file must give the same class."""
_APART = 0.3
"""Largest difference of their outputs, relative to the largest one: pixels are rounded, and a manifest may have
one mean for all channels where the module was trained with three."""
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
        chart: PNG of the accuracy on the way.
        keys: of its manifest that differ from the model's.
    """

    content: bytes
    report: OptimiseReport
    chart: bytes
    keys: dict[str, Any]


class PruningState(Struct, frozen=True):
    """Position in a run, for those who show its progress.

    Attributes:
        share: of the training steps that is done, 0..1.
        loss: of the last step.
    """

    share: float
    loss: float


def check_no_exits(model: Model) -> None:
    """Raise ModelError if a model has exits, since only one graph can be pruned."""
    if model.manifest.variants[0].after:
        raise ModelError(f"{model.path}: has exits: prune the model first, and give it exits then")


def prune_model(
    model: Model,
    module: Any | None,
    examples: Examples,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    command: str = "",
    progress: Callable[[PruningState], None] = lambda _: None,
) -> PrunedModel:
    """Prune a classifier of pictures, or of arrays with their axes, as sound has.

    Args:
        model: float, with its manifest; of one input [1, height, width, channels].
        module: the torch module that it was imported from, trained; None: the graph of the file is pruned, of
            which only connections can go.
        examples: with classes; a part is held out to measure on.
        recipe: its sections `[prune]`, `[train]` and `[data]` count.
        folder: see `agent.optimise.pruning.connections.prune`.
        command: for the report.
        progress: called after each training step.

    Raises:
        ModelError: the examples have no classes, module and model differ, or no layer matches.
        StorageError: a checkpoint cannot be read or written.
    """
    check_no_exits(model)
    if examples.kind != "classes" or examples.labels is None:
        raise ModelError(f"{examples.description}: pruning trains, and needs examples with classes")
    preparation = preparation_of(model, examples)
    network = _network(model, module, examples, recipe)
    seen, measured = split(examples, recipe.data.held_out)
    check_same_outputs(network.module, model, measured)
    settings, training = settings_of(recipe, preparation, seen.shape, len(seen), pictures=seen.are_pixels)
    draw_curves({})  # that matplotlib is missing is told now and not in an hour
    if not network.normalised:
        training = training.slower(_FOLDED)
    data = training_inputs(seen, preparation), _labels(seen)
    test = training_inputs(measured, preparation), _labels(measured)
    count = _Counter(settings, training, len(seen), progress)
    options: dict[str, Any] = {"folder": folder, "test": test, "progress": count}
    if recipe.prune.structured:
        module, history = prune_channels(network.module, *data, settings, training, **options)
    else:
        module = network.module
        history = prune(module, *data, settings, training, weights=network.weights, **options)
    content = network.emit(module)
    report = _report(model, content, measured, history, recipe, command)
    report = replace(report, learned=learned_sample(seen, model))
    return PrunedModel(
        content, report, draw_curves({recipe.prune.ranked_by: history}), logits_keys(model, content)
    )


def _network(model: Model, module: Any | None, examples: Examples, recipe: Recipe) -> PrunableNetwork:
    if module is not None:
        return of_module(module, examples.shape, preparation_of(model, examples))
    if recipe.prune.structured:
        raise ModelError(f"{model.path}: channels are removed from the module that it was imported from: name it")
    return of_file(model.content, model.path)


def settings_of(
    recipe: Recipe, preparation: InputManifest, shape: tuple[int, ...], count: int, *, pictures: bool = True
) -> tuple[PruneSettings, TrainingSettings]:
    """Return the settings that a recipe states.

    Args:
        recipe: see `prune_model`.
        preparation: of the examples.
        shape: of one input: height, width, channels.
        count: of examples that are trained on.
        pictures: False: they are none, and not changed.

    Raises:
        ConfigError: the values do not go together.
    """
    if fault := recipe.prune.fault():
        raise ConfigError(f"[prune] {fault}")
    given = msgspec.to_builtins(recipe.prune) | {"importance": recipe.prune.ranked_by}
    if given.pop("structured"):
        given["round_factor"] = ROUND_FACTOR
    try:
        settings = convert(given, PruneSettings)
    except ValueError as error:
        raise ConfigError(f"[prune] {error}") from None
    return settings, training_settings(recipe, preparation, shape, count, pictures=pictures)


def training_settings(
    recipe: Recipe, preparation: InputManifest, shape: tuple[int, ...], count: int, *, pictures: bool = True
) -> TrainingSettings:
    """Return the settings of training alone; args as `settings_of`."""
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


def _labels(examples: Examples) -> NDArray[np.int64]:
    assert examples.labels is not None
    return examples.labels


def check_same_outputs(module: Any, model: Model, examples: Examples) -> None:
    """Check that a module gives the classes and the outputs that a file gives, on a few examples of all classes.

    Raises:
        ModelError: it does not, or the file is quantised.
    """
    few, preparation = spread(examples, _COMPARED), preparation_of(model, examples)
    normalisation = normalisation_of(preparation, few.shape[2])
    try:
        own = predict(module, training_inputs(few, preparation), normalisation, exact=True).flatten(1).numpy()
    except ModelError as error:
        raise ModelError(f"{model.path}: its pictures do not fit the module: {error}") from error
    with open_content(model.content, model.manifest) as session:
        if session.inputs[0].quantised:
            raise ModelError(f"{model.path}: is quantised already: give the float model that it was made from")
        found = np.stack(list(_outputs(session, few)))
    told = _difference(own, found)
    if told:
        raise ModelError(
            f"{model.path}: {told} of {len(few)} examples: is it "
            "made from this module and these weights, and are [input] mean, std and order right?"
        )


def _difference(own: NDArray[np.float32], found: NDArray[np.float32]) -> str:
    """Return in words how the outputs of a module and of a file differ, [examples, classes]; empty: they agree.

    Where only one gives probabilities, softmax is taken of the other.
    """
    if own.shape != found.shape:
        return f"gives {found.shape[1]} classes and the module {own.shape[1]} for each"
    other = 1 - float(np.mean(own.argmax(1) == found.argmax(1)))
    if other > 1 - _AGREE:
        return f"gives another class than the module for {other:.0%}"
    if _are_probabilities(own) != _are_probabilities(found):
        own, found = (one if _are_probabilities(one) else _softmax(one) for one in (own, found))
    largest = np.maximum(np.abs(found).max(1), 1e-6)
    apart = float(np.mean(np.abs(own - found).max(1) / largest))
    return f"differs from the module by {apart:.0%} of the largest output in the mean" if apart > _APART else ""


def _are_probabilities(outputs: NDArray[np.float32]) -> bool:
    return bool(outputs.min() >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-2))


def _softmax(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(1, keepdims=True)
    return shares


def _outputs(session: Session, examples: Examples) -> Iterator[NDArray[np.float32]]:
    for outputs in outputs_of(session, examples):
        if len(outputs) != 1:
            raise ModelError(f"the model has {len(outputs)} outputs, and pruning trains on one with classes")
        yield outputs[0].reshape(-1)


class _Counter:
    """Turns training steps into the progress of the whole run."""

    def __init__(
        self,
        settings: PruneSettings,
        training: TrainingSettings,
        count: int,
        progress: Callable[[PruningState], None],
    ) -> None:
        per_epoch = count // min(training.batch, count)
        rounds = settings.rounds + (settings.importance in NEED_GRADIENTS)
        self._total = rounds * settings.round_steps + per_epoch * settings.anneal_epochs
        self._progress, self._done = progress, 0

    def __call__(self, step: TrainingStep) -> None:
        self._done += 1
        self._progress(PruningState(min(1.0, self._done / self._total), step.loss))


def _report(
    model: Model, content: bytes, examples: Examples, history: PruneHistory, recipe: Recipe, command: str
) -> OptimiseReport:
    scores = [score(one, examples, model.manifest) for one in (model.content, content)]
    busy: list[str] = []
    times = time_ms([model.content, content], busy=busy.append)
    gone = history.points[-1].sparsity
    unit = "channels" if recipe.prune.structured else "connections"
    notes = [f"{gone:.1%} of the {unit} are gone, by {recipe.prune.ranked_by}"]
    notes += [f"{name}: {share:.1%}" for name, share in history.layers.items()]
    before = _step("before", model.content, scores[0], times[0])
    after = replace(_step("prune", content, scores[1], times[1]), notes=tuple(notes))
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
            *_rounded(gone, recipe.prune),
            *_widened(model.content),
            *busy,
            *examples.remarks,
        ),
    )


def _remarks(before: StepResult, after: StepResult) -> Iterator[str]:
    """Yield what somebody who reads only one line should know of the result."""
    assert before.score is not None
    assert after.score is not None
    assert before.latency_ms is not None
    assert after.latency_ms is not None
    if (lost := before.score - after.score) > 0:
        told = f"{before.score:.1%} before, {after.score:.1%} after"
        yield f"{after.metric} fell by {100 * lost:.1f} percentage points: {told}"
    limit = 1 - _NOISE
    if after.size > limit * before.size and after.latency_ms > limit * before.latency_ms:
        yield "the file is neither smaller nor faster on this machine: channels would have to go (`structured`)"


def _rounded(gone: float, recipe: PruneRecipe) -> Iterator[str]:
    """Yield why another share of the channels is gone than the recipe asks for."""
    if recipe.structured and abs(gone - recipe.target) >= _ROUNDED:
        yield (
            f"{gone:.1%} of the channels are gone, not {recipe.target:.0%}: what stays of a layer is a multiple "
            f"of {PruneSettings().multiple}, which is much of a narrow one"
        )


def _widened(content: bytes) -> Iterator[str]:
    """Yield why the file of a model with float16 weights is larger than before."""
    if read_modelfile(content).weights.get("float16"):
        yield "float16 weights are trained as float32, and written so, twice as large: quantise the file"


def _step(name: str, content: bytes, found: Score, latency_ms: float) -> StepResult:
    return StepResult(
        name,
        metric=found.metric,
        score=found.value,
        interval=found.interval,
        size=len(content),
        latency_ms=latency_ms,
    )


def check_pruning(model: Model, module: Any | None, examples: Examples, recipe: RecipeFile) -> None:
    """Check a request to prune.

    Args:
        model: see `agent.optimise.pruning.file.prune_model`.
        module: see there; channels of a model without one are refused there.
        examples: see there.
        recipe: its patterns of layers are compared with the names that the network has.

    Raises:
        ModelError: the model has exits, the examples have no classes or are all of one, the network cannot be
            pruned or gives no logits, or module and model differ, as with weights of another training.
        ConfigError: a pattern matches no layer; with the place in the recipe. Or values do not go together.
    """
    check_no_exits(model)
    if examples.kind != "classes":
        raise ModelError(f"{examples.description}: pruning trains, and needs examples with classes")
    check_classes(examples, split(examples, recipe.recipe.data.held_out)[0])
    recipe.check_prune()
    preparation = preparation_of(model, examples)
    settings_of(recipe.recipe, preparation, examples.shape, len(examples), pictures=examples.are_pixels)
    if not recipe.recipe.prune.structured:
        _check_names(recipe, *_layers(model, module), "layer")
    elif module is not None:
        _check_names(recipe, *_groups(module, examples.shape), "group of channels")
    if module is not None:
        emitted = of_module(module, examples.shape, preparation).emit(module)
        check_logits(emitted, type(module).__name__)
        check_same_outputs(module, model, examples)


def _check_names(recipe: RecipeFile, names: Sequence[str], kept: Sequence[str], what: str) -> None:
    """Check that there is something to prune, and the recipe's patterns; `kept` is frozen."""
    if kept and not names:
        raise ModelError(
            f"no {what} can be pruned, since all are frozen (requires_grad = False): {', '.join(kept)}: let the "
            "function leave those trainable that may be pruned"
        )
    recipe.check_prune_layers(names, what, kept)


def _groups(module: Any, shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Return the names of the groups of channels that can be pruned, and of those that are frozen."""
    height, width, channels = shape
    groups, kept = trained_groups(module, (channels, height, width))
    return [group.name for group in groups], kept


def _layers(model: Model, module: Any | None) -> tuple[list[str], list[str]]:
    """Return the names of the layers that can be pruned, and of those that are frozen."""
    if module is None:
        return list(of_file(model.content, model.path).weights), []
    return list(prunable(module)), frozen(module)
