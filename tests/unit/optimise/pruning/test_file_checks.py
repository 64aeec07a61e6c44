"""What is checked before a pruning: layers that a recipe names, the module, and the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="steps need the extra [optimise]")

from agent.compute.infer.litert import load_runtime

if load_runtime()[0] != "litert":
    pytest.skip("steps need LiteRT", allow_module_level=True)

from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.pruning.file import check_pruning
from agent.optimise.recipe import Recipe, parse_recipe
from agent.optimise.training.data import check_classes
from tests.support.float_models import classifier, float_file, pictures, write_examples, write_model
from tests.support.picture_cascade import SIDE, colour_cascade


def recipe_of(keys: str) -> Recipe:
    return parse_recipe(f"[prune]\n{keys}", "r.toml").recipe


def test_that_a_model_has_exits_is_told_first(tmp_path: Path) -> None:
    model = open_whole_model(str(colour_cascade(tmp_path, confidence=None)))
    different = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, SIDE, SIDE, 3))
    np.savez(tmp_path / "x.npz", x=different, y=np.arange(9) % 3)
    examples = read_examples(tmp_path / "x.npz", model)
    with pytest.raises(ModelError, match="has exits: prune the model first"):
        check_pruning(model, classifier(), examples, recipe_of(""))


def test_weights_of_another_training_are_told_before_the_work(tmp_path: Path) -> None:
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    examples = read_examples(write_examples(tmp_path / "x.npz"), model)
    other = classifier()
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(torch.randn_like(weights))
    recipe = recipe_of("structured = true")
    with pytest.raises(ModelError, match="made from this module and these weights"):
        check_pruning(model, other, examples, recipe)


@pytest.mark.parametrize("structured", ["true", "false"])
def test_a_frozen_network_is_refused(tmp_path: Path, structured: str) -> None:
    module = classifier()
    model = open_whole_model(str(write_model(tmp_path, float_file(module))))
    examples = read_examples(write_examples(tmp_path / "x.npz"), model)
    with pytest.raises(ModelError, match=r"can be pruned: all are frozen \(requires_grad = False\)"):
        check_pruning(model, module.requires_grad_(False), examples, recipe_of(f"structured = {structured}"))


@pytest.mark.parametrize("end", [torch.nn.Softmax(1), torch.nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_a_module_that_ends_in_probabilities_is_refused(tmp_path: Path, end: Any) -> None:
    module = torch.nn.Sequential(classifier(), end)
    model = open_whole_model(str(write_model(tmp_path, float_file(module))))
    examples = read_examples(write_examples(tmp_path / "x.npz"), model)
    for keys in ("", "structured = true"):
        with pytest.raises(ModelError, match="give the network without it"):
            check_pruning(model, module, examples, recipe_of(keys))


def test_examples_of_one_class_are_refused_before_they_wreck_a_model(tmp_path: Path) -> None:
    def examples(*classes: int) -> Examples:
        np.savez(tmp_path / "x.npz", x=pictures(len(classes)), y=np.array(classes))
        return read_examples(tmp_path / "x.npz", model)

    module, recipe = classifier(), recipe_of("")
    model = open_whole_model(str(write_model(tmp_path, float_file(module))))
    with pytest.raises(ModelError, match="all of one class"):
        check_pruning(model, module, examples(*[0] * 16), recipe)
    both = examples(*[0] * 15, 1)
    check_classes(both, both.take(range(8, 16)))
    with pytest.raises(ModelError, match="15 examples to learn from are all of one class"):
        check_classes(both, both.take(range(15)))
