"""Reading a configuration file: TOML to `Config`, with every error at its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent.config import Config
from agent.tomlfile import Keys as Keys
from agent.tomlfile import TomlFile, lines_of, parse_toml, read_toml
from agent.tomlfile import Where as Where


class ConfigFile(Struct, frozen=True):
    """A configuration and where each of its keys stands.

    Attributes:
        file: as the user wrote it.
        config: the validated content.
    """

    file: TomlFile
    config: Config

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key, or of the nearest table above it."""
        return self.file.where(*keys)


class Rereadable:
    """A file that is read again while its configuration is in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._newest: ConfigFile | None = None

    def read(self) -> Config:
        """What it says now.

        Raises:
            ConfigError: see `load`.
        """
        self._newest = load(self._path)
        return self._newest.config

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key as it was read last."""
        return self._newest.where(*keys) if self._newest else str(self._path)


def load(path: Path) -> ConfigFile:
    """Read and validate a file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has an unknown key or a wrong value. Where there are
            several of these, its text has one line for each.
    """
    return _validated(read_toml(path, "the configuration"))


def parse(text: str, path: str) -> ConfigFile:
    """Validate the text of a file; see `load`."""
    return _validated(parse_toml(text, path))


def _validated(file: TomlFile) -> ConfigFile:
    file.check(Config)
    return ConfigFile(file, msgspec.convert(file.data, Config))


def dump(config: Config, remarks: Mapping[Keys, str] | None = None) -> str:
    """The configuration as TOML, defaults included; `parse` of it gives the same configuration.

    Args:
        config: what to write.
        remarks: comments by key, in one line each.
    """
    import tomli_w  # only `vedette config show` writes

    text = tomli_w.dumps(_without_none(msgspec.to_builtins(config)))
    lines = text.split("\n")
    where = dict(lines_of(text))
    for keys, remark in (remarks or {}).items():
        lines[where[keys] - 1] += f"  # {remark}"
    return "\n".join(lines)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent key is the default."""
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}
