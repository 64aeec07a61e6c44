"""Thresholds of a cascade of pictures are learned on some examples, and hold on others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.compute.cascade import EarlyExitModel
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.optimise.calibrate import evaluate
from agent.optimise.data import Examples, read_examples
from agent.optimise.depth.calibration import (
    FEWEST,
    ExitScores,
    calibrate_examples,
    exit_scores,
    learn,
    time_exits_ms,
)
from tests.support.picture_cascade import COLOURS, SIDE, colour_cascade


def examples(folder: Path, model: Model, count: int = 120) -> Examples:
    """Colours, of which one channel is the largest: that is the class."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (count, 3))
    pictures = np.broadcast_to(colours[:, None, None], (count, SIDE, SIDE, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", x=pictures, y=colours.argmax(1))
    return read_examples(folder / "data.npz", model)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_whole_model(str(colour_cascade(tmp_path, confidence=None)))


def test_scores_are_the_logits_of_every_exit(tmp_path: Path, model: Model) -> None:
    given = examples(tmp_path, model)
    scores = exit_scores(model.content, model.manifest, given)
    means = given.batch(range(len(given))).mean((1, 2))
    assert scores.logits.shape == (120, 2, len(COLOURS))
    assert np.allclose(scores.logits[:, 0], 4 * means, atol=1e-4)
    assert np.allclose(scores.logits[:, 1], 20 * means, atol=1e-4)


def test_an_exit_that_is_always_right_answers_everything(tmp_path: Path, model: Model) -> None:
    result = calibrate_examples(model, examples(tmp_path, model), 0.0)
    assert result.variants == ("early", "deep")
    assert (result.lost, result.learned.full, result.recordings) == (0.0, 1.0, 120)
    assert result.checked.used == (1.0, 0.0)
    assert result.checked.cost == pytest.approx(result.costs[0] / sum(result.costs))


def test_an_exit_that_is_often_wrong_answers_what_it_is_sure_of() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, 2000)
    sure = random.random(2000) < 0.5
    logits = np.zeros((2000, 2, 4), np.float32)
    logits[np.arange(2000), 1, labels] = 5.0
    guess = np.where(sure, labels, random.integers(0, 4, 2000))
    logits[np.arange(2000), 0, guess] = np.where(sure, 5.0, 1.0)
    one, other = (ExitScores(logits[half], labels[half]) for half in np.array_split(np.arange(2000), 2))
    learned = learn(one, (1.0, 3.0), 0.002)
    point, full = evaluate(other.logits, other.labels, (1.0, 3.0), learned)
    assert full == 1.0
    assert full - point.accuracy <= 0.005
    assert point.used[0] == pytest.approx(0.5, abs=0.05)


def test_few_examples_and_a_model_that_is_wrong_are_refused(tmp_path: Path, model: Model) -> None:
    few = examples(tmp_path, model, FEWEST - 1)
    with pytest.raises(ModelError, match=f"{FEWEST - 1} examples to learn thresholds from; expected at least"):
        calibrate_examples(model, few, 0.0)
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "wrong.npz", x=np.tile(data["x"], (3, 1, 1, 1)), y=(np.tile(data["y"], 3) + 1) % 3)
    with pytest.raises(ModelError, match=r"hardly better than a guess.*check their labels"):
        calibrate_examples(model, read_examples(tmp_path / "wrong.npz", model), 0.0)


def test_the_deepest_exit_alone_takes_as_long_as_all_exits(tmp_path: Path, model: Model) -> None:
    cascade, deepest = time_exits_ms(model.content, model.manifest, examples(tmp_path, model), inside=True)
    assert cascade > 0
    assert deepest > 0


@pytest.mark.parametrize("inside", [True, False])
def test_the_time_of_a_cascade_leaves_out_its_waiting_for_other_work(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    predict = EarlyExitModel.predict

    def wait_first(self: EarlyExitModel, *args: Any) -> Any:
        time.sleep(0.05)
        return predict(self, *args)

    monkeypatch.setattr(EarlyExitModel, "predict", wait_first)
    few = examples(tmp_path, model).take(range(4))
    assert max(time_exits_ms(model.content, model.manifest, few, inside=inside)) < 50.0


def test_scores_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    path = colour_cascade(tmp_path)
    path.write_text(path.read_text().replace("logits = true", "logits = false"))
    model = open_whole_model(str(path))
    with pytest.raises(ModelError, match=r"options\.logits = true"):
        exit_scores(model.content, model.manifest, examples(tmp_path, model))


def test_examples_without_classes_are_refused(tmp_path: Path, model: Model) -> None:
    np.savez(tmp_path / "none.npz", x=np.arange(10 * SIDE * SIDE * 3, dtype=np.uint8).reshape(10, SIDE, SIDE, 3))
    with pytest.raises(ModelError, match="thresholds are learned from examples with classes"):
        exit_scores(model.content, model.manifest, read_examples(tmp_path / "none.npz", model))
