"""`vedette optimise depth`: the cascade that it writes, what other commands make of it, and what it refuses."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="exits need the extra [optimise]")

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.models.library import look_up, open_whole_model
from agent.optimise.calibrate import CalibrationResult
from agent.optimise.data import read_examples
from agent.optimise.depth.calibration import exit_scores
from agent.optimise.evaluate import time_ms
from agent.storage.files import owned_file
from tests.support.float_models import (
    CLASSES,
    classifier,
    float_file,
    pictures,
    write_examples,
    write_model,
)
from tests.unit.optimise.sound_model import write_sound

if load_runtime()[0] != "litert":
    pytest.skip("cascades of pictures are run by LiteRT", allow_module_level=True)

torch.set_num_threads(1)
AUTO = ("--variant", "auto")
RECIPE = "[depth]\nepochs = 3.0\n[train]\nbatch = 32\nflip = false\n"


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", partial(time_ms, rounds=1))
    monkeypatch.setattr("agent.optimise.depth.calibration._TIMED", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path, float_file(classifier()))
    write_examples(tmp_path / "data.npz", 320)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, list(map(str, args)))


def call(folder: Path, *args: object) -> Result:
    data, recipe = folder / "data.npz", folder / "recipe.toml"
    given = ["--data", data, "--recipe", recipe, *args]
    return run("optimise", "depth", folder / "net.tflite", folder / "deep.tflite", *given)


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def manifest(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_the_cascade_its_manifest_reports_and_chart_are_written(folder: Path) -> None:
    done = call(folder, "--json")
    assert done.exit_code == 0, said(done)
    report = json.loads(done.stdout)
    assert report == json.loads((folder / "deep.report.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert list(steps) == ["before", "exit1", "exit2", "exit3", "cascade"]
    assert steps["cascade"]["score"] > steps["before"]["score"]
    assert "examples that decided nothing" in steps["before"]["notes"][0]
    assert steps["cascade"]["latency_ms"] > 0
    assert re.search("trained together: accuracy of the exits .* of the examples for the thresholds", done.stderr)
    assert (folder / "deep.png").read_bytes().startswith(b"\x89PNG")
    assert "| cascade |" in (folder / "deep.report.md").read_text()
    assert not (folder / "deep.work").exists()


def test_the_manifest_has_the_exits_deepest_first(folder: Path) -> None:
    (folder / "net.toml").write_text(f'licence = "MIT"\n{(folder / "net.toml").read_text()}')
    assert call(folder, "--freeze").exit_code == 0
    found = manifest(folder / "deep.toml")
    assert [(one["name"], one.get("after")) for one in found["variants"]] == [
        ("exit3", "exit2"),
        ("exit2", "exit1"),
        ("exit1", None),
    ]
    assert [one["depth"] for one in found["variants"]] == [5, 3, 1]
    assert [("confidence" in one, "temperature" in one) for one in found["variants"]] == [
        (False, True),
        (True, True),
        (True, True),
    ]
    assert (found["licence"], found["output"]["options"]) == ("MIT", {"logits": True})
    assert open_whole_model(str(folder / "deep.toml")).manifest.cascade[0].name == "exit1"


@pytest.mark.usefixtures("worker_sessions")
def test_frozen_the_deepest_exit_answers_as_the_model_did(folder: Path) -> None:
    assert call(folder, "--freeze", "--exits", 2).exit_code == 0
    data = folder / "data.npz"
    scores = []
    for name in ("net.toml", "deep.toml"):
        model = open_whole_model(str(folder / name))
        if name == "deep.toml":
            found = exit_scores(model.content, model.manifest, read_examples(data, model, limit=20)).logits[:, -1]
            scores.append(found)
    from agent.optimise.evaluate import open_content, outputs_of

    model = open_whole_model(str(folder / "net.toml"))
    with open_content(model.content, model.manifest) as session:
        before = np.concatenate([one[0] for one in outputs_of(session, read_examples(data, model, limit=20))])
    assert np.allclose(scores[0], before, atol=1e-4)
    net, deepest, cascade = (
        json.loads(run("optimise", "evaluate", folder / name, data, "--limit", 80, "--json", *more).stdout)
        for name, *more in (("net.tflite",), ("deep.tflite", "--variant", "exit2"), ("deep.tflite", *AUTO))
    )
    assert (deepest["value"], deepest["confusions"]) == (net["value"], net["confusions"])
    assert "answered by exit1" in " ".join(cascade["remarks"])
    assert not any("answered by" in remark for remark in (*net["remarks"], *deepest["remarks"]))
    assert "leave `variant` out" in said(run("optimise", "evaluate", folder / "net.tflite", data, *AUTO))


def test_sound_is_trained_as_it_is_and_a_keyword_model_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CalibrationResult, "lost", 0.02)
    write_sound(tmp_path, 320)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = call(tmp_path, "--json")
    assert done.exit_code == 0, said(done)
    report = json.loads(done.stdout)
    assert "loses more than the 0.5 percentage points" in report["remarks"][0]
    before, *exits, _ = report["steps"]
    assert before["score"] > 0.95
    assert exits[-1]["score"] > 0.95
    assert exits[0]["score"] > 0.5  # of values as they are; rounded to pixels, all are the same
    written = manifest(tmp_path / "deep.toml")
    assert written["output"]["decoder"] == "keyword"
    assert written["output"]["options"] == {"logits": True, "mean_of": 2}
    assert "audio" in written
    assert run("models", "inspect", tmp_path / "deep.tflite").exit_code == 0


def test_a_model_without_a_manifest_gets_one(folder: Path) -> None:
    (folder / "net.toml").unlink()
    with np.load(folder / "data.npz") as data:
        np.savez(folder / "data.npz", x=(data["x"] - 128.0).astype(np.float32) / 64, y=data["y"])
    done = call(folder)
    assert done.exit_code == 1
    assert "mean" in said(done), "the manifest has to say what pixels become"


def test_quantised_and_calibrated_again_it_is_still_a_cascade(folder: Path) -> None:
    assert call(folder).exit_code == 0
    deep, small, data = folder / "deep.tflite", folder / "small.tflite", folder / "data.npz"
    done = run("optimise", "quantise", deep, small, "--data", data, "--method", "int8")
    assert done.exit_code == 0, said(done)
    assert "`vedette optimise calibrate` learns them again" in done.stdout
    scores = []
    for path in (deep, small):
        model = open_whole_model(str(path))
        examples = read_examples(data, model, limit=40)
        scores.append(exit_scores(model.content, model.manifest, examples).logits)
    assert np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1] > 0.98
    assert small.stat().st_size < 0.7 * deep.stat().st_size
    before = manifest(folder / "small.toml")["variants"]
    text = (folder / "small.toml").read_text().replace("temperature = ", "temperature = 9")
    (folder / "small.toml").write_text(text)
    done = run("optimise", "calibrate", small, data, "--json")
    assert done.exit_code == 0, said(done)
    assert json.loads(done.stdout)["recordings"] == 320
    assert "was trained on some of these examples, 128 of 128 that were compared" in done.stderr
    after = manifest(folder / "small.toml")["variants"]
    assert [one["name"] for one in after] == [one["name"] for one in before]
    assert all(one["temperature"] < 9 for one in after)
    assert run("models", "inspect", small).exit_code == 0
    with np.load(data) as kept:
        fewer = kept["y"] > 0
        np.savez(folder / "fewer.npz", **{key: kept[key][fewer] if key in "xy" else kept[key] for key in kept})
    done = run("optimise", "calibrate", small, folder / "fewer.npz")
    assert "1 of the model's " in done.stderr, "a class has no example"


def test_a_cascade_is_trained_with_the_rounding_in_place(folder: Path) -> None:
    assert call(folder, "--freeze").exit_code == 0
    (folder / "q.toml").write_text("[qat]\nsteps = 3\nbatch = 16\n")
    given = ["--data", folder / "data.npz", "--method", "int8", "--qat", "--recipe", folder / "q.toml"]
    done = run("optimise", "quantise", folder / "deep.tflite", folder / "small.tflite", *given)
    assert done.exit_code == 0, said(done)
    assert "qat" in done.stdout
    assert look_up(str(folder / "small.tflite")).manifest.cascade


def interrupt(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(folder).exit_code == 0
    whole = (folder / "deep.tflite").read_bytes()
    for place in ("training.fit", "file.exit_scores"):
        with monkeypatch.context() as patch:
            patch.setattr(f"agent.optimise.depth.{place}", interrupt)
            done = call(folder, "--force")
            assert done.exit_code == 130
            assert f"the same command goes on from {folder / 'deep.work'}" in done.stderr
    assert {path.name for path in (folder / "deep.work").iterdir()} == {"heads.checkpoint", "joint.checkpoint"}
    assert call(folder, "--force").exit_code == 0
    assert (folder / "deep.tflite").read_bytes() == whole


def test_a_checkpoint_of_another_run_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("agent.optimise.depth.training.fit", interrupt)
        assert call(folder).exit_code == 130
    write_examples(folder / "data.npz", 320, seed=1)
    done = call(folder)
    assert done.exit_code == 1
    assert "belongs to another run (pictures was" in said(done)


def without_labels(folder: Path) -> tuple[object, ...]:
    np.savez(folder / "data.npz", x=pictures(320))
    return ()


def labels_out_of_range(folder: Path) -> tuple[object, ...]:
    np.savez(folder / "data.npz", x=pictures(320), y=np.arange(320) % (CLASSES + 1))
    return ()


def few_examples(_: Path) -> tuple[object, ...]:
    return ("--limit", 100)


def quantised(folder: Path) -> tuple[object, ...]:
    given = ["--data", folder / "data.npz", "--method", "int8"]
    assert run("optimise", "quantise", folder / "net.tflite", folder / "net8.tflite", *given).exit_code == 0
    (folder / "net8.tflite").replace(folder / "net.tflite")
    (folder / "net8.toml").unlink()
    write_model(folder, (folder / "net.tflite").read_bytes())
    return ()


def no_examples(folder: Path) -> tuple[object, ...]:
    (folder / "data.npz").unlink()
    return ()


@pytest.mark.parametrize(
    ("prepare", "fault"),
    [
        (without_labels, "exits are trained, and need examples with classes"),
        (labels_out_of_range, "class 4 is out of range"),
        (few_examples, "25 of them are to learn thresholds from; expected at least 40"),
        (quantised, "is quantised already: give the float model"),
        (no_examples, "data.npz"),
        (lambda _: ("--at", "head"), "'head' is no place for an exit; it can be cut at: max_pool2d (53%), "),
        (lambda _: ("--at", "stemm"), "'stemm' is no place for an exit; it can be cut at: "),
        (lambda _: ("--at", ","), "expected names of tensors"),
        (lambda _: ("--exits", 9), "9 exits: the graph can be cut at"),
        (lambda _: ("--freeze", "--epochs", 1), "--freeze trains the heads alone"),
        (lambda _: ("--at", "3", "--exits", 3), "--at names the places"),
        (lambda _: ("--loss", 100), "100"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    folder: Path, prepare: Callable[[Path], tuple[object, ...]], fault: str
) -> None:
    done = call(folder, *prepare(folder))
    assert done.exit_code in (1, 2), said(done)
    assert fault in said(done)
    assert not list(folder.glob("deep*"))


def test_a_cascade_gets_no_second_one(folder: Path) -> None:
    assert call(folder, "--freeze").exit_code == 0
    args = ["--data", folder / "data.npz"]
    done = run("optimise", "depth", folder / "deep.tflite", folder / "deeper.tflite", *args)
    assert done.exit_code == 1
    assert "3 graphs: give a model of one, which has no exits yet" in said(done)


def test_a_cascade_is_not_tuned(folder: Path) -> None:
    assert call(folder, "--freeze").exit_code == 0
    args = ["--data", folder / "data.npz"]
    done = run("optimise", "tune", folder / "deep.tflite", folder / "tuned.tflite", *args)
    assert done.exit_code == 1
    assert "has exits, which tune cannot measure" in said(done)


@pytest.mark.parametrize("name", ["net.tflite", "recipe.toml", "data.npz"])
def test_what_is_read_is_not_replaced_even_by_force(folder: Path, name: str) -> None:
    before = (folder / name).read_bytes()
    for suffix in (".tflite", ".toml", ".report.json", ".report.md", ".png"):
        out = folder / f"deep{suffix}"
        out.symlink_to(folder / name)
        done = call(folder, "--force")
        assert done.exit_code == 1
        assert "would replace" in said(done)
        out.unlink()
    assert (folder / name).read_bytes() == before


def test_two_runs_do_not_share_a_folder(folder: Path) -> None:
    (folder / "deep.work").mkdir()
    with owned_file(folder / "deep.work" / "run.lock"):
        done = call(folder)
    assert done.exit_code == 1
    assert "run.lock" in said(done)


def test_thresholds_of_a_model_without_exits_are_not_learned(folder: Path) -> None:
    done = run("optimise", "calibrate", folder / "net.toml", folder / "data.npz")
    assert done.exit_code == 1
    assert "models with several depths only" in said(done)


def test_a_model_that_guesses_is_told(folder: Path) -> None:
    """As with labels in another order, or values of another range."""
    done = call(folder, "--freeze", "--json")
    assert done.exit_code == 0, said(done)
    assert "the model is hardly better than a guess" in done.stderr
    doubt = next(line for line in json.loads(done.stdout)["remarks"] if "hardly better than a guess" in line)
    assert "check their labels and the range of their values" in doubt
    assert re.search(r"of the \d+ examples for the thresholds", doubt)
