"""Turns a classifier's file into a cascade of exits with a report: the step of `vedette optimise depth`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Manifest, Model, Variant
from agent.errors import ModelError
from agent.optimise.calibrate import CalibrationResult
from agent.optimise.data import Examples
from agent.optimise.depth.calibration import (
    FEWEST,
    ExitScores,
    costs_of,
    exit_scores,
    learn,
    on_others,
    time_exits_ms,
)
from agent.optimise.depth.network import ExitNetwork
from agent.optimise.depth.stages import (
    Cut,
    Stage,
    add_exits,
    backbone,
    choose_exits,
    split,
    stage_multiply_adds,
    weighted_layers,
)
from agent.optimise.depth.training import Data, Progress, train_exits
from agent.optimise.evaluate import doubt_guesses, score, wilson
from agent.optimise.pruning.file import preparation_of, training_inputs, training_settings
from agent.optimise.recipe import Recipe
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_sample
from agent.optimise.training.data import check_classes
from agent.optimise.tune import split as held_out
from agent.text import plural

_ALONE = (
    "training all exits together did not help, and only the heads are trained: give it more `epochs`, a lower "
    "[train] learning_rate, or more examples"
)
_MORE = (
    "the cascade loses more than the {:g} percentage points that it may; on the examples that taught its "
    "thresholds it does not: give more of them, or allow less"
)


class CascadeParts(NamedTuple):
    """Three parts of the examples with classes from which a cascade is made.

    Attributes:
        training: that the exits learn from.
        thresholds: on which thresholds are learned, and which training is kept is decided.
        measured: that the report's figures are of.
    """

    training: Examples
    thresholds: Examples
    measured: Examples


class CascadeFile(Struct, frozen=True):
    """Result of `make_cascade`.

    Attributes:
        content: of the new file, float: a signature per exit.
        manifest: of the new file.
        keys: of its manifest that differ from the model's.
        report: with figures on examples that decided nothing.
        calibration: for the chart; its figures are on those examples, too.
    """

    content: bytes
    manifest: Manifest
    keys: dict[str, Any]
    report: OptimiseReport
    calibration: CalibrationResult


def make_cascade(
    model: Model,
    parts: CascadeParts,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    command: str = "",
    progress: Progress = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> CascadeFile:
    """Give a classifier early exits, train and calibrate them.

    Args:
        model: float, with its manifest; of one input.
        parts: from `cascade_parts`; the figures of the report are measured on those that decide nothing.
        recipe: its sections `[depth]` and `[train]` count.
        folder: for checkpoints; None: none are written.
        command: for the report.
        progress: told after each step.
        tell: told the places of the exits, and their accuracy.

    Raises:
        ModelError: the model or the examples cannot be used, or there is no place for an exit.
        StorageError: a checkpoint cannot be read or written, or has no room.
    """
    base = backbone(model.content)
    right = score(model.content, parts.thresholds, model.manifest).value
    doubts = doubt_guesses(right, parts.thresholds, "examples for the thresholds")
    for line in doubts:
        tell(line)
    places = choose_exits(base, recipe.depth.exits, recipe.depth.at)
    for number, place in enumerate(places, 1):
        tell(f"exit{number} behind {place.name!r}, {place.share:.0%} of the multiply-adds")
    whole, stages = add_exits(base, places, grid=recipe.depth.grid)
    network = ExitNetwork(whole)
    seen, preparation = parts.training, preparation_of(model, parts.training)
    training = training_settings(recipe, preparation, seen.shape, len(seen), pictures=seen.are_pixels)
    data, test = (_data(one, model) for one in parts[:2])
    options: dict[str, Any] = {"folder": folder, "progress": progress, "tell": tell}
    found = train_exits(network, data, test, recipe.depth, training, **options)
    content = split(found.content, stages)
    manifest = _manifest(model.manifest, content, stages, places, base)
    manifest, result = _calibrated(content, manifest, parts, recipe.depth.loss, progress)
    report = _report(model, content, manifest, parts.measured, result, command)
    remarks = [*report.remarks, *doubts]
    if result.lost > recipe.depth.loss + 1e-9:
        remarks.insert(0, _MORE.format(100 * recipe.depth.loss))
    if recipe.depth.epochs and not found.is_joint:
        remarks.append(_ALONE)
    report = replace(report, remarks=tuple(remarks), learned=learned_sample(seen, model))
    return CascadeFile(content, manifest, _keys(model, manifest), report, result)


def cascade_parts(examples: Examples, recipe: Recipe) -> CascadeParts:
    """Return a part of the examples for training; of those held out, one half each for the other two purposes.

    Raises:
        ModelError: the examples have no classes, are all of one, are no pictures, or too few.
    """
    if examples.kind != "classes" or examples.labels is None:
        raise ModelError(f"{examples.description}: exits are trained, and need examples with classes")
    if len(examples.shape) != 3:
        raise ModelError(f"an input is {list(examples.shape)}: exits are trained on three axes, as of pictures")
    seen, held = held_out(examples, recipe.data.held_out)
    check_classes(examples, seen)
    tuned, measured = held_out(held, 0.5)
    if len(tuned) < FEWEST:
        raise ModelError(
            f"{examples.description}: {len(tuned)} of them are to learn thresholds from; expected at least "
            f"{FEWEST}: give more examples, or a larger `held_out` in [data] of the recipe"
        )
    return CascadeParts(seen, tuned, measured)


def _data(examples: Examples, model: Model) -> Data:
    assert examples.labels is not None
    return training_inputs(examples, preparation_of(model, examples)), examples.labels


def _manifest(
    given: Manifest, content: bytes, stages: Sequence[Stage], places: Sequence[Cut], base: bytes
) -> Manifest:
    """Return the manifest with the exits, deepest first, which have no thresholds yet."""
    costs = stage_multiply_adds(content)
    depths = weighted_layers(base, [one.name for one in places])
    before = ["", *(one.signature for one in stages)]
    variants = [
        Variant(one.signature, one.signature, after, depth, costs[one.signature])
        for one, after, depth in zip(stages, before, depths, strict=False)
    ]
    options = {**given.output.options, "logits": True}
    options.pop("tensors", None)
    decoder = "keyword" if given.output.decoder == "keyword" else "classify"
    output = replace(given.output, decoder=decoder, options=options)
    return replace(given, output=output, variants=tuple(reversed(variants)))


def _calibrated(
    content: bytes, manifest: Manifest, parts: CascadeParts, loss: float, progress: Progress
) -> tuple[Manifest, CalibrationResult]:
    """Return the manifest with thresholds, and figures on the examples that decide nothing."""

    def scores(examples: Examples, what: str) -> ExitScores:
        def show(done: int) -> None:
            progress(f"running all exits, {what}: {done / len(examples):.0%}")

        return exit_scores(content, manifest, examples, show)

    costs = costs_of(manifest)
    tuned, measured = scores(parts.thresholds, "part 1 of 2"), scores(parts.measured, "part 2 of 2")
    found = on_others(learn(tuned, costs, loss), measured, costs)
    names = tuple(one.name for one in reversed(manifest.variants))
    result = CalibrationResult(names, costs, found, found.chosen, found.full, len(parts.thresholds))
    return with_thresholds(manifest, result), result


def with_thresholds(manifest: Manifest, result: CalibrationResult) -> Manifest:
    """Return a manifest with what was learned."""
    found = result.keys
    variants = tuple(replace(one, **found[one.name]) for one in manifest.variants)
    return replace(manifest, variants=variants)


def _keys(model: Model, manifest: Manifest) -> dict[str, Any]:
    """Return the keys of the new manifest: those that change, or all if the model has none."""
    variants = [_stated(one) for one in manifest.variants]
    keys: dict[str, Any] = {
        "output": {"decoder": manifest.output.decoder, "options": manifest.output.options},
        "variants": variants,
    }
    if not Path(model.path).with_suffix(".toml").exists():
        keys["input"] = msgspec.to_builtins(manifest.input)
        keys["name"] = manifest.name
        if manifest.output.labels:
            keys["output"]["labels"] = list(manifest.output.labels)
    return keys


def _stated(variant: Variant) -> dict[str, Any]:
    """Return the keys of a variant that are no defaults."""
    usual = msgspec.to_builtins(Variant(""))
    return {key: value for key, value in msgspec.to_builtins(variant).items() if value != usual[key]}


def _report(
    model: Model,
    content: bytes,
    manifest: Manifest,
    examples: Examples,
    result: CalibrationResult,
    command: str,
) -> OptimiseReport:
    """Return the report; the figures of `result` are those on the examples."""
    before = score(model.content, examples, model.manifest)
    cascade_ms, deepest_ms = time_exits_ms(content, manifest, examples)
    first = StepResult(
        "before",
        metric=before.metric,
        score=before.value,
        interval=before.interval,
        size=len(model.content),
        notes=(f"all figures are of {plural(len(examples), 'example')} that decided nothing",),
    )
    steps = [first, *_alone(result, manifest, len(examples), deepest_ms)]
    chosen = result.learned.chosen
    used = ", ".join(f"{name} {share:.0%}" for name, share in zip(result.variants, chosen.used, strict=True))
    notes = (f"{chosen.cost:.0%} of the multiply-adds", f"answers of {used}")
    accuracy = _accuracy(chosen.accuracy, len(examples))
    steps.append(StepResult("cascade", size=len(content), latency_ms=cascade_ms, notes=notes, **accuracy))
    return OptimiseReport(
        step="depth",
        model=model.path,
        sha256_before=model.sha256,
        sha256_after=hashlib.sha256(content).hexdigest(),
        machine=describe_machine(),
        command=command,
        examples=examples.description,
        steps=tuple(steps),
        remarks=(*_remarks(before.value, result, cascade_ms / deepest_ms), *examples.remarks),
    )


def _alone(result: CalibrationResult, manifest: Manifest, count: int, deepest_ms: float) -> Iterator[StepResult]:
    """Yield each exit if it answered everything."""
    spent = np.cumsum(result.costs) / np.sum(result.costs)
    for number, variant in enumerate(reversed(manifest.variants)):
        last = number + 1 == len(result.variants)
        notes = [f"{spent[number]:.0%} of the multiply-adds", f"temperature {variant.temperature:.3g}"]
        notes += [] if variant.confidence is None else [f"answers from confidence {variant.confidence:.3f}"]
        accuracy = _accuracy(result.learned.alone[number], count)
        latency = deepest_ms if last else None
        yield StepResult(variant.name, latency_ms=latency, notes=tuple(notes), **accuracy)


def _accuracy(share: float, count: int) -> dict[str, Any]:
    return {"metric": "top-1", "score": share, "interval": wilson(round(share * count), count)}


def _remarks(before: float, result: CalibrationResult, time: float) -> Iterator[str]:
    """Yield what somebody who reads only one line should know of the result.

    Args:
        before: accuracy of the model without early exits.
        result: with figures on examples that decided nothing.
        time: of an input, as a share of that of the deepest exit.
    """
    lost, chosen = result.lost, result.learned.chosen
    yield (
        f"the cascade {'gains' if lost < 0 else 'loses'} {100 * abs(lost):.2f} percentage points against its "
        f"deepest exit, and saves {1 - chosen.cost:.0%} of the multiply-adds"
    )
    if time >= 1.0:
        yield (
            f"the cascade is not faster here: {time:.2f} of the time of its deepest exit alone; on a small model "
            "starting each exit costs more than it saves"
        )
    if (moved := before - result.learned.full) > 0:
        yield f"the deepest exit loses {100 * moved:.2f} percentage points against the model before"
