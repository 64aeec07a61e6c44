"""Runs the sections of `vedette doctor`, and checks the configuration after them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent.cli.checks import Finding, Report

if TYPE_CHECKING:
    from agent.cli.checks.models import Tried


def examine(
    path: Path,
    *,
    asked: bool = True,
    fresh: bool = False,
    root: Path = Path("/"),
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run all sections.

    Args:
        path: configuration.
        asked: the user has named the file; otherwise it may be missing.
        fresh: measure every backend now, and store the result; nothing else is changed.
        root: root of the file system.
        progress: called with the section that is next.
    """
    from agent import __version__
    from agent.cli.checks import board, models, network
    from agent.config import Config
    from agent.config.load import load
    from agent.errors import ConfigError

    try:
        given = load(path).config
    except ConfigError:  # its own section reports why
        given = None
    config, tried = given or Config(), list[models.Tried]()
    sections: dict[str, Callable[[], Iterable[Finding]]] = {
        "board": lambda: board.check_board(root),
        "runtime": board.check_runtime,
        "self-test": lambda: models.check_self_test(tried, root),
        "hardware to run models on": lambda: board.check_hardware(root),
        "models on this hardware": lambda: models.check_models(given, root, fresh=fresh, progress=progress),
        "cameras and microphones": lambda: board.check_devices(root),
        "heat and supply": lambda: board.check_sensors(root),
        "storage and clock": lambda: board.check_storage(config, root),
        "configuration": lambda: check_configuration(path, root, asked=asked, tried=tried),
        # Last: while one of its threads hangs, later sections could not give up root's rights.
        "broker and network": lambda: network.check_network(config, root) if given else (),
    }
    found: list[Finding] = []
    for section, check in sections.items():
        progress(section)
        found += [replace(one, section=section) for one in _guarded(check)]
    healthy = all(one.state != "problem" for one in found)
    return Report(__version__, datetime.now(UTC), healthy, found)


def _guarded(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a section; if it raises, a warning follows what it has found."""
    try:
        yield from check()
    except Exception as error:
        value = f"cannot be checked: {type(error).__name__}: {error}"
        yield Finding("vedette doctor", value, "warning", f"please report this internal error: {value}")


def check_configuration(path: Path, root: Path, *, asked: bool, tried: list[Tried]) -> Iterator[Finding]:
    """Report the board's profile, and everything that `vedette config check` finds.

    Unless the user has named the file (`asked`), it may be missing. Its models are opened only if the self-test,
    `tried`, found that models can be opened here.
    """
    from agent.board.identity import read_board
    from agent.config.load import AUTO, choose, load
    from agent.daemon import check
    from agent.errors import ConfigError

    is_seen = os.access(path, os.F_OK)
    if is_seen and (not tried or any(one.error for one in tried)):
        yield Finding("file", f"{path} is not checked: its models cannot be opened, see above", "warning")
        return
    try:
        profile = load(path, root).profile if is_seen else choose(AUTO, read_board(root))
        yield Finding("board's profile", str(profile or "none"))
    except ConfigError:
        pass  # reported below
    if not asked and not is_seen:
        yield Finding("file", f"there is none at {path} that this user can see; -c FILE checks another")
        return
    if is_seen and not os.access(path, os.R_OK):
        yield Finding("file", f"{path}: this user may not read it", "warning", "run sudo vedette doctor")
        return
    wrong = check.problems(path)
    for line in wrong:
        advice = f"correct {line.partition(': ')[0]}, then run vedette config check {path}"
        yield Finding("file", line, "problem", advice)
    for line in check.warnings(path):
        yield Finding("file", line, "warning", line)
    if not wrong:
        yield Finding("file", f"{path}: fine")
