"""Preflight checks of a bundle on a board."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.errors import UpdateError
from agent.update.bundle import BundleFile, Description, Target
from agent.update.install.preflight import BoardFacts, check_board, find_python, objections, read_facts

TARGET = Target("aarch64", "3.11", "2.34", ["pi4b"])
WANTED = Description(
    1, "vedette", "2.0", 3, "full", TARGET, files={"wheels/a.whl": BundleFile("0" * 64, 100 << 20)}
)
FACTS = BoardFacts(
    arch="aarch64",
    glibc="2.36",
    pythons=frozenset(["3.11", "3.13"]),
    profile="pi4b",
    free_mb=1000,
    is_underpowered=False,
    counter=2,
    has_current=True,
)


def test_a_board_that_fits_has_no_objection() -> None:
    assert list(objections(WANTED, FACTS)) == []
    check_board(WANTED, FACTS)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (replace(FACTS, arch="armv7l"), "for aarch64, this board is armv7l"),
        (replace(FACTS, profile="pi5"), "for pi4b, this board is pi5"),
        (replace(FACTS, profile=""), "for pi4b, this board is of no known kind"),
        (replace(FACTS, pythons=frozenset(["3.13"])), "needs Python 3.11, this board has 3.13"),
        (replace(FACTS, pythons=frozenset()), "needs Python 3.11, this board has none"),
        (replace(FACTS, glibc="2.31"), "needs glibc 2.34, this board has 2.31"),
        (replace(FACTS, glibc=""), "needs glibc 2.34, this board has another libc"),
        (replace(FACTS, free_mb=463), "needs 464 MB, 463 MB are free"),
        (replace(FACTS, counter=3), "counter 3 is not above 3"),
        (replace(FACTS, is_underpowered=True), "under-voltage"),
    ],
)
def test_what_stands_in_the_way_is_named(facts: BoardFacts, why: str) -> None:
    with pytest.raises(UpdateError) as caught:
        check_board(WANTED, facts)
    assert why in str(caught.value)
    assert len(list(objections(WANTED, facts))) == 1


def test_models_go_to_any_board_that_runs_a_version() -> None:
    models = replace(WANTED, kind="models", target=None, files={})
    assert list(objections(models, replace(FACTS, arch="armv7l", glibc="", pythons=frozenset()))) == []
    assert "install a full bundle first" in next(objections(models, replace(FACTS, has_current=False)))


def test_this_machine_is_read(tmp_path: Path) -> None:
    facts = read_facts(tmp_path / "not/there/yet", "dev-x86", 4, has_current=False)
    assert facts.arch == platform.machine()
    assert facts.free_mb > 0
    assert facts.counter == 4


def test_an_interpreter_is_found_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert find_python(version)
    assert find_python("3.99") == ""
