"""Reading a configuration file: TOML to `Config`, with every error at its file, line and key."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from agent.config import Config, Name, StreamConfig
from agent.errors import ConfigError, reason_of

Keys = tuple[str | int, ...]
Where = Callable[..., str]
"""`file:line` of a key, whose path is given part by part."""

_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_DOTTED = rf"((?:{_PART.pattern})(?:\s*\.\s*(?:{_PART.pattern}))*)"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*{_DOTTED}\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"^\s*{_DOTTED}\s*=")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?(?P<path>\$[^`]*)`)?$", re.DOTALL)


class ConfigFile(Struct, frozen=True):
    """A configuration and where each of its keys stands.

    Attributes:
        path: of the file.
        config: the validated content.
        lines: line number by key path, such as `("streams", "front", "zones", 0, "name")`.
    """

    path: str
    config: Config
    lines: dict[Keys, int]

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key, or of the nearest table above it."""
        return _where(self.path, self.lines, keys)


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
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {reason_of(error)}", str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}: save it as UTF-8", str(path)) from error
    return parse(text, str(path))


def parse(text: str, path: str) -> ConfigFile:
    """Validate the text of a file; see `load`."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(error, text, path) from error
    lines = dict(_lines_of(text))
    unknown = list(_unknown_keys(data, Config, ()))
    for keys, _ in unknown:
        _drop(data, keys)
    problems = sorted([*unknown, *_wrong_values(data)], key=lambda problem: _line(lines, problem[0]))
    if problems:
        raise ConfigError("\n".join(f"{_where(path, lines, keys)}: {what}" for keys, what in problems))
    return ConfigFile(path, msgspec.convert(data, Config), lines)


def dump(config: Config, remarks: Mapping[Keys, str] | None = None) -> str:
    """The configuration as TOML, defaults included; `parse` of it gives the same configuration.

    Args:
        config: what to write.
        remarks: comments by key, in one line each.
    """
    import tomli_w  # only `vedette config show` writes

    text = tomli_w.dumps(_without_none(msgspec.to_builtins(config)))
    lines = text.split("\n")
    where = dict(_lines_of(text))
    for keys, remark in (remarks or {}).items():
        lines[where[keys] - 1] += f"  # {remark}"
    return "\n".join(lines)


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """`; did you mean …?` when one of the known names is close, else what there is to choose from."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _syntax_error(error: Exception, text: str, path: str) -> ConfigError:
    """The error at its line: the file's last where it only shows at the end."""
    if not isinstance(error, tomllib.TOMLDecodeError):
        return ConfigError("not TOML: a number with too many digits, or brackets nested too deeply", path)
    what, _, where = str(error).partition(" (at ")
    found = re.match(r"line (\d+)", where)
    last = text.removesuffix("\n").count("\n") + 1
    return ConfigError(f"not TOML: {what}", f"{path}:{found[1] if found else last}")


def _lines_of(text: str) -> Iterator[tuple[Keys, int]]:
    """Where tables and keys begin. A key inside an inline table is found at the line of that table."""
    table: Keys = ()
    counts: dict[Keys, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = tuple(part.strip("\"'") for part in _PART.findall(header[2]))
            table = _inside_arrays(table, counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield table, number
        elif key := _KEY.match(line):
            yield (*table, *(part.strip("\"'") for part in _PART.findall(key[1]))), number


def _inside_arrays(table: Keys, counts: dict[Keys, int]) -> Keys:
    """`[a.b]` under `[[a]]` belongs to the newest element of `a`."""
    path: Keys = ()
    for part in table[:-1]:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    return (*path, table[-1])


def _where(path: str, lines: dict[Keys, int], keys: Keys) -> str:
    line = _line(lines, keys)
    return f"{path}:{line}" if line else path


def _line(lines: dict[Keys, int], keys: Keys) -> int:
    """The line of a key; else of the first key inside it, else of the nearest table above; 0: of none."""
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            return lines[keys[:end]]
        if inside := [line for known, line in lines.items() if known[:end] == keys[:end]]:
            return min(inside)
    return 0


def _unknown_keys(data: Any, kind: Any, at: Keys) -> Iterator[tuple[Keys, str]]:
    if get_origin(kind) is dict and isinstance(data, dict):
        for key, value in data.items():
            yield from _unknown_keys(value, get_args(kind)[1], (*at, key))
    elif get_origin(kind) is tuple and isinstance(data, list):
        for index, value in enumerate(data):
            yield from _unknown_keys(value, get_args(kind)[0], (*at, index))
    elif isinstance(kind, type) and issubclass(kind, Struct) and isinstance(data, dict):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        for key, value in data.items():
            if key in fields:
                yield from _unknown_keys(value, fields[key], (*at, key))
            else:
                yield (*at, key), f"unknown key `{_dotted((*at, key))}`{nearest(key, list(fields))}"


def _wrong_values(data: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Values of the wrong type or out of range: the first of each room and of each stream."""
    for field in msgspec.structs.fields(Config):
        value = data.get(field.name, {})
        if field.name == "streams" and isinstance(value, dict):
            for name, stream in value.items():
                yield from _wrong_value(name, Name, ("streams", name))
                yield from _wrong_value(stream, StreamConfig, ("streams", name))
        else:
            yield from _wrong_value(value, field.type, (field.name,))


def _wrong_value(data: Any, kind: Any, at: Keys) -> Iterator[tuple[Keys, str]]:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        what, path = (found["what"], found["path"] or "$") if found else (str(error), "$")
        keys = (*at, *(int(p) if p.isdigit() else p for p in re.findall(r"\w+", path[1:])))
        yield keys, f"`{_dotted(keys)}`: {what[:1].lower()}{what[1:]}"


def _drop(data: Any, keys: Keys) -> None:
    for key in keys[:-1]:
        data = data[key]
    del data[keys[-1]]


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent key is the default."""
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}


def _dotted(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
