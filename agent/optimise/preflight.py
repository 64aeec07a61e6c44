"""Check before the work what would otherwise end a step after hours of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.graph.torch_graph import Key, WeightedLayer
from agent.optimise.pruning.channels import chosen_groups
from agent.optimise.pruning.connections import prunable
from agent.optimise.pruning.file import check_same_outputs, settings_of
from agent.optimise.pruning.network import of_file
from agent.optimise.quantisation.allocation import fits_int4
from agent.optimise.quantise import LayerBits, fixed_bits
from agent.optimise.recipe import Method, RecipeFile
from agent.optimise.recipe.budget import Budget
from agent.optimise.tune import split
from agent.text import plural

_ALL = ("*",)
_BYTES = {4: 0.5, 8: 1.0, 32: 4.0}
"""Bytes of a weight by its bits."""


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
    if not budget.meets("size", least):
        narrow = "" if method in ("int8", "dynamic") else " with 4 bits in all layers that take them"
        raise ModelError(
            f"the budget {budget.told('size')} cannot be met: the weights alone take "
            f"{budget.amount('size', least)}{narrow}"
        )


def check_pruning(model: Model, module: Any | None, examples: Examples, recipe: RecipeFile) -> None:
    """Check a request to prune.

    Args:
        model: see `agent.optimise.pruning.file.prune_model`.
        module: see there; channels of a model without one are refused there.
        examples: see there.
        recipe: its patterns of layers are compared with the names that the network has.

    Raises:
        ModelError: the examples have no classes or are all of one, the network cannot be pruned, or module and
            model differ, as with weights of another training.
        ConfigError: a pattern matches no layer; with the place in the recipe. Or values do not go together.
    """
    if examples.kind != "classes":
        raise ModelError(f"{examples.description}: pruning trains, and needs examples with classes")
    check_classes(examples, split(examples, recipe.recipe.data.held_out)[0])
    recipe.check_prune()
    settings_of(recipe.recipe, model.manifest.input, examples.shape, len(examples))
    if not recipe.recipe.prune.structured:
        recipe.check_prune_layers(_layers(model, module), "layer")
    elif module is not None:
        recipe.check_prune_layers(_groups(module, examples.shape), "group of channels")
    if module is not None:
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


def _groups(module: Any, shape: tuple[int, ...]) -> list[str]:
    height, width, channels = shape
    return [group.name for group in chosen_groups(module, (channels, height, width), _ALL)]


def _layers(model: Model, module: Any | None) -> list[str]:
    return list(prunable(module) if module is not None else of_file(model.content, model.path).weights)
