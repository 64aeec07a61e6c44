"""Check before the work what would otherwise end a step after hours of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent.compute.decode.completion import PROBABILITIES, facts_of
from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.data.layouts import FoundData
from agent.optimise.graph.torch_graph import Key, WeightedLayer
from agent.optimise.pruning.channels import trained_groups
from agent.optimise.pruning.connections import frozen, prunable
from agent.optimise.pruning.file import check_no_exits, check_same_outputs, preparation_of, settings_of
from agent.optimise.pruning.network import of_file, of_module
from agent.optimise.quantisation.allocation import fits_int4
from agent.optimise.quantise import LayerBits, fixed_bits, sized_file
from agent.optimise.recipe import Method, RecipeFile
from agent.optimise.recipe.budget import Budget
from agent.optimise.tune import split
from agent.text import plural

_BYTES = {4: 0.5, 8: 1.0, 32: 4.0}
"""Bytes of a weight by its bits."""
_FILES: Mapping[Method, str] = {
    "int8": "INT8 takes about",
    "dynamic": "dynamic INT8 takes about",
    "int4": "INT4 takes about",
    "mixed": "4 bits in all layers that take them give about",
}
_SURE = 0.99
"""Share of a size told by noise that a file has at least: with real examples more of its scales may be equal, and
those are stored once."""
_NARROW: tuple[Method, ...] = ("mixed", "int4")
_TRY, _PRUNE = "try the method {}", "prune channels, or take a smaller network"


def check_layers(
    layers: Mapping[Key, WeightedLayer], method: Method, budget: Budget, layer_bits: LayerBits | None = None
) -> None:
    """Check a request to quantise.

    Args:
        layers: of the model, from `agent.optimise.quantise.read_layers`.
        method: of the recipe.
        budget: that the result must meet.
        layer_bits: None: no bits are fixed.

    Raises:
        ModelError: a layer that is to have 4 bits cannot have them, or the weights alone are larger than the
            budget. ConfigError: a fixed bit width matches no layer.
    """
    fixed = fixed_bits(layers, layer_bits)
    least = 0.0
    for layer in layers.values():
        usual = 4 if method in ("int4", "mixed") and fits_int4(layer) else 8
        least += layer.size * _BYTES[fixed.get(layer.key, usual)]
    if budget.meets("size", least):
        return
    narrow = method in ("int4", "mixed")
    spared = sum(0.5 * layer.size for key, layer in layers.items() if key not in fixed and fits_int4(layer))
    hint = _TRY.format("mixed") if not narrow and budget.meets("size", least - spared) else _PRUNE
    raise ModelError(
        f"the budget {budget.told('size')} cannot be met: the weights alone take "
        f"{budget.amount('size', least)}{' with 4 bits in all layers that take them' if narrow else ''}: {hint}"
    )


def check_file_size(
    model: Model,
    content: bytes,
    method: Method,
    budget: Budget,
    layer_bits: LayerBits | None = None,
    finish: Callable[[bytes], bytes] = bytes,
) -> None:
    """Check a request to quantise: that the file will not be too large.

    Args:
        model: with the manifest.
        content: of the float file that is quantised.
        method: of the recipe.
        budget: that the result must meet.
        layer_bits: None: no bits are fixed.
        finish: makes the file that is written of the quantised one.

    Raises:
        ModelError: it will be. The message names a method whose file would not be.
    """
    if budget.size is None:
        return

    def size(one: Method) -> int:
        return len(finish(sized_file(content, _noise(model), one, layer_bits)))

    try:
        if budget.meets("size", _SURE * (found := size(method))):
            return
        less = [one for one in _NARROW if one != method and budget.meets("size", _SURE * size(one))]
    except ModelError:
        return  # examples that fit the model may do
    hint = _TRY.format(" or ".join(less)) if less else _PRUNE
    raise ModelError(
        f"the budget {budget.told('size')} cannot be met: {_FILES[method]} {budget.amount('size', found)}: {hint}"
    )


def _noise(model: Model) -> list[Examples]:
    """Return an example of noise for each variant of a model: the size of a file does not depend on them."""
    found, random, sound = [], np.random.default_rng(0), model.manifest.audio is not None
    file = read_modelfile(model.content)
    for variant in [one.name for one in model.manifest.variants] or [""]:
        for spec in file.ends(model.manifest.chain(variant)[0].signature)[0][:1]:
            is_picture = len(spec.shape) == 4 and spec.shape[-1] in (1, 3) and not sound
            noise = random.normal(size=spec.shape).astype(np.float32)
            data = FoundData(noise.astype(np.uint8) if is_picture else noise, "noise")
            found.append(Examples(data, spec.shape[1:], model.manifest.input, "noise", sound=sound))
    return found


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


def check_classes(examples: Examples, seen: Examples) -> None:
    """Check that a training can tell classes apart.

    Args:
        examples: all, for the message.
        seen: those that it learns from.

    Raises:
        ModelError: they are all of one class.
    """
    if len(np.unique(np.asarray(examples.labels))) < 2:
        raise ModelError(f"{examples.description}: all of one class: training needs two classes or more")
    if len(np.unique(np.asarray(seen.labels))) < 2:
        raise ModelError(
            f"{examples.description}: the {plural(len(seen), 'example')} to learn from are all of one class: "
            "give more of the others, or a smaller `held_out` in [data] of the recipe"
        )


def check_logits(content: bytes, network: str) -> None:
    """Check that a classifier which is to be trained gives logits.

    The loss takes a softmax, and so does the decoder of the manifest that a training writes.

    Args:
        content: of its file.
        network: for the message.

    Raises:
        ModelError: it ends in a softmax or a sigmoid.
    """
    if facts_of(content, read_modelfile(content)).endings[0] in PROBABILITIES:
        raise ModelError(
            f"{network}: ends in a softmax or a sigmoid: give the network without it; training and the board "
            "take the softmax themselves"
        )


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
