"""Name the files that a step reads, which its results must not replace; check that its checkpoint has room."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.compute.tflite.read import read_modelfile
from agent.errors import ConfigError, ModelError, StorageError
from agent.optimise.recipe import PruneRecipe, Recipe, read_recipe

ENTRY = 512
"""Bytes that a tensor takes in a checkpoint besides its numbers, at most."""
# Copies of the weights that the checkpoints of a step take at most: while one is replaced, it is there twice.
FIT_COPIES = 2 * 2.0
"""Copies for a training: the weights, and the momentum of each."""
AVERAGED_COPIES = 2 * 3.0
"""Copies for a training that looks ahead, as that of a detector: the average of the weights, too."""
QAT_COPIES = 2 * 3.0
"""Copies for quantisation-aware training: the weights, and two numbers of the optimiser for each."""
_ROUNDS_COPIES = 1 + 1 + 0.25
"""Copies for the rounds of connections: the weights, the sums of importance, and a byte of the mask for each."""


def prune_copies(prune: PruneRecipe) -> float:
    """Return how many copies of a model's weights the checkpoints of a pruning take at most.

    That of the rounds is replaced after each, and stays beside that of the anneal. What is left of channels is
    counted by one of the two axes of their weights; layers that no pattern names stay whole.
    """
    anneal = FIT_COPIES if prune.anneal_epochs else 0.0
    if not prune.structured:
        return _ROUNDS_COPIES + max(_ROUNDS_COPIES, anneal)
    return max(2.0, (1 + anneal) * _left(prune))


def _left(prune: PruneRecipe) -> float:
    return 1 - prune.target if prune.layers == ("*",) else 1.0


def tune_copies(trained: int, prune: PruneRecipe | None) -> float:
    """Return how many copies of a model's weights the checkpoints of `tune` take at most; they stay to its end.

    Args:
        trained: number of quantised models that are trained, one after the other.
        prune: how channels are pruned afterwards, with a training of what is left if one was trained; None: they
            are not.
    """
    kept, replaced = trained * QAT_COPIES / 2, QAT_COPIES / 2
    if prune is None:
        return kept + replaced if trained else 0.0
    pruned = (1 + (FIT_COPIES / 2 if prune.anneal_epochs else 0.0)) * _left(prune)
    again = pruned + QAT_COPIES * _left(prune) if trained else 0.0
    return kept + max(replaced if trained else 0.0, prune_copies(prune), again)


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


def trained_size(content: bytes) -> int:
    """Return the bytes of a model's weights in a checkpoint: float32 whatever the file has, with their names."""
    try:
        file = read_modelfile(content)
    except ModelError:  # it is told where the model is opened
        return len(content)
    constants = {tensor.buffer for graph in file.subgraphs for tensor in graph.tensors if tensor.size}
    return len(content) + file.weights.get("float16", 0) + ENTRY * len(constants)


def check_room(folder: Path, weights: int, copies: float, names: Collection[str]) -> None:
    """Check before a training that its checkpoints fit on the disk. Those of an interrupted run are replaced.

    Args:
        folder: of the checkpoint; it exists.
        weights: of what is trained, bytes.
        copies: of them that the checkpoints take.
        names: of the checkpoints; those of other runs stay.

    Raises:
        StorageError: too little is free.
    """
    there = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    needed, free = copies * weights - there, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free / 1e6:.3g} MB are free, and the checkpoints take up to {needed / 1e6:.3g} MB: make "
            "room, or name another folder with --work"
        )
