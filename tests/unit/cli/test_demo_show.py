"""Packages that messages name for installation exist."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib

import pytest

from agent.cli import demo_show
from agent.cli.demo_show import install_command
from tests.support.running import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "firmware_configs").rglob("*.toml"), ROOT / "README.md"]
ADVICE = re.compile(r"'([\w.]*)\[(\w+)\]'")
CALL = re.compile(r"""install_command\(["'](\w+)["']\)""")


@pytest.mark.parametrize("extra", ["wakeword", "charts", "demo", "tflite", "loadgen", "bundle"])
def test_an_extra_is_installed_from_the_clone(extra: str) -> None:
    texts = [file.read_text() for file in FILES]
    origins = {match[1] for text in texts for match in ADVICE.finditer(text) if match[2] == extra}
    called = {match[1] for text in texts for match in CALL.finditer(text)}
    assert extra in EXTRAS
    assert origins == {"."} or (not origins and extra in called), "it is named, and from the clone"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_what_the_extra_needs(extra: str) -> None:
    *begin, first = shlex.split(install_command(extra))[:5]
    assert begin == [sys.executable, "-m", "pip", "install"]
    assert first in {one.partition(";")[0] for one in EXTRAS[extra]} or extra in ("tflite", "dev")


def test_the_command_names_the_extra_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_show, "_PACKAGE", "no_such_package")
    assert shlex.split(install_command("demo"))[4:] == [".[demo]"]
