from __future__ import annotations

from pathlib import Path

from agent.cli.checks import Finding
from agent.cli.checks.models import Tried
from agent.cli.doctor import check_configuration
from tests.support.boards import pi4


def findings(path: Path, asked: bool, root: Path) -> list[Finding]:
    return list(
        check_configuration(path, root, asked=asked, tried=[Tried("a 1", nodes=10, delegated=10, ms=1.0)])
    )


def test_every_error_of_a_configuration_is_a_problem_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[streams.front]\nsource = "tset:"\nmodel = "nanodett"\n')
    profile, *found = findings(path, True, pi4(tmp_path / "root"))
    assert profile.value.startswith("pi4b: ")
    assert [one.state for one in found] == ["problem", "problem"]
    assert found[0].value.startswith(f"{path}:2: ")
    assert found[1].advice.startswith(f"correct {path}:3")


def test_a_configuration_that_is_well(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text('[device]\nprofile = "none"\n[streams.front]\nsource = "test:"\nmodel = "nanodet"\n')
    profile, found = findings(path, True, pi4(tmp_path / "root"))
    assert profile.value == "none"
    assert (found.state, found.value) == ("ok", f"{path}: fine")


def test_one_that_is_no_configuration_has_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "vedette.toml"
    path.write_text("[streams")
    (found,) = findings(path, True, pi4(tmp_path / "root"))
    assert found.state == "problem"


def test_the_usual_file_may_be_missing_and_a_named_one_may_not(tmp_path: Path) -> None:
    root = pi4(tmp_path / "root")
    profile, found = findings(tmp_path / "no.toml", False, root)
    assert (profile.name, profile.value.partition(":")[0]) == ("board's profile", "pi4b")
    assert found.state == "ok"
    _, found = findings(tmp_path / "no.toml", True, root)
    assert found.state == "problem"
