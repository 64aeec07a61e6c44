"""What messages tell people to install is there."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.running import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "firmware_configs").rglob("*.toml"), ROOT / "README.md"]
ADVICE = re.compile(r"'([\w.]*)\[(\w+)\]'")


@pytest.mark.parametrize("extra", ["wakeword", "charts", "demo", "tflite", "loadgen", "bundle"])
def test_an_extra_is_installed_from_the_clone(extra: str) -> None:
    found = {match.groups() for file in FILES for match in ADVICE.finditer(file.read_text())}
    assert extra in EXTRAS
    assert {origin for origin, named in found if named == extra} == {"."}
