"""Recipes: what is read, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.optimise.recipe import parse_recipe, read_recipe

LAYERS = ["stem/conv", "block1/conv1", "block1/conv2", "head/dense"]


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[quantise]\nmethod = "int4"\nbudget = "size<2.8MB"\nlayers = [{match = "*", bits = 8}]\n')
    found = read_recipe(path)
    assert found.recipe.quantise.method == "int4"
    assert found.layer_bits(LAYERS) == dict.fromkeys(LAYERS, 8)
    with pytest.raises(ConfigError, match="recipe"):
        read_recipe(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        ('[quantise]\n\nmethod = "int5"', 3, ("quantise.method", "int4")),
        ("[prune]\ntargets = 0.5", 2, ("prune.targets", "'target'")),
        ("[prune]\ntarget = 1.0", 2, ("prune.target", "< 1.0")),
        ("[qat]\nsteps = 0", 2, ("qat.steps", "1")),
        ('[quantise]\nbudget = "size<2.8"', 2, ("[quantise] budget", "MB")),
        ('[train]\nepochs = "many"', 2, ("train.epochs", "a number")),
        ("[quantize]", 1, ("quantize", "'quantise'")),
        ("[quantise\n", 1, ("not TOML",)),
        ('[quantise]\nlayers = [{match = "", bits = 8}]', 2, ("quantise.layers", "length >= 1")),
        ("[data]\nheld_out = 0.0", 2, ("data.held_out",)),
        ("[train]\nepochs = inf", 2, ("train.epochs",)),
        ("[train]\nseed = 99999999999999999999", 2, ("train.seed",)),
        ("[prune]\nanneal_epochs = inf", 2, ("prune.anneal_epochs",)),
        ("[qat]\nlearning_rate = 1e30", 2, ("qat.learning_rate",)),
        ("[train]\nlearning_rate = 1e-300", 2, ("train.learning_rate",)),
        ("[search]\nrungs = [inf]", 2, ("search.rungs",)),
        ("[search]\nmean = nan", 2, ("search.mean",)),
        ("[search.parameters]\nwidth = {low = nan, high = 16}", 2, ("width", "finite")),
        ("[search.parameters]\nwidth = {low = 1.0, high = inf}", 2, ("width", "finite")),
        ("[search.parameters]\nwidth = {choices = [1, nan]}", 2, ("width", "finite")),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, facts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_recipe(text, "r.toml")
    assert str(error.value).startswith(f"r.toml:{line}: ")
    for fact in facts:
        assert fact in str(error.value)


def test_the_last_rule_that_matches_counts() -> None:
    rules = '[quantise]\nlayers = [\n{match = "block1/*", bits = 4},\n{match = "*conv2", bits = 8}]'
    assert parse_recipe(rules, "r").layer_bits(LAYERS) == {"block1/conv1": 4, "block1/conv2": 8}


def test_a_rule_that_matches_nothing_is_an_error_with_near_names() -> None:
    found = parse_recipe('[quantise]\nlayers = [{match = "block1/cnv1", bits = 4}]', "r.toml")
    with pytest.raises(ConfigError, match=r"r\.toml:2: .*'block1/cnv1'.*near: 'block1/conv1'"):
        found.layer_bits(LAYERS)
    with pytest.raises(ConfigError, match="no layer"):
        found.layer_bits([])
