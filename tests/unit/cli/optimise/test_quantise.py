"""`vedette optimise quantise`: models without a decoder, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")

from torch import nn

from agent.cli.main import vedette
from agent.compute.tflite.read import read_modelfile
from agent.optimise.evaluate import time_ms
from agent.optimise.graph.objects import load
from tests.support.float_models import classifier, float_file, pictures, write_examples, write_model
from tests.support.tflite_builder import custom_model

torch.set_num_threads(1)


class Landmarks(nn.Module):
    """Points and a presence, as landmark models have them."""

    def __init__(self, values: int = 63) -> None:
        super().__init__()
        self.body, self.points, self.presence = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, values), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        found = self.body(x).relu().mean((2, 3))
        return self.points(found), self.presence(found).sigmoid()


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", partial(time_ms, rounds=1))


def call(model: Path, out: Path, data: Path, *words: str) -> Result:
    args = ["optimise", "quantise", str(model), str(out), "--data", str(data), "--method", "int8", *words]
    return CliRunner().invoke(vedette, args)


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def test_landmarks_are_quantised_on_pictures_without_labels(tmp_path: Path) -> None:
    model, out = tmp_path / "points.tflite", tmp_path / "out.tflite"
    model.write_bytes(float_file(Landmarks(63).eval()))
    model.with_suffix(".toml").write_text("[input]\nmean = [128.0, 128.0, 128.0]\nstd = [64.0, 64.0, 64.0]\n")
    np.savez(tmp_path / "x.npz", x=pictures(16))
    done = call(model, out, tmp_path / "x.npz")
    assert done.exit_code == 0, said(done)
    assert "cannot be decoded" in done.stderr
    assert "fidelity: " in done.stdout
    assert read_modelfile(out.read_bytes()).ends("serving_default")[0][0].dtype == "uint8"


@pytest.mark.usefixtures("worker_sessions")
def test_descriptions_name_the_new_numbers(tmp_path: Path) -> None:
    manifest, out = write_model(tmp_path, float_file(classifier())), tmp_path / "out.tflite"
    manifest.write_text(f'description = "Blobs, float"\n{manifest.read_text()}')
    done = call(tmp_path / "net.tflite", out, write_examples(tmp_path / "x.npz", 16))
    assert done.exit_code == 0, said(done)
    assert tomllib.loads(out.with_suffix(".toml").read_text())["description"] == "Blobs, INT8"
    described = load(out.read_bytes()).description
    assert described in (b"Net, INT8", "Net, INT8")


def test_pixels_are_taken_as_they_are_whatever_the_examples_show(tmp_path: Path) -> None:
    model, out = write_model(tmp_path, float_file(classifier())), tmp_path / "out.tflite"
    dark = (pictures(32) * 0.6).astype(np.uint8)
    np.savez(tmp_path / "dark.npz", x=(dark.astype(np.float32) - 128) / 64, y=np.arange(32) % 4)
    done = call(model, out, tmp_path / "dark.npz")
    assert done.exit_code == 0, said(done)
    (pixels,) = read_modelfile(out.read_bytes()).ends("serving_default")[0]
    assert pixels.scale == pytest.approx(1 / 64)
    assert pixels.zero_point == 128


def test_examples_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path, float_file(classifier()))
    np.savez(tmp_path / "black.npz", x=np.zeros((40, 12, 12, 3), np.uint8))
    done = call(model, tmp_path / "out.tflite", tmp_path / "black.npz")
    assert done.exit_code == 1
    assert "all 40 examples are the same" in said(done)
    assert not (tmp_path / "out.tflite").exists()


def test_classes_for_a_model_that_gives_none_say_what_to_do(tmp_path: Path) -> None:
    model = tmp_path / "map.tflite"
    model.write_bytes(float_file(nn.Conv2d(3, 5, 3)))  # a map
    for number, one in enumerate(pictures(16)):
        (tmp_path / "data" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / str(number % 2) / f"{number}.png"), one)
    done = call(model, tmp_path / "out.tflite", tmp_path / "data")
    assert done.exit_code == 1
    for fact in ("no scores of classes", "`vedette guide models`", "without class folders"):
        assert fact in said(done)


@pytest.mark.parametrize("step", ["quantise", "tune"])
def test_landmarks_are_not_scored_by_classes(tmp_path: Path, step: str) -> None:
    model = tmp_path / "points.tflite"
    model.write_bytes(float_file(Landmarks(63).eval()))
    model.with_suffix(".toml").write_text("[input]\nmean = [128.0, 128.0, 128.0]\nstd = [64.0, 64.0, 64.0]\n")
    data = write_examples(tmp_path / "x.npz", 16)
    words = ["optimise", step, str(model), str(tmp_path / "out.tflite"), "--data", str(data)]
    done = CliRunner().invoke(vedette, words)
    assert done.exit_code == 1
    for fact in ("no scores of classes", "without class folders"):
        assert fact in said(done)


def test_a_training_that_makes_it_worse_is_not_kept(tmp_path: Path) -> None:
    model = write_model(tmp_path, float_file(classifier()))
    data, recipe = tmp_path / "x.npz", tmp_path / "recipe.toml"
    np.savez(data, x=pictures(32))  # without labels it counts that the answers stay as they were
    recipe.write_text("[qat]\nsteps = 12\nbatch = 8\nlearning_rate = 1e5\n")
    call(model, tmp_path / "plain.tflite", data)
    done = call(model, tmp_path / "out.tflite", data, "--recipe", str(recipe), "--qat")
    assert done.exit_code == 0, said(done)
    assert "qat: of 16 examples that were not trained on" in done.stdout
    assert "the file without it is kept" in done.stdout
    assert (tmp_path / "out.tflite").read_bytes() == (tmp_path / "plain.tflite").read_bytes()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own, for which a package of the extra is not there."""
    words = ["optimise", "quantise", "net.tflite", str(tmp_path / "out.tflite"), "--data", "x.npz"]
    code = "import sys; sys.modules['flatbuffers'] = None; from agent.__main__ import program; program()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "quantising needs pip install '.[optimise]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_be_quantised_is_told_before_the_examples(tmp_path: Path) -> None:
    model = tmp_path / "custom.tflite"
    model.write_bytes(custom_model("Mine"))
    model.with_suffix(".toml").write_text(
        '[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n[output]\ndecoder = "classify"\n'
    )
    told = said(call(model, tmp_path / "out.tflite", tmp_path / "missing"))
    assert "Mine" in told
    assert "can be quantised" in told
    assert "missing" not in told


def test_the_model_is_named_once(tmp_path: Path) -> None:
    model = tmp_path / "txt.tflite"
    model.write_text("no model")
    assert said(call(model, tmp_path / "out.tflite", tmp_path / "x.npz")).count(f"{model}:") == 1


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is given again, and writes what it would have written."""
    write_model(tmp_path, float_file(classifier()))
    data, files = write_examples(tmp_path / "x.npz", 32), {}
    (tmp_path / "recipe.toml").write_text("[qat]\nsteps = 12\nbatch = 8\n")
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", 0.0)

    def run(out: str, progress: str) -> Result:
        def stop(line: str) -> None:
            if progress and progress in line:
                raise KeyboardInterrupt

        monkeypatch.setattr("agent.cli.optimise.quantise.show_progress", stop)
        words = ["--data", str(data), "--recipe", str(tmp_path / "recipe.toml"), "--method", "int8", "--qat"]
        words = ["optimise", "quantise", str(tmp_path / "net.tflite"), str(tmp_path / out), *words]
        return CliRunner().invoke(vedette, words)

    for name, stops in (("whole.tflite", ("",)), ("resumed.tflite", ("step 11 of", ""))):
        for stop in stops:
            done = run(name, stop)
            assert (tmp_path / name).with_suffix(".work").exists() == bool(stop), said(done)
        assert done.exit_code == 0, said(done)
        files[name] = (tmp_path / name).read_bytes()
    assert files["whole.tflite"] == files["resumed.tflite"]


@pytest.mark.parametrize("method", ["int8", "mixed"])
def test_a_latency_is_checked_whatever_the_method(tmp_path: Path, method: str) -> None:
    model, data = write_model(tmp_path, float_file(classifier())), write_examples(tmp_path / "x.npz", 16)
    refused = call(model, tmp_path / "out.tflite", data, "--method", method, "--budget", "latency<0.01us")
    assert refused.exit_code == 1
    assert "us over 0.01 us" in said(refused)
    met = call(model, tmp_path / "out.tflite", data, "--method", method, "--budget", "latency<9s")
    assert met.exit_code == 0
    assert ("no layer has 4 bits: INT8 meets the budget" in met.stdout) is (method == "mixed")


def test_a_training_that_cannot_make_it_faster_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.optimise.qat.train_quantised", None)
    model, data = write_model(tmp_path, float_file(classifier())), write_examples(tmp_path / "x.npz", 16)
    done = call(model, tmp_path / "out.tflite", data, "--qat", "--budget", "latency<0.01us")
    assert done.exit_code == 1
    assert "us over 0.01 us" in said(done)


def test_the_default_method_takes_a_model_in_which_no_layer_has_4_bits(tmp_path: Path) -> None:
    model, out = tmp_path / "points.tflite", tmp_path / "out.tflite"
    model.write_bytes(float_file(Landmarks(3).eval()))
    np.savez(tmp_path / "x.npz", x=pictures(16))
    args = ["optimise", "quantise", str(model), str(out), "--data", str(tmp_path / "x.npz")]
    tight = CliRunner().invoke(vedette, [*args, "--budget", "size<1kB", "--budget", "loss<5pp"])
    assert "the budget is not met" in said(tight)
    named = CliRunner().invoke(vedette, [*args, "--method", "mixed"])
    assert "no layer is left that takes 4 bits" in said(named)
    assert not out.exists()
    done = CliRunner().invoke(vedette, args)
    assert done.exit_code == 0, said(done)
    assert "no layer is left that takes 4 bits: quantised by int8" in done.stdout
    assert out.is_file()
