"""Pruning connections of a tiny network, and what a pruned one learns from the one that it is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")
from torch import nn

from agent.errors import ModelError
from agent.optimise.augment import Augmentation
from agent.optimise.pruning.rounds import (
    ConnectionPruning,
    anneal_settings,
    blended,
    cut,
    prunable,
    round_settings,
    sparsity_of,
    to_learn,
)
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import TrainingSettings, TrainingStep, evaluate, fit, learning_rate_factor, predict

torch.set_num_threads(1)

TRAINING = TrainingSettings(epochs=4, batch=32, learning_rate=0.2, augmentation=Augmentation(shift=1))
PLAIN = replace(TRAINING, augmentation=Augmentation(flip=False), temperature=2.0, label_smoothing=0.3)
SETTINGS = PruneRecipe(target=0.8, importance="gradient*weight", rounds=4, round_steps=2, anneal_epochs=1.0)


def network() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4)]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Flatten(), nn.Linear(16 * 4, 3))


def examples(count: int = 96, seed: int = 0) -> tuple[Any, Any]:
    """Pictures 8×8 of noise in which one of three channels is brighter, and its number."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pictures = random.integers(60, 160, (count, 8, 8, 3))
    pictures[np.arange(count), :, :, labels] += 40
    return pictures.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    module = network()
    fit(module, *examples(), TRAINING)
    return dict(module.state_dict())


def dense(trained: dict[str, Any]) -> Any:
    module = network()
    module.load_state_dict(trained)
    return module


def weights(module: Any) -> dict[str, bytes]:
    return {name: one.contiguous().numpy().tobytes() for name, one in module.state_dict().items()}


def pruned(
    module: Any, settings: PruneRecipe = SETTINGS, folder: Path | None = None, progress: Any = None
) -> ConnectionPruning:
    run = ConnectionPruning(module, *examples(), settings, TRAINING, progress)
    run.run(folder)
    return run


@pytest.mark.parametrize("importance", ["gradient*weight", "weight", "random"])
def test_the_target_is_met_exactly_and_what_is_gone_stays_gone(trained: Any, importance: Any) -> None:
    module = dense(trained)
    run = pruned(module, replace(SETTINGS, importance=importance))
    total = 16 * 27 + 64 * 3
    zeros = int((module[0].weight == 0).sum() + (module[6].weight == 0).sum())
    assert zeros == round(0.8 * total)
    assert run.gone == pytest.approx(0.8, abs=1 / total)
    assert set(run.layers) == {"0", "6"}
    assert run.layers["0"] == pytest.approx(float((module[0].weight == 0).float().mean()))


def test_a_pruned_module_is_right(trained: Any) -> None:
    assert evaluate(pruned(dense(trained)).module, *examples(seed=1)) > 0.9


def test_frozen_layers_stay(trained: Any) -> None:
    module = dense(trained)
    module[0].weight.requires_grad = False
    assert list(prunable(module)) == ["6"]
    pruned(module)
    assert not (module[0].weight == 0).any()


@pytest.mark.parametrize("stage", ["round", "anneal"])
def test_the_learning_rate_falls_to_zero_in_each_round_and_in_the_anneal(stage: str) -> None:
    settings = replace(SETTINGS, round_steps=6, structured=True, anneal_factor=0.5)
    found = round_settings(TRAINING, settings, 96, 3) if stage == "round" else anneal_settings(TRAINING, settings)
    total = round(found.epochs * 3)
    rates = [found.learning_rate * learning_rate_factor(step, total, found) for step in range(total)]
    first = TRAINING.learning_rate * (0.25 if stage == "round" else 0.5)
    assert total == (6 if stage == "round" else 3)
    assert rates == pytest.approx([first * (1 - step / total) for step in range(total)])


class StopError(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [1, 3, 6, 9, 10, 11])
@pytest.mark.parametrize("importance", ["gradient*weight", "random"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, importance: Any
) -> None:
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", -1.0)
    settings = replace(SETTINGS, importance=importance)
    steps = []

    def progress(_step: TrainingStep) -> None:
        steps.append(_step)
        if len(steps) == stopped_at:
            raise StopError

    whole = pruned(dense(trained), settings)
    with pytest.raises(StopError):
        pruned(dense(trained), settings, tmp_path, progress)
    torch.manual_seed(99)
    resumed = pruned(dense(trained), settings, tmp_path)
    assert weights(resumed.module) == weights(whole.module)
    assert resumed.layers == whole.layers


def test_the_checkpoint_of_another_run_is_refused(trained: Any, tmp_path: Path) -> None:
    pruned(dense(trained), folder=tmp_path)
    with pytest.raises(ModelError, match=r"target was 0\.8, is now 0\.7"):
        pruned(dense(trained), replace(SETTINGS, target=0.7), tmp_path)
    with pytest.raises(ModelError, match="weights at the start"):
        pruned(network(), folder=tmp_path)


def test_the_rounds_of_one_run_serve_another_anneal(trained: Any, tmp_path: Path) -> None:
    short = replace(SETTINGS, anneal_epochs=0.0)
    pruned(dense(trained), short, tmp_path)
    steps: list[TrainingStep] = []
    resumed = pruned(dense(trained), folder=tmp_path, progress=steps.append)
    assert weights(resumed.module) == weights(pruned(dense(trained)).module)
    assert len(steps) == 3


def test_a_cut_reaches_its_target_where_nothing_matters() -> None:
    masks = {"dead": torch.ones((10, 10), dtype=torch.bool)}
    cut(masks, {"dead": torch.zeros(10, 10)}, 0.5)
    assert int(masks["dead"].sum()) == 50


@example_settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0, 0.95), st.integers(0, 3), st.data())
def test_a_cut_takes_the_least_and_never_all_of_a_layer(
    sizes: list[int], target: float, levels: int, data: Any
) -> None:
    seed = data.draw(st.integers(0, 1000))
    draw = torch.Generator().manual_seed(seed)
    scores = {str(number): torch.rand(size, generator=draw) for number, size in enumerate(sizes)}
    if levels:
        scores = {name: (one * levels).round() for name, one in scores.items()}
    masks = {name: torch.ones_like(one, dtype=torch.bool) for name, one in scores.items()}
    cut(masks, scores, target)
    assert all(mask.any() for mask in masks.values())
    wanted = round(target * sum(sizes))
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert gone <= wanted
    if gone < wanted:
        assert all(int(mask.sum()) == max(1, -(-len(mask) // 50)) for mask in masks.values())
    least_kept = min(float(scores[name][mask].min()) for name, mask in masks.items())
    protected = {name: float(one.max()) for name, one in scores.items()}
    for name, mask in masks.items():
        lost = scores[name][~mask]
        assert not len(lost) or float(lost.max()) <= max(least_kept, protected[name])
    again = {name: mask.clone() for name, mask in masks.items()}
    cut(again, scores, target)
    assert sparsity_of(again) == sparsity_of(masks) or levels


def test_without_a_teacher_the_labels_are_learned(trained: Any) -> None:
    pictures, labels = examples()
    assert to_learn(dense(trained), pictures, labels, PLAIN, 0.0) == (labels, None)


def test_a_share_of_the_answers_is_learned_beside_smoothed_labels(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    answers = (predict(module, pictures, PLAIN.normalisation) / 2.0).softmax(1)
    smooth = torch.nn.functional.one_hot(torch.from_numpy(labels), 3) * 0.7 + 0.1
    torch.testing.assert_close(blended(module, pictures, labels, PLAIN, 0.25), 0.75 * smooth + 0.25 * answers)
    torch.testing.assert_close(blended(module, pictures, labels, PLAIN, 1.0), answers)


def test_where_pictures_are_mirrored_the_answers_to_both_count(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    settings = replace(PLAIN, augmentation=Augmentation(flip=True))
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    wanted = blended(module, pictures, labels, settings, 1.0)
    torch.testing.assert_close(wanted, blended(module, mirrored, labels, settings, 1.0))
    assert not torch.allclose(wanted, blended(module, pictures, labels, PLAIN, 1.0))


def test_the_loss_of_a_batch_is_the_cross_entropy_to_its_rows(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    wanted = blended(module, pictures, labels, PLAIN, 0.5)
    rows, objective = to_learn(module, pictures, labels, PLAIN, 0.5)
    assert objective is not None
    assert rows.tolist() == list(range(len(labels)))
    outputs = torch.tensor([[3.0, -3.0, 0.0], [1.0, 1.0, 2.0]])
    found = objective(outputs, None, torch.tensor([2, 1]))
    logs = (outputs / PLAIN.temperature).log_softmax(1)
    assert float(found) == pytest.approx(float(-(logs * wanted[[2, 1]]).sum(1).mean()))


def test_a_class_that_the_module_does_not_have_is_an_error(trained: Any) -> None:
    pictures, labels = examples()
    with pytest.raises(ModelError, match="there is a class 3, but the module has 3"):
        blended(dense(trained), pictures, labels + 1, PLAIN, 0.5)


def test_connections_go_with_a_teacher(trained: Any) -> None:
    run = pruned(dense(trained), replace(SETTINGS, teacher=0.5))
    assert evaluate(run.module, *examples(seed=1)) > 0.85
