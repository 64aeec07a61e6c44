"""Training on pictures that a tiny network can learn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")
from torch import nn

from agent.errors import ModelError, StorageError
from agent.optimise.augment import Augmentation
from agent.optimise.train import (
    TrainingSettings,
    TrainingStep,
    evaluate,
    fit,
    learning_rate_factor,
    mixed_precision,
    predict,
)

torch.set_num_threads(1)

FEW = TrainingSettings(epochs=3, batch=32, learning_rate=0.2, look_ahead=0.9, augmentation=Augmentation(shift=1))


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4)]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Flatten(), nn.Linear(8 * 4, 3))


def examples(count: int = 192, seed: int = 0) -> tuple[Any, Any]:
    """Pictures 8×8 of noise in which one of three channels is brighter, and its number."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pictures = random.integers(60, 160, (count, 8, 8, 3))
    pictures[np.arange(count), :, :, labels] += 40
    return pictures.astype(np.uint8), labels


def weights(module: Any) -> dict[str, bytes]:
    return {name: one.contiguous().numpy().tobytes() for name, one in module.state_dict().items()}


class StopError(Exception):
    pass


def stop_at(number: int) -> Any:
    def progress(step: TrainingStep) -> None:
        if step.done == number:
            raise StopError

    return progress


@pytest.fixture
def _saves_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", -1.0)


def test_a_network_learns_and_the_history_tells_it() -> None:
    module, (pictures, labels) = network(), examples()
    before = evaluate(module, *examples(seed=1))
    history = fit(module, pictures, labels, FEW, test=examples(seed=1))
    assert evaluate(module, *examples(seed=1)) == history[-1].accuracy
    assert history[-1].accuracy is not None
    assert history[-1].accuracy > max(0.9, before)
    assert [epoch.number for epoch in history] == [1, 2, 3]
    assert history[-1].loss < history[0].loss


@pytest.mark.usefixtures("_saves_each_step")
@pytest.mark.parametrize("stopped_at", [1, 6, 7, 17])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, stopped_at: int) -> None:
    pictures, labels = examples()
    whole = network()
    told = fit(whole, pictures, labels, FEW)
    with pytest.raises(StopError):
        fit(network(), pictures, labels, FEW, checkpoint=tmp_path / "run", progress=stop_at(stopped_at))
    torch.manual_seed(12345)
    resumed = network()
    again = fit(resumed, pictures, labels, FEW, checkpoint=tmp_path / "run")
    assert weights(resumed) == weights(whole)
    assert [epoch.loss for epoch in again] == [epoch.loss for epoch in told]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    pictures, labels = examples()
    module = network()
    fit(module, pictures, labels, FEW, checkpoint=tmp_path / "run")
    again = network()
    fit(again, pictures, labels, FEW, checkpoint=tmp_path / "run", progress=stop_at(0))
    assert weights(again) == weights(module)


def test_the_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    pictures, labels = examples(64)
    file = tmp_path / "run"
    one = replace(FEW, epochs=0.5)
    fit(network(), pictures, labels, one, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(ModelError, match=r"momentum was 0\.9, is now 0\.5"):
        fit(network(), pictures, labels, replace(one, momentum=0.5), checkpoint=file)
    with pytest.raises(ModelError, match="pictures"):
        fit(network(), pictures[::-1], labels, one, checkpoint=file)
    with pytest.raises(ModelError, match="weights at the start"):
        fit(network(seed=1), pictures, labels, one, checkpoint=file)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ModelError, match=r"shape of"):
        fit(other, pictures, labels, one, checkpoint=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"notes\.txt: is no checkpoint"):
        fit(network(), *examples(64), FEW, checkpoint=file)
    assert file.read_bytes() == content


def test_a_folder_that_is_missing_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        fit(network(), *examples(64), FEW, checkpoint=tmp_path / "none" / "run", progress=stop_at(1))


@pytest.mark.usefixtures("_saves_each_step")
def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "run", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(StorageError, match="run: cannot be written: No space left on device"):
        fit(network(), *examples(), FEW, checkpoint=file)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    whole, resumed = network(), network()
    fit(whole, *examples(), FEW)
    fit(resumed, *examples(), FEW, checkpoint=file)
    assert weights(resumed) == weights(whole)


def test_a_run_that_fails_before_its_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    def wrong(*_given: object) -> Any:
        raise ModelError("the module gives a list in training")

    with pytest.raises(ModelError, match="a list"):
        fit(network(), *examples(64), FEW, checkpoint=tmp_path / "run", objective=wrong)
    assert list(tmp_path.iterdir()) == []


def test_the_learning_rate_rises_to_its_peak_and_falls() -> None:
    settings = replace(FEW, start_factor=0.2, peak_at=0.25, end_factor=0.1)
    factors = [learning_rate_factor(step, 100, settings) for step in range(100)]
    assert factors[0] == 0.2
    assert max(factors) == factors[25] == 1.0
    assert factors[:26] == sorted(factors[:26])
    assert factors[25:] == sorted(factors[25:], reverse=True)
    assert 0.1 < factors[-1] < 0.12
    assert learning_rate_factor(0, 100, replace(settings, peak_at=0.0)) == 1.0


def test_slower_steps_take_less_away_from_weights() -> None:
    def nothing(outputs: Any, _inputs: Any, _labels: Any) -> Any:
        return 0.0 * outputs.sum()

    settings = replace(FEW, epochs=1, batch=192, decay=0.1, norm_decay=0.2, look_ahead=0.0, peak_at=0.0)
    shrunk = []
    for factor in (1.0, 0.1):
        module = network()
        before = [module[0].weight.detach().clone(), module[1].weight.detach().clone()]
        fit(module, *examples(), settings.slower(factor), objective=nothing)
        after = (module[0].weight, module[1].weight)
        shrunk.append([float((1 - one.detach() / was).mean()) for one, was in zip(after, before, strict=True)])
    assert shrunk[0] == pytest.approx([0.19, 0.38], abs=0.01)  # Nesterov's first step is 1.9 times as long
    assert shrunk[1] == pytest.approx([0.019, 0.038], abs=0.001)


def test_hooks_see_gradients_and_weights() -> None:
    mask = torch.rand(8, 3, 3, 3) < 0.5
    seen = []

    def after_backward(module: Any) -> None:
        seen.append(float(module[0].weight.grad.abs().sum()))
        module[0].weight.grad.mul_(mask)

    def after_step(module: Any) -> None:
        module[0].weight.data.mul_(mask)

    module = network()
    fit(module, *examples(), FEW, after_backward=after_backward, after_step=after_step)
    assert len(seen) == 18
    assert min(seen) > 0
    assert torch.equal(module[0].weight != 0, mask)


def test_parameters_that_are_frozen_stay() -> None:
    module = network()
    module[0].weight.requires_grad = False
    before = module[0].weight.clone()
    fit(module, *examples(), replace(FEW, look_ahead=0.0, decay=0.1))
    assert torch.equal(module[0].weight, before)


def test_an_objective_replaces_the_loss() -> None:
    target = torch.tensor([[1.0, -1.0, 0.5]])
    module = network()
    settings = replace(FEW, decay=0.0, learning_rate=0.05, epochs=8.0)
    fit(module, *examples(), settings, objective=lambda outputs, inputs, labels: ((outputs - target) ** 2).mean())
    assert float((predict(module, examples()[0]) - target).abs().mean()) < 0.3


class TwoExits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.early, self.late = network()[:5], nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, inputs: Any) -> Any:
        features = self.body(inputs).flatten(1)
        return self.early(features), self.late(features)


def test_a_module_with_several_outputs_is_trained_by_its_own_objective() -> None:
    def loss(outputs: Any, inputs: Any, labels: Any) -> Any:
        return sum(nn.functional.cross_entropy(one.float(), labels) for one in outputs)

    history = fit(module := TwoExits(), *examples(), FEW, objective=loss, test=examples(seed=1))
    assert history[-1].accuracy == evaluate(module, *examples(seed=1))
    assert history[-1].accuracy > 0.8


@pytest.mark.parametrize(
    ("pictures", "labels", "told"),
    [
        (examples()[0].astype(np.float64), examples()[1], "uint8 or float32"),
        (examples()[0][0], examples()[1], "uint8"),
        (examples()[0], examples()[1][1:], "191 labels"),
        (examples()[0][:0], examples()[1][:0], "0 labels"),
        (examples()[0], examples()[1] - 1, "a class from 0"),
        (examples()[0], examples()[1] + 1, "class 3"),
        (examples()[0][..., :1], examples()[1], "Sequential on"),
        (examples()[0][:, :4, :4], examples()[1], "Sequential on"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(pictures: Any, labels: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        fit(network(), pictures, labels, FEW, progress=stop_at(1))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: x.nothing, "AttributeError"),
        (lambda x: exit(3), "SystemExit: 3"),
        (lambda x: {"scores": x}, "gives dict"),
        (lambda x: None, "gives NoneType"),
        (lambda x: (), "gives tuple"),
        (lambda x: x.mean(), r"gives a tensor \[\]"),
        (lambda x: (x, x.mean((2, 3))), "gives tuple in training"),
    ],
)
def test_a_module_that_misbehaves_is_told(answer: Any, told: str) -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return answer(self.scale * x)

    with pytest.raises(ModelError, match=told):
        fit(Wrong(), *examples(), FEW)


def test_a_tiny_part_of_an_epoch_is_one_step() -> None:
    steps: list[TrainingStep] = []
    fit(network(), *examples(), replace(FEW, epochs=1e-9), progress=steps.append)
    assert len(steps) == 1


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(ModelError, match="loss of step"):
        fit(network(), *examples(), replace(FEW, learning_rate=1e30))


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameters to train"):
        fit(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), *examples(), FEW)


def test_a_module_without_parameters_to_train_is_refused() -> None:
    module = network()
    module.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameters to train"):
        fit(module, *examples(), FEW)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_module_computes_in_bfloat16_where_the_processor_has_it(
    has_bf16: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    with torch.no_grad(), mixed_precision(torch.device("cpu")):
        assert torch.nn.Conv2d(3, 4, 1)(torch.rand(1, 3, 2, 2)).dtype == expected
