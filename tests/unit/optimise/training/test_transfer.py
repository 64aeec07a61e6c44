"""New classes for a network that knows pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.optimise.factory import load_factory
from agent.optimise.graph.from_torch import export
from agent.optimise.recipe import parse_recipe
from agent.optimise.train import TrainingStep, evaluate
from agent.optimise.training.classifier import TrainRequest, read_pictures, train_classifier
from agent.optimise.training.networks import LITE0, PretrainedClassifier
from agent.optimise.training.transfer import regression, transfer
from tests.unit.optimise.training.test_classifier import pictures

if load_runtime()[0] != "litert":
    pytest.skip("trained models are run by LiteRT", allow_module_level=True)

RECIPE = parse_recipe("", "").recipe


def test_the_last_layer_learns_and_the_blocks_before_stay() -> None:
    x, y = pictures(48, 64, classes=3)
    network, steps = PretrainedClassifier(3).eval(), list[TrainingStep]()
    before = {name: one.clone() for name, one in network.state_dict().items() if not name.startswith("last")}
    transfer(network, x, y, RECIPE.train, 0.0, progress=steps.append)
    assert evaluate(network, x, y) > 0.9
    assert all(torch.equal(one, network.state_dict()[name]) for name, one in before.items())
    assert [one.done for one in steps] == list(range(1, 97))  # each picture, and its mirror image


def test_the_last_blocks_learn_too_and_their_norms_stay() -> None:
    x, y = pictures(48, 64, classes=3)
    network = PretrainedClassifier(3).eval()
    before = {name: one.clone() for name, one in network.state_dict().items()}
    transfer(network, x, y, RECIPE.train, 2.0)
    assert evaluate(network, x, y) > 0.9
    changed = {name for name, one in before.items() if not torch.equal(one, network.state_dict()[name])}
    assert any(name.startswith("tail") for name in changed)
    assert not any(name.startswith("body") or "running" in name for name in changed)


def test_a_trained_file_can_be_loaded_again(tmp_path: Path) -> None:
    x, y = pictures(48, 64)
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["left", "right"])
    request = TrainRequest(LITE0, shape=(64, 64, 3), folder=tmp_path)
    examples, names = read_pictures(tmp_path / "data.npz", request, RECIPE)
    lines: list[str] = []
    found = train_classifier(examples, names, request, RECIPE, tell=lines.append)
    assert "the last layer alone" in lines[0]
    assert read_modelfile(found.content).subgraphs
    (tmp_path / "net.pt").write_bytes(found.weights)
    module = load_factory(LITE0, tmp_path / "net.pt").eval()
    assert export(module, (64, 64, 3), mean=128.0, std=64.0).content == found.content


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_a_regression_tells_apart_what_one_feature_tells(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(20 * classes, 8)).astype(np.float32)
    labels: Any = np.arange(len(features)) % classes
    features[np.arange(len(features)), labels] += 20
    last = regression(torch.from_numpy(features), labels, classes)
    with torch.no_grad():
        assert np.array_equal(last(torch.from_numpy(features)).argmax(1).numpy(), labels)


def test_a_feature_that_hardly_changes_gets_no_large_weight() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 8)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    features[:, 1] = 1e-5 * labels
    weight = regression(torch.from_numpy(features), labels, 2).folded()[0].detach().abs()
    assert weight[:, 1].max() < weight[:, 0].max()
