"""Run every section of `vedette doctor`; a section that fails becomes a finding, and the others still run."""

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
from agent.storage.state import folder_of

SECTION = "configuration"


def findings(path: Path, asked: bool, root: Path) -> Iterator[Finding]:
    """Report the board's profile, and everything that `vedette config check` finds.

    Unless the user has named the file (`asked`), it may be missing.
    """
    yield from _check_profile(path, root)
    if not asked and not is_seen(path):
        yield Finding(SECTION, "file", f"there is none at {path} that this user can see; -c FILE checks another")
        return
    if is_seen(path) and not os.access(path, os.R_OK):
        yield Finding(SECTION, "file", f"{path}: this user may not read it", "warning", "run sudo vedette doctor")
        return
    wrong = check.problems(path)
    for line in wrong:
        advice = f"correct {line.partition(': ')[0]}, then run vedette config check {path}"
        yield Finding(SECTION, "file", line, "problem", advice)
    for line in check.warnings(path):
        yield Finding(SECTION, "file", line, "warning", line)
    if not wrong:
        yield Finding(SECTION, "file", f"{path}: fine")


def _check_profile(path: Path, root: Path) -> Iterator[Finding]:
    try:
        profile = load(path, root).profile if is_seen(path) else choose(AUTO, read_board(root))
    except ConfigError:
        return
    yield Finding(SECTION, "board's profile", str(profile or "none"))


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
    """Run all sections.

    Args:
        path: configuration.
        asked: the user has named the file; otherwise it may be missing.
        fresh: measure every backend now, and store the result; nothing else is changed.
        root: root of the file system.
        progress: called with the section that is next.
    """
    sections = _Sections(path, root, asked=asked, fresh=fresh, progress=progress)
    found: list[Finding] = []
    for name, check_section in sections.in_order().items():
        progress(name)
        found += guarded(name, check_section)
    healthy = all(one.state != "problem" for one in found)
    return Report(__version__, datetime.now(UTC), healthy, found)


class _Sections:
    """The sections of one report. What the self-test finds decides how the configuration is checked."""

    def __init__(
        self, path: Path, root: Path, *, asked: bool, fresh: bool, progress: Callable[[str], None]
    ) -> None:
        self._path, self._root, self._asked, self._fresh = path, root, asked, fresh
        self._progress = progress
        self._config = _config(path)
        self._tried: list[models.Tried] = []

    def in_order(self) -> dict[str, Callable[[], Iterable[Finding]]]:
        config, root = self._config, self._root
        return {
            board.SECTION: lambda: board.findings(root),
            board.RUNTIME_SECTION: board.runtime_findings,
            models.SELFTEST_SECTION: self._run_selftest,
            board.HARDWARE_SECTION: lambda: board.hardware_findings(root),
            models.SECTION: self._check_backends,
            board.DEVICES_SECTION: lambda: board.devices_findings(root),
            board.HEAT_SECTION: lambda: board.heat_findings(root),
            storage.SECTION: lambda: storage.findings(_storage(config), root, clips=_has_clips(config)),
            SECTION: self._check_configuration,
            # Last: while one of its threads hangs, later sections could not give up root's rights.
            network.SECTION: lambda: network.findings(config, root) if config is not None else (),
        }

    def _run_selftest(self) -> Iterable[Finding]:
        self._tried.extend(models.run_all())
        return models.selftest_findings(self._tried, self._root)

    def _check_backends(self) -> Iterable[Finding]:
        try:
            state = folder_of(_storage(self._config), self._root)
        except StorageError as error:
            return [Finding(models.SECTION, "state folder", str(error), "warning", str(error))]
        return models.findings(self._config, state, fresh=self._fresh, progress=self._progress)

    def _check_configuration(self) -> Iterable[Finding]:
        sound = self._tried and not any(one.error for one in self._tried)
        if sound or not is_seen(self._path):
            return findings(self._path, self._asked, self._root)
        return unchecked(self._path)


def guarded(section: str, check_section: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run one section. If it raises, add a warning to its findings, so that the other sections still run."""
    found: list[Finding] = []
    try:
        for one in check_section():
            found.append(one)  # noqa: PERF402 - what was found before it failed stays
    except Exception as error:
        value = f"cannot be checked: {type(error).__name__}: {error}"
        found.append(
            Finding(section, "vedette doctor", value, "warning", f"please report this internal error: {value}")
        )
    return found


def _config(path: Path) -> Config | None:
    """Read the configuration. Return None if it is invalid: its own section reports why."""
    try:
        return load(path).config
    except ConfigError:
        return None


def _has_clips(config: Config | None) -> bool:
    return config is not None and any(stream.clips is not None for stream in config.streams.values())


def _storage(config: Config | None) -> StorageConfig:
    return config.storage if config else StorageConfig()
