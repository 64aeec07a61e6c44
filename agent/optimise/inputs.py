"""Name the files that a step reads, which its results must not replace; check that its checkpoint has room."""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.errors import ConfigError, StorageError
from agent.optimise.recipe import Recipe, read_recipe

_COPIES = 2
"""Least number of copies of a model's weights in a checkpoint: the trained ones, and what the optimiser keeps."""


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


def check_room(folder: Path, weights: int) -> None:
    """Check before a training that its checkpoint fits on the disk.

    Args:
        folder: of the checkpoint; it exists.
        weights: of what is trained, bytes.

    Raises:
        StorageError: too little is free.
    """
    needed, free = _COPIES * weights, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free / 1e6:.3g} MB are free, and a checkpoint takes {needed / 1e6:.3g} MB or more: make "
            "room, or name another folder with --work"
        )
