"""Name the files and folders that a step reads, which its results must not replace."""

from __future__ import annotations

from pathlib import Path

from agent.optimise.recipe import read_recipe


def inputs_of(
    *, data: Path | None = None, recipe: Path | None = None, module: str = "", weights: Path | None = None
) -> list[Path]:
    """Return the paths that a step reads besides its model.

    Args:
        data: of the examples; None: the recipe may name them.
        recipe: its path.
        module: `path.py:factory`; empty: there is none.
        weights: of the module.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    if data is None and recipe is not None and (named := read_recipe(recipe).recipe.data.path):
        data = recipe.parent / named
    source = Path(module.rpartition(":")[0]) if module else None
    return [path for path in (data, recipe, source, weights) if path is not None]
