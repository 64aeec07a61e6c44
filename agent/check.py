"""Checking a configuration down to its models, without opening a source, a broker or the state folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.capture.source import check_uri
from agent.compute.track.zones import check_zones
from agent.config import StreamConfig
from agent.configfile import ConfigFile, load
from agent.errors import ConfigError, VedetteError


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a file, a line each, with file and line number."""
    try:
        file = load(path)
    except ConfigError as error:
        return str(error).splitlines()
    if not file.config.streams:
        return [f"{path}: no [streams.NAME]: there is nothing to run"]
    return [line for name, stream in file.config.streams.items() for line in _of_stream(file, name, stream)]


def _of_stream(file: ConfigFile, name: str, stream: StreamConfig) -> list[str]:
    found = []
    checks: dict[str, Callable[[], None]] = {
        "source": lambda: check_uri(stream.source),
        "zones": lambda: check_zones(stream.zones),
        "model": lambda: _open(name, stream),
    }
    for key, check in checks.items():
        try:
            check()
        except VedetteError as error:
            found.append(f"{file.where('streams', name, key)}: {error}")
            if key == "zones":
                break  # opening the model would find the same again
    return found


def _open(name: str, stream: StreamConfig) -> None:
    from agent.compute.vision import Vision
    from agent.library import open_model

    Vision(name, stream, open_model(stream.model, stream.rung)).close()
