"""A classifier that is trained from the first weight on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import InputManifest
from agent.errors import DivergedError, ModelError
from agent.optimise.evaluate import open_content, outputs_of, time_ms
from agent.optimise.factory import load_factory
from agent.optimise.recipe import Recipe, parse_recipe
from agent.optimise.training.classifier import TrainedNetwork, TrainRequest, read_pictures, train_classifier
from agent.optimise.training.data import read_class_examples

if load_runtime()[0] != "litert":
    pytest.skip("trained models are run by LiteRT", allow_module_level=True)

RECIPE = parse_recipe("[train]\nlight = 0.0\nflip = false\n", "").recipe


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.training.classifier.time_ms", partial(time_ms, rounds=2))


def pictures(count: int = 96, side: int = 32, classes: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Pictures that are brighter in another quarter for each class."""
    random = np.random.default_rng(seed)
    found = random.integers(60, 140, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    half = side // 2
    for picture, label in zip(found, labels, strict=True):
        y, x = divmod(int(label), 2)
        picture[y * half : (y + 1) * half, x * half : (x + 1) * half] += 100
    return found, labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = pictures()
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["left", "right"])
    return tmp_path / "data.npz"


def train(data: Path, recipe: Recipe = RECIPE, network: str = "tiny", **options: Any) -> TrainedNetwork:
    request = TrainRequest(network, **{"epochs": 6.0, **options})
    examples, names = read_pictures(data, request, recipe)
    return train_classifier(examples, names, request, recipe)


def test_a_trained_file_answers_as_its_module(data: Path, tmp_path: Path) -> None:
    found = train(data)
    (tmp_path / "net.pt").write_bytes(found.weights)
    module = load_factory("tiny", tmp_path / "net.pt").eval()
    request = TrainRequest("tiny")
    examples, names = read_pictures(data, request, RECIPE)
    assert names == ("left", "right")
    with torch.no_grad():
        wanted = module(torch.from_numpy(examples.batch(range(8))).permute(0, 3, 1, 2)).numpy()
    from agent.compute.manifest import Manifest, OutputManifest
    from agent.optimise.training.data import PREPARATION

    manifest = Manifest("net", OutputManifest("classify", names, options={"logits": True}), PREPARATION)
    with open_content(found.content, manifest) as session:
        own = np.stack([one[0][0] for one in outputs_of(session, examples.take(range(8)))])
    assert np.allclose(own, wanted, atol=1e-3)


def test_a_training_from_weights_keeps_what_these_were_trained_on(data: Path, tmp_path: Path) -> None:
    first = train(data, epochs=0.5)
    (tmp_path / "net.pt").write_bytes(first.weights)
    less = replace(RECIPE, data=replace(RECIPE.data, held_out=0.9))
    alone, both = (train(data, less, epochs=0.5, weights=one).report for one in (None, tmp_path / "net.pt"))
    assert set(both.learned) == {*first.report.learned, *alone.learned}
    assert set(first.report.learned) - set(alone.learned)


def test_the_report_has_the_score_and_the_right_answers_of_each_class(data: Path) -> None:
    found = train(data)
    step = found.report.steps[0]
    assert step.score is not None
    assert step.score > 0.9
    assert [note.partition(":")[0] for note in step.notes] == ["left", "right"]
    right = sum(int(note.split()[1]) for note in step.notes)
    assert right == round(step.score * 48)
    assert any("to measure on" in remark for remark in found.report.remarks)
    assert found.keys["output"]["labels"] == ["left", "right"]


def test_an_interrupted_training_ends_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    whole = train(data).weights

    class StoppedError(Exception):
        pass

    def stop(step: Any) -> None:
        if step.done == 5:
            raise StoppedError

    request = TrainRequest("tiny", epochs=6.0, folder=tmp_path)
    examples, names = read_pictures(data, request, RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", 0.0)
        with pytest.raises(StoppedError):
            train_classifier(examples, names, request, RECIPE, progress=stop)
    assert (tmp_path / "train.checkpoint").is_file()
    assert train(data, folder=tmp_path).weights == whole


def test_epochs_follow_the_number_of_examples(data: Path) -> None:
    told: list[str] = []
    request = TrainRequest("tiny")
    examples, names = read_pictures(data, request, RECIPE)

    class StoppedError(Exception):
        pass

    def stop(_step: Any) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        train_classifier(examples, names, request, RECIPE, progress=stop, tell=told.append)
    assert "48 examples to learn from, 48 to measure on" in told[0]
    assert "500 epochs" in told[0]


def test_a_rare_class_is_told(tmp_path: Path) -> None:
    x, y = pictures(120)
    kept = np.flatnonzero((y == 0) | (np.arange(120) < 16))
    np.savez(tmp_path / "data.npz", x=x[kept], y=y[kept], names=["sound", "broken"])
    remarks = train(tmp_path / "data.npz", epochs=1.0).report.remarks
    assert any(remark.startswith("broken has ") for remark in remarks)


def rare(path: Path, counts: dict[str, int]) -> Path:
    """Write pictures of which each class has so many."""
    x, y = pictures(400, classes=len(counts))
    rows = np.concatenate([np.flatnonzero(y == number)[:count] for number, count in enumerate(counts.values())])
    np.savez(path / "data.npz", x=x[rows], y=y[rows], names=list(counts))
    return path / "data.npz"


def test_that_a_picture_is_in_two_classes_is_told(tmp_path: Path) -> None:
    x, y = pictures(40)
    x[[7, 9]] = x[[0, 2]]
    x[11] = x[1]  # the same class twice
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["dog", "cat"])
    examples, _ = read_pictures(tmp_path / "data.npz", TrainRequest("tiny"), RECIPE)
    (remark,) = examples.remarks
    assert remark == f"{tmp_path / 'data.npz'}: 0 and 7 are the same, in two classes (and 1 other pair)"


def test_a_class_whose_examples_are_all_held_out_is_named(tmp_path: Path) -> None:
    data = rare(tmp_path, {"dog": 15, "cat": 15, "frog": 1})
    told: list[str] = []
    request = TrainRequest("tiny", epochs=0.5)
    examples, names = read_pictures(data, request, RECIPE)
    found = train_classifier(examples, names, request, RECIPE, tell=told.append)
    (line,) = [one for one in told if "no example of frog to learn from" in one]
    assert line in found.report.remarks
    assert not any(one.startswith("frog has 0 ") for one in found.report.remarks)


def test_a_class_without_any_example_is_not_said_to_be_held_out(tmp_path: Path) -> None:
    x, y = pictures(16)
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["dog", "cat", "frog"])
    told: list[str] = []
    request = TrainRequest("tiny", epochs=0.5)
    examples, names = read_pictures(tmp_path / "data.npz", request, RECIPE)
    found = train_classifier(examples, names, request, RECIPE, tell=told.append)
    assert not any("held out" in one for one in (*told, *found.report.remarks))


def test_examples_to_learn_from_that_are_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="to learn from are all of one class"):
        train(rare(tmp_path, {"dog": 30, "frog": 1}))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros((20, 32, 32, 3), np.uint8)}, "training needs two classes or more"),
        ({"x": pictures(20)[0], "y": np.zeros(20, int)}, "two classes or more"),
        ({"x": np.zeros((20, 32, 32, 3), np.float32), "y": np.arange(20) % 2}, "1"),
        ({"x": np.zeros((4, 32, 32, 3), np.uint8), "y": np.arange(4) % 2}, "expected at least 8"),
        ({"x": np.zeros((0, 32, 32, 3), np.uint8), "y": np.zeros(0, int)}, "expected at most 10000 classes"),
        ({"x": np.zeros((9, 32, 32, 3), np.uint8), "y": np.arange(9) << 40}, "expected at most 10000 classes"),
        ({"x": np.zeros((9, 32, 32, 3), np.uint8), "y": np.arange(9) - 1}, "out of range"),
        ({"x": np.zeros((9, 32, 32, 3), np.uint8), "y": np.arange(9) % 2, "names": ["a", "a"]}, "the same name"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, arrays: dict[str, Any], told: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ModelError, match=told):
        read_pictures(tmp_path / "data.npz", TrainRequest("tiny"), RECIPE)


def test_pictures_that_would_fill_the_memory_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.training.classifier.os.sysconf", lambda name: 400)
    with pytest.raises(ModelError, match="use --limit or a smaller --size"):
        read_pictures(data, TrainRequest("tiny"), RECIPE)


def test_names_of_folders_may_be_numbers(tmp_path: Path) -> None:
    x, y = pictures(40)
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["7", "2023"])
    examples, names = read_pictures(tmp_path / "data.npz", TrainRequest("tiny"), RECIPE)
    assert names == ("7", "2023")
    assert examples.labels is not None
    assert np.array_equal(examples.labels, y)


def test_weights_of_ones_own_may_be_a_plain_state_dict(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(train(data).weights)
    torch.save(load_factory("tiny", tmp_path / "net.pt").state_dict(), tmp_path / "plain.pt")
    score = train(data, weights=tmp_path / "plain.pt", epochs=0.5).report.steps[0].score
    assert score is not None
    assert score > 0.9


def test_a_training_that_diverges_leaves_no_checkpoint(data: Path, tmp_path: Path) -> None:
    wild = parse_recipe("[train]\nlearning_rate = 1e6\n", "").recipe
    with pytest.raises(DivergedError):
        train(data, wild, folder=tmp_path)
    assert not (tmp_path / "train.checkpoint").exists()
    assert train(data, folder=tmp_path).report.steps[0].score


def test_pictures_too_small_for_a_network_are_refused(tmp_path: Path) -> None:
    x, y = pictures(side=16)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(ModelError, match="tiny: takes pictures of 32 pixels or more"):
        train(tmp_path / "data.npz")


def test_a_network_of_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    net = tmp_path / "fixed_net.py"
    net.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
    )
    request = TrainRequest(f"{net}:build")
    examples, names = read_pictures(data, request, RECIPE)
    with pytest.raises(ModelError, match=r"gives \[1, 5\] .* 2 classes"):
        train_classifier(examples, names, request, RECIPE)


@pytest.mark.parametrize("end", ["Softmax(1)", "Sigmoid()"])
def test_a_network_that_ends_in_probabilities_is_refused(data: Path, tmp_path: Path, end: str) -> None:
    net = tmp_path / f"{end.partition('(')[0].lower()}_net.py"
    net.write_text(
        "from torch import nn\ndef build():\n"
        "    layers = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]\n"
        f"    return nn.Sequential(*layers, nn.{end})\n"
    )
    with pytest.raises(ModelError, match="give the network without it"):
        train(data, network=f"{net}:build")


def test_the_usual_size_is_that_of_an_array_and_else_128(tmp_path: Path, data: Path) -> None:
    import cv2

    found, _ = read_class_examples(data, None, InputManifest())
    assert found.shape == (32, 32, 3)
    for number in range(8):
        folder = tmp_path / "folders" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 30, 3), number, np.uint8))
    found, classes = read_class_examples(tmp_path / "folders", None, InputManifest())
    assert (found.shape, classes) == ((128, 128, 3), 2)
    assert read_class_examples(tmp_path / "folders", (40, 50, 3), InputManifest())[0].shape == (40, 50, 3)
