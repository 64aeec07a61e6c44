"""`vedette optimise train`: what it writes, what the next steps do with it, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.models.library import look_up
from agent.optimise.evaluate import time_ms
from agent.optimise.recipe import Recipe, parse_recipe
from tests.unit.optimise.training.test_classifier import pictures
from tests.unit.optimise.training.test_detector import write

if load_runtime()[0] != "litert":
    pytest.skip("trained models are run by LiteRT", allow_module_level=True)

RECIPE = """
[train]
epochs = 4.0
light = 0.0
flip = false
[prune]
structured = true
target = 0.5
rounds = 2
round_steps = 2
anneal_epochs = 2.0
"""

TRAINED = "was trained on examples that are held out here"


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("training.classifier", "pruning.file"):
        monkeypatch.setattr(f"agent.optimise.{place}.time_ms", partial(time_ms, rounds=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x, y = pictures()
    np.savez(tmp_path / "data.npz", x=x, y=y, names=["left", "right"])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", *map(str, args)])


def call(folder: Path, *args: object, network: str = "tiny") -> Result:
    options = ["--data", folder / "data.npz", "--recipe", folder / "recipe.toml"]
    return run("train", network, folder / "net.tflite", *options, *args)


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def test_what_is_trained_can_be_pruned_and_quantised(folder: Path) -> None:
    done = call(folder, "--json")
    assert done.exit_code == 0, said(done)
    assert json.loads(done.stdout) == json.loads((folder / "net.report.json").read_text())
    assert look_up(str(folder / "net.tflite")).manifest.output.labels == ("left", "right")
    assert not (folder / "net.work").exists()
    given = ["--data", folder / "data.npz", "--recipe", folder / "recipe.toml"]
    named = ["--module", "tiny", "--weights", folder / "net.pt"]
    done = run("prune", folder / "net.tflite", folder / "small.tflite", *named, *given)
    assert done.exit_code == 0, said(done)
    done = run("quantise", folder / "small.tflite", folder / "int8.tflite", *given, "--method", "int8")
    assert done.exit_code == 0, said(done)
    sizes = [(folder / f"{name}.tflite").stat().st_size for name in ("net", "small", "int8")]
    assert TRAINED not in done.stderr
    assert sizes[1] < 0.5 * sizes[0]
    assert sizes[2] < 0.4 * sizes[1]
    fewer = [*given, "--limit", 40, "--method", "int8", "--json"]
    again = run("quantise", folder / "net.tflite", folder / "half.tflite", *fewer)
    assert TRAINED in again.stderr
    assert TRAINED in str(json.loads(again.stdout)["remarks"])


def test_the_table_has_the_right_answers_of_each_class(folder: Path) -> None:
    done = call(folder)
    assert done.exit_code == 0, said(done)
    assert "left: 2" in done.stdout
    assert "4 epochs" in done.stderr
    assert "net.tflite: written" in done.stderr


def test_a_training_may_begin_with_weights(folder: Path) -> None:
    assert call(folder).exit_code == 0
    (folder / "net.pt").rename(folder / "before.pt")
    done = call(folder, "--weights", folder / "before.pt", "--epochs", 0.5, "--force", "--json")
    assert done.exit_code == 0, said(done)
    assert json.loads(done.stdout)["steps"][0]["score"] > 0.9


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(folder).exit_code == 0
    whole = (folder / "net.tflite").read_bytes()

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agent.optimise.train._Run.step", interrupt)
        done = call(folder, "--force")
    assert done.exit_code == 130
    assert "the same command goes on from" in done.stderr
    assert (folder / "net.work" / "train.checkpoint").is_file()
    assert call(folder, "--force").exit_code == 0
    assert (folder / "net.tflite").read_bytes() == whole
    assert not (folder / "net.work").exists()


def test_processes_of_torchrun_train_one_network_together(folder: Path) -> None:
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def build(classes=2):\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))\n"
    )
    given = ["--data", folder / "data.npz", "--recipe", folder / "recipe.toml", "--json"]
    weights, reports = [], []
    for count in (1, 2):
        out = folder / f"{count}.tflite"
        called = ["agent", "optimise", "train", f"{folder / 'net.py'}:build", out, *given]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2] if count == 2 else []
        line = [sys.executable, *several, "-m", *called]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
        state = torch.load(out.with_suffix(".pt"), weights_only=True)["state_dict"]
        weights.append(torch.cat([one.reshape(-1) for one in state.values()]))
    assert done.stderr.count("written") == 1
    assert reports[0]["steps"][0]["score"] == reports[1]["steps"][0]["score"]
    assert 0 < (weights[0] - weights[1]).norm() < 0.1 * weights[0].norm()


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            "tyni",
            "tyni: there is no such network: expected tiny, efficientnet_lite0, detector, or path.py",
        ),
        ("missing.py:build", "missing.py: no such file"),
        ("net.onnx", "expected path.py:factory"),
    ],
)
def test_a_network_that_is_not_there_is_told(folder: Path, network: str, told: str) -> None:
    done = call(folder, network=network)
    assert done.exit_code == 1
    assert told in said(done)


def test_the_printed_recipe_changes_nothing(folder: Path) -> None:
    assert call(folder, "--epochs", "inf").exit_code == 2
    assert parse_recipe(run("recipe").stdout, "printed").recipe == Recipe()


def test_examples_of_one_class_are_refused(folder: Path) -> None:
    x, _ = pictures()
    np.savez(folder / "data.npz", x=x, y=np.zeros(len(x), int), names=["left", "right"])
    done = call(folder)
    assert done.exit_code == 1
    assert "all of one class" in said(done)


@pytest.mark.parametrize("size", ["x", "1", "0x30", "128x", "-5", "9999", "64x2000"])
def test_a_size_is_one_or_two_numbers(folder: Path, size: str) -> None:
    done = call(folder, f"--size={size}")
    assert done.exit_code == 2
    assert "--size" in said(done)


def test_results_that_are_there_are_replaced_by_force_only(folder: Path) -> None:
    (folder / "net.pt").write_bytes(b"mine")
    done = call(folder)
    assert done.exit_code == 1
    assert "net.pt: exists" in said(done)
    assert (folder / "net.pt").read_bytes() == b"mine"


def test_weights_that_are_read_are_not_replaced(folder: Path) -> None:
    (folder / "net.pt").write_bytes(b"mine")
    done = call(folder, "--weights", folder / "net.pt", "--force")
    assert (done.exit_code, "which is read" in said(done)) == (1, True), said(done)


def test_a_network_by_name_needs_its_weights_to_be_pruned(folder: Path) -> None:
    assert call(folder).exit_code == 0
    data = ["--data", folder / "data.npz"]
    done = run("prune", folder / "net.tflite", folder / "new.tflite", "--module", "tiny", *data)
    assert (done.exit_code, "tiny: give --weights" in said(done)) == (1, True), said(done)


def test_a_network_without_parameters_is_told(folder: Path) -> None:
    (folder / "bare_net.py").write_text("from torch import nn\ndef build():\n    return nn.Flatten()\n")
    done = call(folder, network=f"{folder / 'bare_net.py'}:build")
    assert (done.exit_code, "has no parameters to train" in said(done)) == (1, True), said(done)


def test_a_detector_learns_boxes_and_is_found_and_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.optimise.training.classifier.time_ms", partial(time_ms, rounds=2))
    data = write(tmp_path / "shapes", 24)
    out = tmp_path / "net.tflite"
    given = ["--data", data, "--size", "64x96"]
    done = run("train", "detector", out, *given, "--epochs", 2)
    assert done.exit_code == 0, said(done)
    assert "AP %" in done.output
    found = look_up(str(out)).manifest.output
    assert (found.decoder, found.labels) == ("nanodet", ("disc", "square"))
    done = run("quantise", out, tmp_path / "int8.tflite", "--data", data, "--method", "int8")
    assert done.exit_code == 0, said(done)
    again = run(
        "train", "detector", tmp_path / "b.tflite", *given, "--epochs", 1, "--weights", tmp_path / "net.pt"
    )
    assert again.exit_code == 0, said(again)
    for words, why in (
        ((*given, "--size", "100"), "multiples of 32"),
        ((*given, "--weights", data / "classes.txt"), "classes.txt"),
    ):
        assert why in said(run("train", "detector", tmp_path / "c.tflite", *words))
    assert "`detector` learns boxes" in said(run("train", "tiny", tmp_path / "c.tflite", "--data", data))
    assert "needs examples with classes" in said(
        run(
            "prune",
            out,
            tmp_path / "c.tflite",
            "--data",
            data,
            "--module",
            "detector",
            "--weights",
            tmp_path / "net.pt",
        )
    )
    weights = ["--weights", tmp_path / "net.pt"]
    (data / "classes.txt").write_text("disc\nsquare\nstar\n")
    told = said(run("train", "detector", tmp_path / "c.tflite", *given, *weights))
    assert "was trained for 2 classes, and there are 3" in told
    assert not (tmp_path / "c.tflite").exists()
