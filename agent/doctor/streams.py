"""The configuration: everything that `vedette config check` would find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent import check
from agent.configfile import load
from agent.doctor.report import Finding
from agent.errors import ConfigError
from agent.health.board import read_board
from agent.profiles import AUTO, choose

SECTION = "configuration"


def findings(path: Path, asked: bool, root: Path) -> Iterator[Finding]:
    """The board's profile, and what is wrong with a file.

    Args:
        path: of the configuration.
        asked: whether somebody has named it; the usual one may be missing.
        root: of the file system, in which the board is read.
    """
    yield from _of_profile(path, root)
    if not asked and not is_seen(path):
        yield Finding(SECTION, "file", f"none that this user can see at {path}; -c FILE checks another")
        return
    if is_seen(path) and not os.access(path, os.R_OK):
        yield Finding(SECTION, "file", f"{path}: this user may not read it", "warning", "run sudo vedette doctor")
        return
    wrong = check.problems(path)
    for line in wrong:
        advice = f"correct {line.partition(': ')[0]}; vedette config check {path} says whether it is right"
        yield Finding(SECTION, "file", line, "problem", advice)
    for line in check.warnings(path):
        yield Finding(SECTION, "file", line, "warning", line)
    if not wrong:
        yield Finding(SECTION, "file", f"nothing is wrong with {path}")


def _of_profile(path: Path, root: Path) -> Iterator[Finding]:
    """Which settings suit the board; what is wrong with a file that cannot be read is told with the rest."""
    try:
        profile = load(path, root).profile if is_seen(path) else choose(AUTO, read_board(root))
    except ConfigError:
        return
    yield Finding(SECTION, "board's profile", str(profile or "none fits this board, or none is wanted"))


def is_seen(path: Path) -> bool:
    """Whether a file is there, in a folder that this user may look into."""
    return os.access(path, os.F_OK)


def unchecked(path: Path) -> Iterator[Finding]:
    """Instead, where opening a model would end this process, too."""
    yield Finding(SECTION, "file", f"{path} is not checked: its models cannot be opened, see above", "warning")
