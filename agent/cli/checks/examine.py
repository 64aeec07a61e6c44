"""The whole examination, section by section. One that fails is a finding, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from agent import __version__
from agent.config import Config, StorageConfig
from agent.configfile import load
from agent.doctor import board, choices, devices, hardware, heat, network, runtime, selftest, storage, streams
from agent.doctor.report import Finding, Report
from agent.errors import ConfigError, StorageError
from agent.storage.durable import folder_of

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
    tried: list[selftest.Tried] = []
    config = _config(path)

    def chosen() -> Iterable[Finding]:
        try:
            state = folder_of(_storage(config), root)
        except StorageError as error:
            return [Finding(choices.SECTION, "state folder", str(error), "warning", str(error))]
        return choices.findings(config, state, fresh=fresh, progress=progress)

    def tested() -> Iterable[Finding]:
        tried.extend(selftest.run_all())
        return selftest.findings(tried, root)

    def configured() -> Iterable[Finding]:
        sound = tried and not any(one.error for one in tried)
        return (
            streams.findings(path, asked, root) if sound or not streams.is_seen(path) else streams.unchecked(path)
        )

    sections: dict[str, Callable[[], Iterable[Finding]]] = {
        board.SECTION: lambda: board.findings(root),
        runtime.SECTION: runtime.findings,
        selftest.SECTION: tested,
        hardware.SECTION: lambda: hardware.findings(root),
        choices.SECTION: chosen,
        devices.SECTION: lambda: devices.findings(root),
        heat.SECTION: lambda: heat.findings(root),
        storage.SECTION: lambda: storage.findings(_storage(config), root, clips=_has_clips(config)),
        streams.SECTION: configured,
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
    """What a section finds, or that it cannot look: what a board does not have must not hide the rest.

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
    """Of the configuration; what it would be by itself where there is none."""
    return config.storage if config else StorageConfig()
