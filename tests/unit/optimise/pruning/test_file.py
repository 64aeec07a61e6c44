"""Pruning a model file through the module that it was imported from."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")

from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import InputManifest, Model
from agent.errors import ModelError
from agent.models.library import open_manifest, open_whole_model
from agent.optimise.augment import Augmentation
from agent.optimise.data import read_examples
from agent.optimise.evaluate import score, time_ms
from agent.optimise.pruning.file import (
    _remarks,
    _rounded,
    check_same_classes,
    emitted,
    prune_model,
    training_inputs,
    training_settings,
)
from agent.optimise.recipe import DataRecipe, PruneRecipe, Recipe, TrainRecipe
from agent.optimise.report import StepResult
from agent.optimise.train import fit
from tests.unit.optimise.pruning.test_channels import network
from tests.unit.optimise.pruning.test_rounds import TRAINING, examples
from tests.unit.optimise.sound_model import write_sound

if load_runtime()[0] != "litert":
    pytest.skip("pruned models are run by LiteRT", allow_module_level=True)

PREPARATION = InputManifest(mean=(128.0, 128.0, 128.0), std=(64.0, 64.0, 64.0))
MANIFEST = """
file = "model.tflite"
[input]
mean = [128.0, 128.0, 128.0]
std = [64.0, 64.0, 64.0]
[output]
decoder = "classify"
labels = ["red", "green", "blue"]
"""
RECIPE = Recipe(
    prune=PruneRecipe(target=0.5, rounds=2, round_steps=2, anneal_epochs=1.0),
    train=TrainRecipe(batch=32, learning_rate=0.2),
    data=DataRecipe(held_out=0.3),
)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.pruning.file.time_ms", partial(time_ms, rounds=2))


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    module = network()
    fit(module, *examples(), TRAINING)
    return dict(module.state_dict())


def module_of(trained: dict[str, Any]) -> Any:
    module = network()
    module.load_state_dict(trained)
    return module.eval()


@pytest.fixture
def model(trained: dict[str, Any], tmp_path: Path) -> Model:
    module = module_of(trained)
    content = emitted(module, (8, 8, 3), PREPARATION)
    (tmp_path / "model.tflite").write_bytes(content)
    (tmp_path / "model.toml").write_text(MANIFEST)
    path = str(tmp_path / "model.tflite")
    return Model(content, hashlib.sha256(content).hexdigest(), open_manifest(path), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pictures, labels = examples(120, seed=3)
    np.savez(tmp_path / "data.npz", x=pictures, y=labels)
    return tmp_path / "data.npz"


def test_connections_are_zero_in_the_file_and_the_report_says_so(model: Model, trained: Any, data: Path) -> None:
    shown: list[str] = []
    found = read_examples(data, model)
    result = prune_model(model, module_of(trained), found, RECIPE, command="it", progress=shown.append)
    assert score(result.content, found, model.manifest).value > 0.85
    assert [step.name for step in result.report.steps] == ["before", "prune"]
    assert result.report.steps[1].notes[0] == "50.0% of the connections are gone, by weight"
    assert result.report.sha256_after == hashlib.sha256(result.content).hexdigest()
    assert shown[0].startswith("pruning 17%, loss ")
    assert shown[-1].startswith("pruning 100%, loss ")


def test_a_file_without_half_of_its_channels_is_smaller(model: Model, trained: Any, data: Path) -> None:
    recipe = replace(RECIPE, prune=replace(RECIPE.prune, structured=True))
    result = prune_model(model, module_of(trained), read_examples(data, model), recipe)
    assert len(result.content) < len(model.content)
    assert result.report.steps[1].size == len(result.content)
    assert "20.0% of the channels are gone, not 50%: what stays of a layer" in str(result.report.remarks)


@pytest.mark.parametrize(("gone", "is_structured"), [(0.503, True), (0.2, False)])
def test_what_was_removed_as_asked_for_is_not_told(gone: float, is_structured: bool) -> None:
    assert not list(_rounded(gone, PruneRecipe(target=0.5, structured=is_structured)))


def with_end(module: Any, end: Any) -> bytes:
    """Return the file of a module with an activation at its end."""
    whole = torch.nn.Sequential(module, end)
    return emitted(whole, (8, 8, 3), PREPARATION)


@pytest.mark.parametrize(("stated", "keys"), [("", {}), ("false", {"output": {"options": {"logits": True}}})])
def test_the_manifest_says_what_the_module_gives_where_the_file_had_a_softmax(
    trained: Any, tmp_path: Path, data: Path, stated: str, keys: dict[str, Any]
) -> None:
    module, path = module_of(trained), tmp_path / "model.tflite"
    path.write_bytes(with_end(module, torch.nn.Softmax(1)))
    (tmp_path / "model.toml").write_text(MANIFEST + (stated and f"[output.options]\nlogits = {stated}\n"))
    soft = open_whole_model(str(path))
    assert prune_model(soft, module, read_examples(data, soft), RECIPE).keys == keys


def test_sound_is_trained_as_it_is(tmp_path: Path) -> None:
    module = write_sound(tmp_path, 64)
    model = open_whole_model(str(tmp_path / "net.toml"))
    data = read_examples(tmp_path / "data.npz", model)
    check_same_classes(module, model, data)
    before, _ = prune_model(model, module, data, RECIPE).report.steps
    assert before.score == 1.0
    assert np.array_equal(training_inputs(data, InputManifest()), np.load(tmp_path / "data.npz")["x"])
    settings = training_settings(RECIPE, InputManifest(), data.shape, 64, pictures=False)
    assert settings.augmentation == Augmentation(shift=0, flip=False)


def test_the_pictures_are_those_that_the_model_takes(model: Model, data: Path) -> None:
    found = read_examples(data, model)
    assert np.array_equal(training_inputs(found, PREPARATION), np.load(data)["x"])
    bgr = replace(model, manifest=replace(model.manifest, input=replace(PREPARATION, order="bgr")))
    assert np.array_equal(training_inputs(read_examples(data, bgr), PREPARATION), np.load(data)["x"][..., ::-1])


def test_another_module_is_refused_before_training(model: Model, trained: Any, data: Path) -> None:
    other = module_of(trained)
    with torch.no_grad():
        other[-1].weight.neg_()
    with pytest.raises(ModelError, match="another class than the module"):
        prune_model(model, other, read_examples(data, model), RECIPE)


def test_a_module_that_prefers_the_class_of_the_first_examples_is_refused(
    model: Model, trained: Any, tmp_path: Path
) -> None:
    pictures, labels = examples(240, seed=3)
    order = np.argsort(labels, kind="stable")
    np.savez(tmp_path / "sorted.npz", x=pictures[order], y=labels[order])
    found = read_examples(tmp_path / "sorted.npz", model)
    other = module_of(trained)
    with torch.no_grad():
        other[-1].bias[0] += 1000
    with pytest.raises(ModelError, match="another class than the module"):
        check_same_classes(other, model, found)


def test_a_mean_for_each_channel_that_the_manifest_has_as_one_is_the_same(
    model: Model, trained: Any, data: Path
) -> None:
    found, module = read_examples(data, model), module_of(trained)
    stated = replace(PREPARATION, mean=(124.0, 130.0, 130.0), std=(65.0, 64.0, 63.0))
    content = emitted(module, (8, 8, 3), stated)
    assert content != model.content
    check_same_classes(module, replace(model, content=content), found)


def test_a_loss_and_a_file_that_is_no_better_are_remarked() -> None:
    before = StepResult("before", "top-1", 0.9, size=1000, latency_ms=2.0)
    worse = replace(before, score=0.8)
    told = list(_remarks(before, worse))
    assert told[0] == "top-1 fell by 10.0 percentage points: 90.0% before, 80.0% after"
    assert "neither smaller nor faster" in told[1]
    assert list(_remarks(before, replace(before, size=500))) == []


def test_examples_without_classes_are_refused(model: Model, trained: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=examples()[0])
    with pytest.raises(ModelError, match="needs examples with classes"):
        prune_model(model, module_of(trained), read_examples(tmp_path / "plain.npz", model), RECIPE)
