"""`vedette optimise tune`: what it writes, and when it writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import Model
from agent.errors import CheckpointError, ModelError
from agent.models.library import look_up

if load_runtime()[0] != "litert":
    pytest.skip("rewrites need LiteRT's schema", allow_module_level=True)

from agent.optimise import tune_steps
from agent.optimise.profile import ModelProfile
from agent.optimise.report import OptimiseReport
from agent.optimise.tune import Meters, ModelState, Progress, TuningStep, tune
from tests.unit.cli.optimise.test_optimise import said, unfused

MANIFEST = """
file = "model.tflite"
[input]
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[output]
decoder = "classify"
labels = "labels.txt"
"""


def times(contents: Sequence[bytes]) -> list[float]:
    """Say that the second file is faster: a model as small as this one is too quick to be timed."""
    return [10.0 if content == contents[0] else 8.0 for content in contents]


def no_profile(model: Model) -> ModelProfile:
    raise ModelError("there is no profiler")


METERS = Meters(times, lambda content, manifest: 20.0, no_profile)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.tflite").write_bytes(unfused())
    (tmp_path / "model.toml").write_text(MANIFEST)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    pictures = np.random.default_rng(1).integers(0, 255, (20, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=pictures, y=np.arange(20) % 2)
    monkeypatch.setattr(tune_steps, "tune", partial(tune, meters=METERS))
    return tmp_path


def call(folder: Path, *args: str) -> Result:
    model, out = folder / "model.tflite", folder / "out.tflite"
    return CliRunner().invoke(vedette, ["optimise", "tune", str(model), str(out), *args])


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("out.*"))


def test_the_model_and_all_reports_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_steps, "logits_keys", lambda *_: {"output": {"options": {"logits": "sigmoid"}}})
    sha256 = hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()
    before = OptimiseReport("train", "net", sha256_after=sha256, learned=("0" * 12,))
    (folder / "model.report.json").write_bytes(msgspec.json.encode(before))
    done = call(folder, "--data", str(folder / "x.npz"))
    assert done.exit_code == 0, said(done)
    kinds = ["out.report.json", "out.report.md", "out.tflite", "out.toml"]
    assert written(folder) == kinds
    report = json.loads((folder / "out.report.json").read_text())
    assert [report["steps"][place]["name"] for place in (0, -2, -1)] == ["before", "fuse", "after"]
    assert report["learned"] == ["0" * 12]
    output = look_up(str(folder / "out.tflite")).manifest.output
    assert (output.labels, output.options["logits"]) == (("cat", "dog"), "sigmoid")
    assert "fuse" in (folder / "out.report.md").read_text()
    assert call(folder, "--data", str(folder / "x.npz")).exit_code == 1
    assert call(folder, "--data", str(folder / "x.npz"), "--force").exit_code == 0


def test_a_budget_that_is_not_met_writes_nothing(folder: Path) -> None:
    (folder / "out.tflite").write_bytes(b"before")
    done = call(folder, "--data", str(folder / "x.npz"), "--budget", "latency<0.01us", "--force")
    assert done.exit_code == 1
    assert "us over 0.01 us" in said(done)
    assert written(folder) == ["out.tflite"]
    assert (folder / "out.tflite").read_bytes() == b"before"
    as_json = call(folder, "--data", str(folder / "x.npz"), "--budget", "latency<0.01us", "--force", "--json")
    assert as_json.exit_code == 1
    report = json.loads(as_json.stdout)  # the report, and nothing else
    assert report["missed"]
    assert report["sha256_after"] == ""


def test_the_recipe_names_the_examples_and_the_budget(folder: Path) -> None:
    recipe = folder / "r.toml"
    recipe.write_text('[data]\npath = "x.npz"\n[quantise]\nbudget = "latency<0.01us"\n')
    done = call(folder, "--recipe", str(recipe))
    assert done.exit_code == 1
    assert "budget" in said(done)
    assert "20 examples" in said(done)


@pytest.mark.parametrize(
    ("args", "fact"),
    [
        ((), "--data"),
        (("--data", "missing"), "missing"),
        (("--data", "x.npz", "--budget", "size<1"), "MB"),
        (("--data", "x.npz", "--recipe", "missing.toml"), "missing.toml"),
    ],
)
def test_what_is_missing_or_wrong_is_told(folder: Path, args: Sequence[str], fact: str) -> None:
    done = call(folder, *(str(folder / arg) if arg == "x.npz" else arg for arg in args))
    assert done.exit_code == 1
    assert fact in said(done)
    assert written(folder) == []


def test_a_file_that_the_manifest_names_is_missed_before_the_work(folder: Path) -> None:
    (folder / "model.toml").write_text(f'{MANIFEST}[golden]\nfiles = ["golden.png"]\n')
    done = call(folder, "--data", str(folder / "x.npz"))
    assert done.exit_code == 1
    assert "golden.png" in said(done)
    assert "examples" not in said(done)


def test_json_is_the_report(folder: Path) -> None:
    done = call(folder, "--data", str(folder / "x.npz"), "--json")
    assert json.loads(done.stdout)["step"] == "tune"


@pytest.mark.parametrize("suffix", [".toml", ".report.json", ".report.md"])
def test_a_recipe_is_not_replaced_even_by_force(folder: Path, suffix: str) -> None:
    recipe = folder / f"out{suffix}"
    recipe.write_text('[data]\npath = "x.npz"\n')
    done = call(folder, "--recipe", str(recipe), "--force")
    assert (done.exit_code, "which is read" in said(done)) == (1, True)
    assert recipe.read_text() == '[data]\npath = "x.npz"\n'


def test_a_step_that_failed_is_told_when_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(state: ModelState, progress: Progress) -> ModelState:
        raise ModelError("the model is quantised already")

    monkeypatch.setattr(tune_steps, "steps_of", lambda *_: [TuningStep("quantise, int8", broken)])
    done = call(folder, "--data", str(folder / "x.npz"))
    assert done.exit_code == 1
    assert "quantise, int8: the model is quantised already" in said(done)
    assert written(folder) == []


def test_a_checkpoint_that_is_refused_stays_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(state: ModelState, progress: Progress) -> ModelState:
        raise CheckpointError("int8.checkpoint: belongs to another run")

    monkeypatch.setattr(tune_steps, "steps_of", lambda *_: [TuningStep("train, int8", refusing)])
    checkpoint = folder / "out.work" / "int8.checkpoint"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"hours of work")
    done = call(folder, "--data", str(folder / "x.npz"))
    assert (done.exit_code, checkpoint.read_bytes()) == (1, b"hours of work")
    assert "int8.checkpoint: belongs to another run" in said(done)
    assert written(folder) == ["out.work"]


def test_few_examples_are_refused(folder: Path) -> None:
    assert "8" in said(call(folder, "--data", str(folder / "x.npz"), "--limit", "7"))
