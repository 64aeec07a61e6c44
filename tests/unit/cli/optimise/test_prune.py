"""`vedette optimise prune`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.models.library import look_up
from agent.optimise.evaluate import time_ms
from agent.optimise.pruning.file import prune_model
from agent.optimise.train import fit
from agent.storage.files import owned_file
from tests.unit.optimise.pruning.test_channels import network
from tests.unit.optimise.pruning.test_rounds import TRAINING, examples

if load_runtime()[0] != "litert":
    pytest.skip("pruned models are run by LiteRT", allow_module_level=True)

NET = "from tests.unit.optimise.pruning.test_channels import network\n"
RECIPE = """
[prune]
target = 0.5
rounds = 2
round_steps = 2
anneal_epochs = 1.0
[train]
batch = 32
learning_rate = 0.2
"""


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.pruning.file.time_ms", partial(time_ms, rounds=2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network, as weights and as a model, and its data."""
    folder = tmp_path_factory.mktemp("trained")
    module = network()
    fit(module, *examples(), TRAINING)
    torch.save(module.state_dict(), folder / "net.pt")
    (folder / "prune_net.py").write_text(NET)
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "recipe.toml").write_text(RECIPE)
    pictures, labels = examples(100, seed=3)
    np.savez(folder / "data.npz", x=pictures, y=labels)
    normalised = ["--shape", "8x8x3", "--mean", "128", "--std", "64", "--labels", str(folder / "labels.txt")]
    weights = ["--weights", str(folder / "net.pt")]
    done = run("import", f"{folder / 'prune_net.py'}:network", folder / "net.tflite", *weights, *normalised)
    assert done.exit_code == 0, said(done)
    sys.modules.pop("prune_net", None)
    return folder


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Iterator[Path]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    sys.modules.pop("prune_net", None)


def run(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["optimise", *map(str, args)])


def call(folder: Path, *args: object) -> Result:
    options = {"--module": f"{folder / 'prune_net.py'}:network", "--weights": folder / "net.pt"}
    options |= {"--data": folder / "data.npz", "--recipe": folder / "recipe.toml"}
    given = [part for pair in options.items() for part in pair]
    return run("prune", folder / "net.tflite", folder / "new.tflite", *given, *args)


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def test_model_manifest_and_report_are_written(folder: Path) -> None:
    done = call(folder, "--json")
    assert done.exit_code == 0, said(done)
    report = json.loads(done.stdout)
    assert report == json.loads((folder / "new.report.json").read_text())
    assert report["steps"][1]["notes"][0].startswith("50.0% of the connections")
    assert look_up(str(folder / "new.tflite")).manifest.output.labels == ("red", "green", "blue")
    assert not (folder / "new.work").exists()
    assert f"{folder / 'new.tflite'}: written, with .toml and .report.json beside it" in done.stderr


def test_channels_go_where_the_recipe_says_so(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE.replace("[prune]", "[prune]\nstructured = true"))
    done = call(folder)
    assert done.exit_code == 0, said(done)
    assert (folder / "new.tflite").stat().st_size < (folder / "net.tflite").stat().st_size


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(folder).exit_code == 0
    whole = (folder / "new.tflite").read_bytes()

    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agent.optimise.pruning.rounds.PruningRun._anneal", interrupt)
        assert call(folder, "--force").exit_code == 130
    assert (folder / "new.work" / "rounds.checkpoint").is_file()
    assert call(folder, "--force").exit_code == 0
    assert (folder / "new.tflite").read_bytes() == whole


def test_results_that_are_there_are_replaced_by_force_only(folder: Path) -> None:
    (folder / "new.report.json").write_bytes(b"mine")
    done = call(folder)
    assert done.exit_code == 1
    assert "new.report.json: exists" in said(done)
    assert call(folder, "--force").exit_code == 0


def test_without_a_module_there_is_no_pruning(folder: Path) -> None:
    done = run("prune", folder / "net.tflite", folder / "new.tflite", "--data", folder / "data.npz")
    assert (done.exit_code, "give --module" in said(done)) == (2, True)


def test_without_examples_there_is_no_pruning(folder: Path) -> None:
    source = f"{folder / 'prune_net.py'}:network"
    done = run("prune", folder / "net.tflite", folder / "new.tflite", "--module", source)
    assert done.exit_code == 1
    assert "--data" in said(done)


@pytest.mark.parametrize("name", ["net.pt", "recipe.toml", "data.npz", "prune_net.py"])
def test_what_is_read_is_not_replaced_even_by_force(folder: Path, name: str) -> None:
    for suffix in (".tflite", ".toml", ".report.json"):
        out = folder / f"new{suffix}"
        out.symlink_to(folder / name)
        before = (folder / name).read_bytes()
        done = call(folder, "--force")
        assert (done.exit_code, "which is read" in said(done)) == (1, True), said(done)
        assert (folder / name).read_bytes() == before
        out.unlink()


def test_two_runs_do_not_share_a_work_folder(folder: Path) -> None:
    (folder / "new.work").mkdir()
    with owned_file(folder / "new.work" / "run.lock"):
        done = call(folder)
    assert (done.exit_code, "in use by another" in said(done)) == (1, True)
    assert not isinstance(done.exception, OSError)
    assert call(folder).exit_code == 0


def test_a_run_that_fails_leaves_no_empty_work_folder(folder: Path) -> None:
    np.savez(folder / "data.npz", x=examples(100)[0])
    assert call(folder).exit_code == 1
    assert not (folder / "new.work").exists()


def test_another_target_is_told_without_names_of_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agent.optimise.pruning.rounds.PruningRun._anneal", interrupt)
        assert "the same command goes on from" in call(folder).stderr
    (folder / "recipe.toml").write_text(RECIPE.replace("0.5", "0.6"))
    done = call(folder)
    assert "(prune target was 0.5, is now 0.6)" in said(done)


def test_a_result_that_appears_during_the_run_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object, **options: object) -> object:
        (folder / "new.report.json").write_bytes(b"of another run")
        return prune_model(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("agent.optimise.pruning.file.prune_model", slow)
    done = call(folder)
    assert (done.exit_code, "new.report.json: exists" in said(done)) == (1, True)
    assert (folder / "new.report.json").read_bytes() == b"of another run"
    assert not (folder / "new.tflite").exists()
