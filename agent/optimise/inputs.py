"""Name the files and folders that a step reads, which its results must not replace."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError
from agent.optimise.recipe import Recipe, read_recipe


def inputs_of(
    *, data: Path | None = None, recipe: Path | None = None, module: str = "", weights: Path | None = None
) -> list[Path]:
    """Return the paths that a step reads besides its model.

    Args:
        data: of the examples; None: the recipe may name them.
        recipe: its path.
        module: `path.py:factory`, or the name of a network; empty: there is none.
        weights: of the module.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    if data is None and recipe is not None and (named := read_recipe(recipe).recipe.data.path):
        data = recipe.parent / named
    source = Path(module.rpartition(":")[0]) if ":" in module else None
    return [path for path in (data, recipe, source, weights) if path is not None]


def examples_path(data: Path | None, recipe_file: Path | None, recipe: Recipe) -> Path:
    """Return where the examples of a step are: at `data`, or where the recipe names them, beside itself.

    Raises:
        ConfigError: neither names any.
    """
    if data is not None:
        return data
    if not recipe.data.path or recipe_file is None:
        raise ConfigError("there are no examples: give --data, or `path` in [data] of the recipe")
    return recipe_file.parent / recipe.data.path
