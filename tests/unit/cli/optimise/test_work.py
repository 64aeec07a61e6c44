"""The folder of checkpoints: what an error leaves there, and what it removes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.main import vedette
from agent.cli.optimise.work import work_folder
from agent.errors import CheckpointError, DivergedError, StorageError

NAMES = ("a.checkpoint", "b.checkpoint")


def fail(folder: Path, checkpoint: str, error: Exception) -> None:
    with work_folder(folder, NAMES):
        (folder / checkpoint).write_bytes(b"half")
        raise error


def test_nothing_is_left_of_a_run_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with work_folder(folder, NAMES):
        assert folder.is_dir()
    assert not folder.exists()


def test_nothing_is_left_of_a_run_that_is_terminated(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "work", NAMES):
        signal.raise_signal(signal.SIGTERM)
    assert not (tmp_path / "work").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_stays_after_an_error_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageError):
        fail(tmp_path / "work", "a.checkpoint", StorageError("full"))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["a.checkpoint"]
    told = capsys.readouterr().err
    assert str(tmp_path / "work") in told


def test_a_checkpoint_that_the_run_could_not_use_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.checkpoint").write_bytes(b"of another run")
    with pytest.raises(CheckpointError), work_folder(tmp_path, NAMES):
        raise CheckpointError("belongs to another run")
    assert (tmp_path / "a.checkpoint").read_bytes() == b"of another run"
    assert capsys.readouterr().err == ""


def test_a_training_that_has_diverged_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with pytest.raises(DivergedError):
        fail(folder, "b.checkpoint", DivergedError("the loss is nan"))
    assert not folder.exists()


def test_what_a_killed_run_was_writing_is_removed_and_strangers_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "[work]"
    folder.mkdir()
    (folder / ".a.checkpoint.0123456789abcdef.tmp").write_bytes(b"cut off")
    (folder / "run.lock").touch()
    (folder / ".notes.tmp").touch()
    with work_folder(folder, NAMES):
        pass
    assert [path.name for path in folder.iterdir()] == [".notes.tmp"]


@pytest.mark.parametrize("step", ["anomaly", "depth", "prune", "quantise", "search", "train", "tune"])
def test_nothing_is_written_among_the_examples(tmp_path: Path, step: str) -> None:
    if step in ("quantise", "search"):
        pytest.importorskip("optuna", reason="needs the extra [optimise]")
    data, recipe = tmp_path / "data", tmp_path / "recipe.toml"
    (data / "a").mkdir(parents=True)
    (data / "a" / "new.png").write_bytes(b"a picture of the examples")
    (tmp_path / "link").symlink_to(data)
    recipe.write_text('[data]\npath = "data"\n')
    out = tmp_path / "link" / "a" / "new.tflite"
    given: list[list[Path | str]] = [["inspection", out, "--data", data, "--force"]]
    if step == "prune":
        given[0] += ["--module", "net.py:make"]
    if step == "train":
        given = [["tiny", *given[0][1:]]]
    if step == "search":
        given = [[recipe, "--study", out.parent], [recipe, "--study", data]]
    for words in given:
        done = CliRunner().invoke(vedette, ["optimise", step, *map(str, words)])
        said = f"{done.output}{done.exception}"
        assert (done.exit_code, "lies among the examples in" in said) == (1, True), said
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "a", "new.png", "link", "recipe.toml"}
