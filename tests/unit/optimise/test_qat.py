"""Training with the rounding in place: it mends, its file computes the same, and an interrupted run goes on."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from msgspec.structs import replace

from agent.errors import CheckpointError, DivergedError, ModelError, StorageError
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.qat import objective, train_quantised
from agent.optimise.quantise import QuantisedModel, quantise
from agent.optimise.recipe import QatRecipe, QuantiseRecipe
from tests.support.float_models import classifier, float_file, pictures, write_examples, write_model

torch.set_num_threads(1)
BRIEF = QatRecipe(steps=14, batch=16)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    model = open_whole_model(str(write_model(folder, float_file(classifier()))))
    return read_examples(write_examples(folder / "examples.npz"), model)


@pytest.fixture(scope="module")
def found(examples: Examples) -> QuantisedModel:
    return quantise(float_file(classifier()), [examples], QuantiseRecipe(method="int8", examples=32))


def trained(
    found: QuantisedModel,
    examples: Examples,
    recipe: QatRecipe = BRIEF,
    checkpoint: Path | None = None,
    stop_at: str = "never",
) -> QuantisedModel:
    def progress(line: str) -> None:
        if stop_at in line:
            raise KeyboardInterrupt

    return train_quantised(found, examples, recipe, checkpoint=checkpoint, progress=progress)


def test_training_undoes_damage(examples: Examples) -> None:
    content = float_file(classifier(sharpness=30.0))
    found = quantise(content, [examples], QuantiseRecipe(method="int8", examples=32))
    damaged, told = dict(found.rounded), list[str]()
    key = found.quantiser.graphs[0].layers[3].key
    weights = damaged[key].weights
    assert weights is not None
    damaged[key] = damaged[key]._replace(weights=weights._replace(integers=weights.integers // 16 * 16))
    recipe = QatRecipe(steps=40, batch=32, teacher=1.0, learning_rate=0.5)
    train_quantised(found._replace(rounded=damaged), examples, recipe, progress=told.append)
    losses = [float(line.rpartition(" ")[2]) for line in told]
    assert np.mean(losses[-2:]) < losses[0] / 2


def test_training_leaves_the_model_that_it_started_from(found: QuantisedModel, examples: Examples) -> None:
    assert trained(found, examples).content != found.content
    assert found.quantiser.file(found.rounded) == found.content


def test_an_interrupted_run_ends_with_the_same_bytes(
    found: QuantisedModel, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(found, examples)
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(found, examples, checkpoint=tmp_path / "qat", stop_at="step 11")
    resumed = trained(found, examples, checkpoint=tmp_path / "qat")
    assert resumed.content == whole.content


def test_a_checkpoint_of_another_run_is_refused(
    found: QuantisedModel, examples: Examples, tmp_path: Path
) -> None:
    trained(found, examples, checkpoint=tmp_path / "qat")
    with pytest.raises(ModelError, match=r"another run \(qat learning_rate was 0.02, is now 0.01\)"):
        trained(found, examples, replace(BRIEF, learning_rate=0.01), checkpoint=tmp_path / "qat")


def test_a_checkpoint_of_other_classes_or_pictures_is_refused(
    found: QuantisedModel, examples: Examples, tmp_path: Path
) -> None:
    def changed(**values: NDArray[Any]) -> Examples:
        content: dict[str, Any] = {"x": pictures(64), "y": np.arange(64) % 2, **values}
        np.savez(tmp_path / "examples.npz", **content)
        return read_examples(tmp_path / "examples.npz", model)

    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    recipe = replace(BRIEF, steps=1)
    trained(found, changed(), recipe, checkpoint=tmp_path / "qat")
    with pytest.raises(CheckpointError, match=r"another run \(labels was 64, CRC"):
        trained(found, changed(y=1 - np.arange(64) % 2), recipe, checkpoint=tmp_path / "qat")
    with pytest.raises(CheckpointError, match=r"another run \(pictures was \[64, .*CRC"):
        trained(found, changed(x=pictures(64, seed=1)), recipe, checkpoint=tmp_path / "qat")
    trained(found, changed(), recipe, checkpoint=tmp_path / "qat")


def test_examples_of_one_class_are_refused_unless_the_float_model_alone_teaches(
    found: QuantisedModel, tmp_path: Path
) -> None:
    np.savez(tmp_path / "examples.npz", x=pictures(64), y=np.zeros(64, np.int64))
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    alike = read_examples(tmp_path / "examples.npz", model)
    with pytest.raises(ModelError, match=r"64 examples to learn from are all of one class: .*teacher = 1\.0"):
        trained(found, alike)
    trained(found, alike, replace(BRIEF, steps=1, teacher=1.0))


def test_a_sigmoid_answers_for_each_class_by_itself() -> None:
    graph: Any = SimpleNamespace(
        operations=[SimpleNamespace(kind="LOGISTIC")], outputs=[0], shape=lambda _: (1, 3)
    )
    labels, both = torch.tensor([0]), torch.tensor([[0.9, 0.9, 0.1]])
    one = torch.tensor([[0.9, 0.1, 0.1]])

    def loss(found: Any, teacher: float, known: Any = labels) -> float:
        return float(objective(graph, [found], [both], known, teacher))

    assert loss(both, 1.0, None) == pytest.approx(0.0, abs=1e-6)
    assert loss(one, 1.0) == pytest.approx(0.9 * math.log(9) - 0.1 * math.log(9), abs=1e-5)
    smooth = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]
    cross = -sum(
        y * math.log(p) + (1 - y) * math.log(1 - p) for y, p in zip(smooth, (0.9, 0.1, 0.1), strict=True)
    )
    assert loss(one, 0.0) == pytest.approx(cross, abs=1e-5)
    assert loss(one, 0.0) < loss(both, 0.0)


def test_a_training_that_diverges_leaves_no_checkpoint(
    found: QuantisedModel, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.optimise.qat.objective", lambda *given: objective(*given) * math.nan)
    with pytest.raises(DivergedError, match="lower"):
        trained(found, examples, checkpoint=tmp_path / "qat")
    assert list(tmp_path.iterdir()) == []


def test_without_a_disk_for_the_checkpoint_no_step_is_done(
    found: QuantisedModel, examples: Examples, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        trained(found, examples, checkpoint=tmp_path / "nowhere" / "qat", stop_at="step")
