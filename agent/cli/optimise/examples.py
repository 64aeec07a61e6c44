"""Recipes and examples of the verbs of `vedette optimise`."""

from __future__ import annotations

from pathlib import Path

from agent.cli.output import tell
from agent.compute.manifest import Model
from agent.optimise.data import Examples, read_examples
from agent.optimise.inputs import examples_path
from agent.optimise.recipe import Recipe, RecipeFile, parse_recipe, read_recipe
from agent.optimise.source import learned_doubts
from agent.optimise.tune import split


def recipe_of(path: Path | None) -> RecipeFile:
    """Read a recipe; None: the defaults."""
    return read_recipe(path) if path else parse_recipe("", "")


def read_for_training(
    model: Model, data: Path | None, recipe_file: Path | None, recipe: Recipe, limit: int | None
) -> Examples:
    """Read the examples of a step that trains, and tell what is doubtful about them."""
    path = examples_path(data, recipe_file, recipe)
    examples = read_examples(path, model, limit=limit or recipe.data.limit or None)
    examples.remarks += learned_doubts(model, *split(examples, recipe.data.held_out))
    tell_examples(examples)
    return examples


def tell_examples(examples: Examples) -> None:
    """Say what the examples are, and what is doubtful about them."""
    for line in (examples.description, *examples.remarks):
        tell(line)
