"""Which files a step reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.optimise.inputs import inputs_of


def test_a_recipe_that_would_be_taken_for_the_manifest_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").touch()
    with pytest.raises(ConfigError, match=r"net\.toml: has the name of the manifest of .*net\.tflite"):
        inputs_of(recipe=tmp_path / "net.toml")


def test_the_examples_of_the_recipe_are_read_unless_others_are_given(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\npath = "x.npz"\n')
    assert inputs_of(recipe=recipe) == [tmp_path / "x.npz", recipe]
    assert inputs_of(recipe=recipe, data=Path("y.npz")) == [Path("y.npz"), recipe]


def test_the_file_of_the_module_is_read() -> None:
    assert inputs_of(module="a/net.py:build", weights=Path("w.pt")) == [Path("a/net.py"), Path("w.pt")]
