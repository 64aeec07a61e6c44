"""Which files a step reads."""

from __future__ import annotations

from pathlib import Path

from agent.optimise.inputs import inputs_of


def test_the_examples_of_the_recipe_are_read_unless_others_are_given(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\npath = "x.npz"\n')
    assert inputs_of(recipe=recipe) == [tmp_path / "x.npz", recipe]
    assert inputs_of(recipe=recipe, data=Path("y.npz")) == [Path("y.npz"), recipe]


def test_the_file_of_the_module_is_read() -> None:
    assert inputs_of(module="a/net.py:build", weights=Path("w.pt")) == [Path("a/net.py"), Path("w.pt")]
