"""Where the sources are taken from."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BundleError
from agent.update.bundle import Target
from agent.update.bundle.wheels import check_means, find_clone
from tests.support.running import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a vedette that was installed."""
    monkeypatch.setattr("agent.update.bundle.wheels._OWN", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_clone(folder: Path) -> None:
    (folder / "agent").mkdir()
    (folder / "agent" / "__main__.py").touch()
    (folder / "agent" / "__init__.py").touch()
    (folder / "pyproject.toml").write_text('[project]\nname = "vedette"\n')
    (folder / "requirements.lock").touch()


def test_one_that_runs_from_its_clone_takes_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_clone() == ROOT


def test_one_that_was_installed_takes_the_clone_that_it_is_run_in(installed: Path) -> None:
    make_clone(installed)
    assert find_clone() == installed
    assert check_means(Target("aarch64", "3.11"), None, None) == installed / "requirements.lock"


@pytest.mark.parametrize("lacks", ["requirements.lock", "agent/__main__.py", "pyproject.toml"])
def test_what_lacks_a_part_is_no_clone(installed: Path, lacks: str) -> None:
    make_clone(installed)
    (installed / lacks).unlink()
    with pytest.raises(BundleError, match="run it in a clone, or give"):
        find_clone()


@pytest.mark.parametrize("text", ['[project]\nname = "other"\n', "project = 1\n", "[", ""])
def test_the_clone_of_something_else_is_none(installed: Path, text: str) -> None:
    make_clone(installed)
    (installed / "pyproject.toml").write_text(text)
    with pytest.raises(BundleError, match="run it in a clone, or give"):
        find_clone()
