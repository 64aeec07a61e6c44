"""Which files a step reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.errors import ConfigError
from agent.optimise.inputs import inputs_of, prune_copies, trained_size, tune_copies
from agent.optimise.recipe import PruneRecipe


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


def test_checkpoints_of_trainings_stay_while_the_next_one_is_replaced() -> None:
    channels = PruneRecipe(structured=True, target=0.5)
    assert tune_copies(0, None) == 0.0
    assert tune_copies(1, None) == 3.0 + 3.0
    assert tune_copies(2, None) == 3.0 + 3.0 + 3.0
    assert tune_copies(0, channels) == prune_copies(channels)
    assert tune_copies(2, channels) == 6.0 + 0.5 * (1.0 + 2.0) + 0.5 * 6.0, "rounds, anneal, and what is left"
    whole = PruneRecipe(structured=True, layers=("a*",), anneal_epochs=0.0)
    assert tune_copies(1, whole) == 3.0 + 1.0 + 6.0


@pytest.mark.skipif(load_runtime()[0] != "litert", reason="models are written with LiteRT's schema")
def test_float16_weights_are_trained_as_float32() -> None:
    pytest.importorskip("torch", reason="models are made with the extra [optimise]")
    from tests.support.float_models import classifier, float_file, halved

    whole = float_file(classifier())
    half = halved(whole)
    assert len(half) < len(whole)
    assert len(half) < trained_size(whole) <= trained_size(half)
    assert trained_size(whole) > len(whole) > read_modelfile(whole).weights["float32"]
    assert trained_size(b"no model") == 8
