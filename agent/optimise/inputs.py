"""Name the files that a step reads, which its results must not replace."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agent.errors import ConfigError, ModelError
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
        ConfigError: the recipe cannot be read, or has the name of a model's manifest.
    """
    if recipe is not None and (model := recipe.with_suffix(".tflite")).exists():
        raise ConfigError(f"{recipe}: has the name of the manifest of {model}: give the recipe another name")
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


def refuse_inside(files: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Check that nothing will be written into a folder that is read.

    Among examples, a chart would be one more of them, and a folder of checkpoints one more class.

    Args:
        files: files and folders to write.
        inputs: files and folders that are read; None is left out.

    Raises:
        ModelError: a file would lie in a folder, at any depth.
    """
    folders = [path for path in inputs if path is not None and path.is_dir()]
    for file in files:
        for folder in folders:
            if folder.resolve() in file.resolve().parents:
                raise ModelError(f"{file}: lies among the examples in {folder}: write it elsewhere")
