"""`vedette optimise search`: what it writes, what it refuses, and workers that share a study or are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch", reason="a search needs the extra [optimise]")
optuna = pytest.importorskip("optuna", reason="a search needs the extra [optimise]")

from agent.cli.main import vedette
from agent.compute.infer.litert import load_runtime
from agent.models.library import look_up, open_whole_model
from agent.optimise.report import read_report
from tests.support.float_models import pictures, write_examples
from tests.support.publishing import wait_for

if load_runtime()[0] != "litert":
    pytest.skip("candidates are run by LiteRT", allow_module_level=True)

SPACE = """
from torch import nn


def build(width, deep=False):
    if width == 6:
        raise ValueError("six is no width")
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    if deep:
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))
"""
TOGETHER = """

alone = build


def build(**parameters):
    import os, pathlib, time

    folder = pathlib.Path(__file__).parent
    (folder / f"{os.getpid()}.here").touch()
    while len(list(folder.glob("*.here"))) < int(os.environ.get("WORKERS", "1")):
        time.sleep(0.01)
    return alone(**parameters)
"""
"""Makes each worker wait in its first candidate until all are there."""
RECIPE = """
[search]
space = "search_net.py:build"
shape = [12, 12, 3]
rungs = [1, 2]
[search.parameters]
width = {choices = [4, 8]}
deep = {choices = [true, false]}
[train]
batch = 16
learning_rate = 0.1
[data]
path = "data.npz"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "search_net.py").write_text(SPACE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write_examples(tmp_path / "data.npz", 64)
    yield tmp_path
    sys.modules.pop("search_net", None)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "agent.optimise.search.latency.LocalMeter.measure", lambda _self, content: len(content) / 1e3
    )


def run(*args: object) -> Result:
    sys.modules.pop("search_net", None)
    return CliRunner().invoke(vedette, ["optimise", *map(str, args)])


def search(folder: Path, *args: object) -> Result:
    return run("search", folder / "recipe.toml", "--study", folder / "study", *args)


def begin(folder: Path, *args: object) -> subprocess.Popen[str]:
    words = ["search", str(folder / "recipe.toml"), "--study", str(folder / "study"), *map(str, args)]
    return subprocess.Popen(
        [sys.executable, "-m", "agent", "optimise", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(done: Result) -> str:
    return f"{done.output}{done.exception or ''}"


def change(folder: Path, before: str, after: str) -> None:
    text = (folder / "recipe.toml").read_text()
    assert before in text
    (folder / "recipe.toml").write_text(text.replace(before, after))


def test_the_front_and_its_files_are_written(folder: Path) -> None:
    done = search(folder, "--trials", 3, "--json")
    assert done.exit_code == 0, said(done)
    found = json.loads(done.stdout)
    assert len(found["trials"]) == 3
    assert found["front"]

    best = next(one for one in found["trials"] if one["number"] == found["front"][0])
    path = folder / "study" / "trials" / f"{best['number']:05d}" / "int8.tflite"
    assert path.stat().st_size == best["size"]
    model = look_up(str(path))
    assert model.manifest.input.mean == (128.0, 128.0, 128.0)
    report = read_report(path.with_suffix(".report.json"))
    assert report.sha256_after == model.sha256
    assert report.command
    (step,) = report.steps
    assert step.score is not None
    assert f"width = {best['parameters']['width']}" in step.notes
    unquantised = open_whole_model(str(path.with_name("float.tflite")))
    told = read_report(path.with_name("float.report.json"))
    assert (told.sha256_after, told.learned) == (unquantised.sha256, report.learned)
    assert report.learned

    again = search(folder, "--trials", 3)
    assert again.exit_code == 0
    assert "3 trials: " in again.stdout, "nothing is left to do"


def test_all_of_a_small_space_is_tried_and_a_network_that_fails_is_left_out(folder: Path) -> None:
    change(folder, "choices = [4, 8]", "choices = [4, 6]")
    done = search(folder, "--json")
    assert done.exit_code == 0, said(done)
    trials = json.loads(done.stdout)["trials"]
    assert len(trials) == 4
    failed = [one for one in trials if one["parameters"]["width"] == 6]
    assert {one["state"] for one in failed} == {"failed"}
    assert failed[0]["reason"].endswith("search_net.py:build: line 7: ValueError: six is no width")


def test_a_network_over_the_budget_is_not_trained(folder: Path) -> None:
    change(folder, "rungs = [1, 2]", 'rungs = [1, 2]\nbudget = "size<1kB"')
    done = search(folder, "--trials", 2, "--json")
    assert done.exit_code == 1
    assert "no trial meets the budget size<1kB; the last one is " in said(done)
    trials = json.loads(done.stdout.splitlines()[0])["trials"]
    assert [one["state"] for one in trials] == ["stopped", "stopped"]
    assert "over the budget: size" in trials[0]["reason"]
    assert trials[0]["rungs"] == {}


def test_trials_that_all_fail_are_no_success(folder: Path) -> None:
    change(folder, "choices = [4, 8]", "choices = [6]")
    done = search(folder, "--trials", 2)
    assert done.exit_code == 1
    assert "all 2 trials failed: " in said(done)
    assert json.loads(search(folder, "--trials", 2, "--json").stdout)["front"] == []


def test_networks_that_end_in_a_softmax_fail_before_their_training(folder: Path) -> None:
    (folder / "search_net.py").write_text(
        SPACE.replace("nn.Linear(4 * width, 4)", "nn.Linear(4 * width, 4), nn.Softmax(1)")
    )
    assert "search_net.py:build: ends in a softmax" in said(search(folder, "--trials", 1))


def test_examples_of_one_class_are_refused(folder: Path) -> None:
    np.savez(folder / "data.npz", x=pictures(20), y=np.zeros(20, int), names=["a", "b"])
    assert "all of one class" in said(search(folder))
    assert not (folder / "study").exists()


def test_examples_to_learn_from_of_one_class_are_refused(folder: Path) -> None:
    np.savez(folder / "data.npz", x=pictures(31), y=np.arange(31) // 30, names=["a", "b"])
    assert "to learn from are all of one class" in said(search(folder))
    assert not (folder / "study").exists()


def test_a_search_in_which_all_fail_ends_with_the_reason(folder: Path) -> None:
    change(folder, "choices = [4, 8]", "low = 100, high = 200")
    change(folder, "shape = [12, 12, 3]", "shape = [2, 2, 3]")
    (folder / "search_net.py").write_text(SPACE.replace("MaxPool2d(2)", "MaxPool2d(4)"))
    done = search(folder)
    assert done.exit_code == 1
    assert "all of the first 5 candidates fail" in said(done)
    assert not (folder / "study" / "trials").exists()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("width =", "breadth =", "does not fit [search.parameters]"),
        ("deep = {choices = [true, false]}", "deeper = {choices = [1]}", "'deeper'"),
        ("search_net.py:build", "search_net.py:built", "did you mean 'build'?"),
        ('path = "data.npz"', 'path = "none.npz"', "none.npz"),
        ('path = "data.npz"', "", "--data"),
        ("choices = [4, 8]", "low = 4", "recipe.toml:7: [search.parameters] width: expected choices, or low and"),
        ("rungs = [1, 2]", "rungs = [2, 1]", "recipe.toml:5: [search] rungs"),
        ("rungs = [1, 2]", 'budget = "loss<1pp"', "recipe.toml:5: [search] budget"),
        ('space = "search_net.py:build"', "", "needs space and parameters"),
    ],
)
def test_a_mistake_in_the_recipe_is_told(folder: Path, before: str, after: str, told: str) -> None:
    change(folder, before, after)
    done = search(folder, "--trials", 1)
    assert done.exit_code == 1
    assert told in said(done)
    assert "Traceback" not in said(done)


def test_examples_without_classes_are_refused(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.zeros((20, 12, 12, 3), np.uint8))
    assert "training needs two classes or more" in said(search(folder))


@pytest.mark.parametrize(
    ("channels", "normalised"), [(2, "mean = 50.0\nstd = 9.0"), (1, "mean = 0.0\nstd = 1.0")]
)
def test_real_values_are_trained_as_they_are(folder: Path, channels: int, normalised: str) -> None:
    values = (pictures(128)[..., :channels].astype(np.float32) - 110.0) / 50.0
    np.savez(folder / "data.npz", x=values, y=np.arange(128) % 4)
    (folder / "search_net.py").write_text(
        SPACE.replace("Conv2d(3", f"Conv2d({channels}").replace(
            "    layers =", "    import search_later\n\n    layers ="
        )
    )
    (folder / "search_later.py").write_text("")
    change(folder, "12, 3]\nrungs = [1, 2]", f"12, {channels}]\nrungs = [12]\n{normalised}")
    done = search(folder, "--trials", 1, "--json")
    assert done.exit_code == 0, said(done)
    (trial,) = json.loads(done.stdout)["trials"]
    assert trial["accuracy"] > 0.8
    assert "guess" not in said(done)
    model = open_whole_model(str(folder / "study" / "trials" / "00000" / "float.tflite"))
    assert (model.manifest.input.mean, model.manifest.input.std) == ((0.0,) * 3, (1.0,) * 3)
    words = ("--data", folder / "data.npz", "--method", "int8", "--json")
    smaller = run("quantise", model.path, folder / "int8.tflite", *words)
    assert smaller.exit_code == 0, said(smaller)
    assert json.loads(smaller.stdout)["steps"][-1]["score"] > 0.8
    assert not open_whole_model(str(folder / "int8.tflite")).manifest.input.pixels


def test_that_the_best_network_guesses_is_told(folder: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 256)
    np.savez(folder / "data.npz", x=pictures(256), y=labels)
    assert "hardly" in search(folder, "--trials", 1).stderr


def test_a_study_of_another_recipe_is_refused(folder: Path) -> None:
    assert search(folder, "--trials", 1).exit_code == 0
    (folder / "search_net.py").write_text(f"{SPACE}\n# another one\n")
    assert "[search] space was search_net.py:build, CRC" in said(search(folder, "--trials", 2))
    (folder / "search_net.py").write_text(SPACE)
    change(folder, "learning_rate = 0.1", "learning_rate = 0.2")
    done = search(folder, "--trials", 2)
    assert done.exit_code == 1
    assert "[train] learning_rate was 0.1, and is 0.2 here" in said(done)


@pytest.mark.parametrize(
    ("script", "told"),
    [("exit 255", "nowhere: cannot be reached"), ("exit 127", "nowhere: has no command `vedette`")],
)
def test_a_board_is_asked_before_the_study_is_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    (folder / "programs").mkdir()
    ssh = folder / "programs" / "ssh"
    ssh.write_text(f"#!/bin/sh\n{script}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "programs"), prepend=":")
    done = search(folder, "--trials", 1, "--board", "nowhere")
    assert done.exit_code == 1
    assert told in said(done)
    assert not (folder / "study").exists()


def test_a_study_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "study").write_text("a file")
    done = search(folder)
    assert done.exit_code == 1
    assert "study" in said(done)
    assert "Traceback" not in said(done)


def test_a_full_disk_ends_the_search_and_the_trial_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.storage.files.open_replacement", full)
        done = search(folder, "--trials", 1)
    assert done.exit_code == 1
    assert "No space left on device" in said(done)
    found = json.loads(search(folder, "--trials", 1, "--json").stdout)
    assert [one["state"] for one in found["trials"]] == ["complete"]


def test_a_disk_that_is_too_full_for_the_study_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend.append_logs", full)
    done = search(folder, "--trials", 1)
    assert done.exit_code == 1
    assert "study cannot be read or written: No space left on device" in said(done)


def test_ctrl_c_puts_the_trial_back_and_the_same_command_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agent.optimise.search.candidate.SearchCandidate._finish", interrupt)
        done = search(folder, "--trials", 1)
        assert done.exit_code == 130
        assert "interrupted: the same command goes on from" in said(done)
    (trial,) = json.loads(search(folder, "--trials", 1, "--json").stdout)["trials"]
    assert trial["state"] == "complete"


def test_a_search_ends_after_its_time(folder: Path) -> None:
    change(folder, "rungs = [1, 2]", "rungs = [100000]")
    done = search(folder, "--for", "1s", "--json")
    assert done.exit_code == 0, said(done)
    assert [one["state"] for one in json.loads(done.stdout)["trials"]] == ["waiting"]


@pytest.mark.system
def test_a_search_that_is_terminated_puts_its_trial_back(folder: Path) -> None:
    change(folder, "rungs = [1, 2]", "rungs = [1, 100000]")
    command = begin(folder)
    journal = folder / "study" / "study.journal"
    try:
        wait_for(lambda: journal.is_file() and '"rungs":{"1"' in journal.read_text(), 100.0)
        command.send_signal(signal.SIGTERM)
        command.wait(60.0)
    finally:
        command.kill()
        command.communicate()
    states = [one["state"] for one in json.loads(search(folder, "--for", "0.001s", "--json").stdout)["trials"]]
    assert "waiting" in states
    assert "running" not in states


@pytest.mark.system
def test_two_processes_share_a_study_and_what_a_killed_one_had_begun_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, "rungs = [1, 2]", "rungs = [1, 60]")
    (folder / "search_net.py").write_text(SPACE + TOGETHER)
    killed = begin(folder, "--trials", 2)
    journal = folder / "study" / "study.journal"
    try:
        wait_for(lambda: journal.is_file() and '"rungs":{"1"' in journal.read_text(), 100.0)
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.communicate()
    monkeypatch.setenv("WORKERS", "3")
    workers = [begin(folder, "--trials", 3, "--json") for _ in range(2)]
    try:
        answers = [json.loads(worker.communicate(timeout=200)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert answers[0]["front"] == answers[1]["front"], "both have waited for each other"
    trials = answers[0]["trials"]
    assert len(trials) == 3
    assert {one["worker"].rpartition(":")[2] for one in trials} == {str(worker.pid) for worker in workers}
    assert all(one["number"] for one in trials), "the killed one's was begun again"
    assert len({json.dumps(one["parameters"]) for one in trials}) == 3
