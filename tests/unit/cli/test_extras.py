"""Packages that messages name for installation exist."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.running import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "firmware_configs").rglob("*.toml"), ROOT / "README.md"]
ADVICE = re.compile(r"'([\w.]*)\[(\w+)\]'")


@pytest.mark.parametrize("extra", ["wakeword", "charts", "demo", "tflite", "bundle"])
def test_an_extra_is_installed_from_the_clone(extra: str) -> None:
    texts = [file.read_text() for file in FILES]
    origins = {match[1] for text in texts for match in ADVICE.finditer(text) if match[2] == extra}
    assert extra in EXTRAS
    assert origins == {"."}, "it is named, and from the clone"
