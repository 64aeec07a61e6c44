"""Run every section; one that fails becomes a finding, and the others go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent import __version__
from agent.board.identity import read_board
from agent.cli.checks import Finding, Report, board, models, network, storage
from agent.config import Config, StorageConfig
from agent.config.load import load
from agent.config.profiles import AUTO, choose
from agent.daemon import check
from agent.errors import ConfigError, StorageError
from agent.storage.state_folder import folder_of

# The configuration: everything that `vedette config check` would find.

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
    try:
        profile = load(path, root).profile if is_seen(path) else choose(AUTO, read_board(root))
    except ConfigError:
        return
    yield Finding(SECTION, "board's profile", str(profile or "none fits this board, or none is wanted"))


def is_seen(path: Path) -> bool:
    """Return True if a file exists in a folder that this user may read."""
    return os.access(path, os.F_OK)


def unchecked(path: Path) -> Iterator[Finding]:
    """Report that models were not checked, because opening one would end this process."""
    yield Finding(SECTION, "file", f"{path} is not checked: its models cannot be opened, see above", "warning")


_ROOT = Path("/")


def examine(
    path: Path,
    *,
    asked: bool = True,
    fresh: bool = False,
    root: Path = _ROOT,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Look at everything.

    Args:
        path: of the configuration.
        asked: whether somebody has named it; the usual one may be missing.
        fresh: measure what runs the models best, and keep it: the only thing that is changed.
        root: of the file system.
        progress: is told which section is next.
    """
    tried: list[models.Tried] = []
    config = _config(path)

    def chosen() -> Iterable[Finding]:
        try:
            state = folder_of(_storage(config), root)
        except StorageError as error:
            return [Finding(models.SECTION, "state folder", str(error), "warning", str(error))]
        return models.findings(config, state, fresh=fresh, progress=progress)

    def tested() -> Iterable[Finding]:
        tried.extend(models.run_all())
        return models.selftest_findings(tried, root)

    def configured() -> Iterable[Finding]:
        sound = tried and not any(one.error for one in tried)
        return findings(path, asked, root) if sound or not is_seen(path) else unchecked(path)

    sections: dict[str, Callable[[], Iterable[Finding]]] = {
        board.SECTION: lambda: board.findings(root),
        board.RUNTIME_SECTION: board.runtime_findings,
        models.SELFTEST_SECTION: tested,
        board.HARDWARE_SECTION: lambda: board.hardware_findings(root),
        models.SECTION: chosen,
        board.DEVICES_SECTION: lambda: board.devices_findings(root),
        board.HEAT_SECTION: lambda: board.heat_findings(root),
        storage.SECTION: lambda: storage.findings(_storage(config), root, clips=_has_clips(config)),
        SECTION: configured,
        # Last: a thread of it that hangs would keep what comes after it from doing without root's rights.
        network.SECTION: lambda: network.findings(config, root) if config is not None else (),
    }
    found: list[Finding] = []
    for name, look in sections.items():
        progress(name)
        found += guarded(name, look)
    healthy = all(one.state != "problem" for one in found)
    return Report(__version__, datetime.now(UTC), healthy, found)


def guarded(section: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run one section. If it raises, add a warning to its findings, so that the other sections still run.

    Args:
        section: its name.
        look: gives its findings.
    """
    found: list[Finding] = []
    try:
        for one in look():
            found.append(one)  # noqa: PERF402 - what was found before it failed stays
    except Exception as error:
        value = f"cannot be looked at: {type(error).__name__}: {error}"
        found.append(
            Finding(section, "vedette doctor", value, "warning", f"report this defect of Vedette: {value}")
        )
    return found


def _config(path: Path) -> Config | None:
    """The configuration; None: it cannot be read, which is told in its own section."""
    try:
        return load(path).config
    except ConfigError:
        return None


def _has_clips(config: Config | None) -> bool:
    return config is not None and any(stream.clips is not None for stream in config.streams.values())


def _storage(config: Config | None) -> StorageConfig:
    """Return the storage table of the configuration, or its defaults without a configuration."""
    return config.storage if config else StorageConfig()
