"""A detector that is trained from the first weight on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import InputManifest, Manifest, OutputManifest
from agent.errors import DivergedError, ModelError
from agent.optimise.evaluate import open_content, outputs_of, score, time_ms
from agent.optimise.factory import load_factory
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe, Recipe, parse_recipe
from agent.optimise.training.classifier import TrainedNetwork, TrainRequest
from agent.optimise.training.detector import read_boxes, train_detector
from agent.optimise.tune import split
from agent.structs import convert

if load_runtime()[0] != "litert":
    pytest.skip("trained models are run by LiteRT", allow_module_level=True)

RECIPE = parse_recipe(
    "[train]\nlight = 0.0\nbatch = 6\nlearning_rate = 3.0\n[data]\nheld_out = 0.25\n", ""
).recipe
SIZE = (64, 96, 3)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.training.classifier.time_ms", partial(time_ms, rounds=2))


def write(folder: Path, count: int = 48, *, empty: bool = False) -> Path:
    """Write pictures of discs and squares on noise, with labels as YOLO has them."""
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("disc\nsquare\n")
    for number in range(count):
        picture = random.integers(0, 60, (*SIZE[:2], 3), dtype=np.uint8)
        lines = []
        for kind in range(2):
            half = int(random.integers(8, 14))
            x, y = int(random.integers(half, SIZE[1] - half)), int(random.integers(half, SIZE[0] - half))
            if kind:
                cv2.rectangle(picture, (x - half, y - half), (x + half, y + half), (40, 220, 40), -1)
            else:
                cv2.circle(picture, (x, y), half, (40, 40, 220), -1)
            lines.append(f"{kind} {x / SIZE[1]} {y / SIZE[0]} {2 * half / SIZE[1]} {2 * half / SIZE[0]}")
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), picture)
        (folder / "labels" / f"{number:03}.txt").write_text("" if empty else "\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shapes"))


def train(data: Path, recipe: Recipe = RECIPE, **options: Any) -> TrainedNetwork:
    request = TrainRequest("detector", **{"epochs": 30.0, "shape": SIZE, **options})
    examples, names = read_boxes(data, request, recipe)
    return train_detector(examples, names, request, recipe)


def test_what_is_trained_finds_the_things_also_as_int8(data: Path, tmp_path: Path) -> None:
    found = train(data)
    (step,) = found.report.steps
    assert step.metric == "AP"
    assert step.score is not None
    assert step.score > 0.3
    assert step.notes[0].startswith("AP50 ")
    assert [note.partition(":")[0] for note in step.notes[1:]] == ["disc", "square"]
    manifest = Manifest(
        "shapes", convert(found.keys["output"], OutputManifest), convert(found.keys["input"], InputManifest)
    )
    examples, _ = read_boxes(data, TrainRequest("detector", shape=SIZE), RECIPE)
    before = score(found.content, examples, manifest)
    assert before.details["AP50"] > 0.8
    small = quantise(found.content, [examples], QuantiseRecipe(method="int8", examples=32)).content
    assert len(small) < 0.4 * len(found.content)
    assert score(small, examples, manifest).value > before.value - 0.03
    (tmp_path / "net.pt").write_bytes(found.weights)
    module = load_factory("detector", tmp_path / "net.pt").eval()
    with torch.no_grad():
        wanted = module(torch.from_numpy(examples.batch([0])).permute(0, 3, 1, 2))
    with open_content(found.content, manifest) as session:
        for one, other in zip(wanted, next(iter(outputs_of(session, examples))), strict=True):
            assert np.abs(one.numpy() - other).max() < 1e-4


def test_an_interrupted_run_goes_on_and_other_boxes_begin_anew(data: Path, tmp_path: Path) -> None:
    whole = train(data, epochs=2.0)
    request = TrainRequest("detector", shape=SIZE, epochs=2.0, folder=tmp_path)
    examples, names = read_boxes(data, request, RECIPE)

    def interrupt(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(examples, names, request, RECIPE, progress=interrupt)
    assert train_detector(examples, names, request, RECIPE).content == whole.content
    other = write(tmp_path / "other", 48)
    (other / "labels" / "000.txt").write_text("1 0.5 0.5 0.2 0.2")
    (other / "labels" / "001.txt").write_text("1 0.5 0.5 0.2 0.2")
    with pytest.raises(ModelError, match="labels"):
        train_detector(*read_boxes(other, request, RECIPE), request, RECIPE)


def test_examples_that_a_detector_cannot_learn_from_are_refused(data: Path, tmp_path: Path) -> None:
    request = TrainRequest("detector", shape=SIZE)
    for size in ((100, 96, 3), (32, 96, 3)):
        with pytest.raises(ModelError, match="multiples of 32"):
            read_boxes(data, TrainRequest("detector", shape=size), RECIPE)
    np.savez(tmp_path / "classes.npz", x=np.zeros((8, 64, 96, 3), np.uint8), y=np.arange(8) % 2)
    with pytest.raises(ModelError, match="a detector needs boxes"):
        read_boxes(tmp_path / "classes.npz", request, RECIPE)
    nothing = write(tmp_path / "empty", 12, empty=True)
    with pytest.raises(ModelError):
        train_detector(*read_boxes(nothing, request, RECIPE), request, RECIPE)


def test_a_class_whose_boxes_are_all_held_out_is_named(tmp_path: Path) -> None:
    data, request, told = write(tmp_path), TrainRequest("detector", epochs=0.2, shape=SIZE), list[str]()
    examples, _ = read_boxes(data, request, RECIPE)
    seen, _ = split(examples, RECIPE.data.held_out)
    for index in range(len(seen)):
        label = data / "labels" / f"{Path(seen.name(index)).stem}.txt"
        label.write_text(label.read_text().partition("\n")[0])  # the disc alone
    examples, names = read_boxes(data, request, RECIPE)
    found = train_detector(examples, names, request, RECIPE, tell=told.append)
    (line,) = [one for one in told if "no example of square to learn from, all are held out" in one]
    assert line in found.report.remarks
    assert not any(one.startswith("square has only 0") for one in found.report.remarks)


def test_a_run_that_diverges_is_told(data: Path) -> None:
    with pytest.raises(DivergedError, match="learning"):
        train(data, parse_recipe("[train]\nlearning_rate = 1e6\n", "").recipe, epochs=3.0)
