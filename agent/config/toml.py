"""TOML files, read and checked against a struct, with file, line and key in every error."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from agent.errors import ConfigError, reason_of
from agent.structs import Keys, convert, dotted
from agent.text import is_plain

Problem = tuple[Keys, str]
"""Path of a key, and what is wrong with it."""
Where = Callable[..., str]
"""Returns `file:line` of a key, whose path is given part by part."""
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_DOTTED = rf"((?:{_PART.pattern})(?:\s*\.\s*(?:{_PART.pattern}))*)"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*{_DOTTED}\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"^\s*{_DOTTED}\s*=")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?(?P<path>\$[^`]*)`)?$", re.DOTALL)


class TomlFile(Struct, frozen=True):
    """Content of a file, and the lines of its keys.

    Attributes:
        path: of the file.
        data: tables as built-in types.
        lines: line number by key path, such as `("streams", "front", "zones", 0, "name")`.
    """

    path: str
    data: dict[str, Any]
    lines: dict[Keys, int]

    def where(self, *keys: str | int) -> str:
        """Return `file:line` of a key, or of the nearest table above it."""
        line = _line(self.lines, keys)
        return f"{self.path}:{line}" if line else self.path

    def check(self, kind: type[Struct], more: Iterable[Problem] = ()) -> None:
        """Check the content against a struct; see `faults`.

        Raises:
            ConfigError: there are unknown keys or wrong values, or `more` is not empty; one line for each.
        """
        if faults := self.faults(kind, more):
            raise ConfigError("\n".join(faults))

    def faults(self, kind: type[Struct], more: Iterable[Problem] = ()) -> list[str]:
        """List unknown keys and wrong values, each with file, line and key. Removes unknown keys from `data`.

        Args:
            kind: struct that `data` must be convertible to.
            more: faults that are known already.
        """
        unknown = list(_unknown_keys(self.data, kind, ()))
        for keys, _ in unknown:
            _drop(self.data, keys)
        problems = [*unknown, *_wrong_values(self.data, kind), *more]
        problems.sort(key=lambda problem: _line(self.lines, problem[0]))
        return [f"{self.where(*keys)}: {what}" for keys, what in problems]


def read_toml(path: Path, what: str) -> TomlFile:
    """Read a file.

    Args:
        path: of the file.
        what: name of the file in messages, such as `the configuration`.

    Raises:
        ConfigError: it is no plain file, cannot be read, or is not TOML.
    """
    try:
        text = _read_file(path, what)
    except OSError as error:
        hint = "; run this with sudo, or as a member of its group" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"cannot read {what}: {reason_of(error)}{hint}", str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}: save it as UTF-8", str(path)) from error
    return parse_toml(text, str(path))


def _read_file(path: Path, what: str) -> str:
    """Read a plain file. Refuse a pipe or a device before opening it: it may never end."""
    if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise ConfigError(f"cannot read {what}: expected a plain file; found a pipe or a device", str(path))
    return path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark


def parse_toml(text: str, path: str) -> TomlFile:
    """Parse the text of a file; see `read_toml`."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(error, text, path) from error
    return TomlFile(path, data, dict(lines_of(text)))


def lines_of(text: str) -> Iterator[tuple[Keys, int]]:
    """Yield the lines of tables and keys. A key inside an inline table has that table's line only."""
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


def problems_of(table: dict[str, Any], kind: type[Struct], at: Keys) -> list[Problem]:
    """List unknown keys of one table, or else its first wrong value.

    Args:
        table: to be converted to `kind`.
        kind: struct that forbids unknown keys.
        at: path of the table's key.
    """
    return list(_wrong_value(table, kind, at)) and (
        list(_unknown_keys(table, kind, at)) or list(_wrong_value(table, kind, at))
    )


def to_toml(table: Mapping[str, Any], remarks: Mapping[Keys, str]) -> str:
    """Write tables as TOML, without keys whose value is None.

    Characters that are not printable are written as TOML escapes.

    Args:
        table: of built-in types.
        remarks: comments by key; characters that are not printable are replaced.
    """
    import tomli_w  # slow import, and few commands write

    text = tomli_w.dumps(without_none(table))
    where = dict(lines_of(text))
    lines = [_escaped(line) for line in text.split("\n")]
    for keys, remark in remarks.items():
        while keys not in where:  # a key inside an inline table has no line
            keys = keys[:-1]
        lines[where[keys] - 1] += f"  # {''.join(one if is_plain(one) else '?' for one in remark)}"
    return "\n".join(lines)


def _escaped(line: str) -> str:
    """Escape unprintable characters in a line of tomli_w, which has them only within double quotes."""
    return "".join(char if is_plain(char) else f"\\U{ord(char):08x}" for char in line)


def without_none(value: Any) -> Any:
    """Return a value of built-in types without keys whose value is None, which TOML cannot hold."""
    if isinstance(value, Mapping):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return [without_none(one) for one in value] if isinstance(value, list | tuple) else value


def _syntax_error(error: Exception, text: str, path: str) -> ConfigError:
    """Make an error with the line; the file's last line if the error only shows at the end."""
    if not isinstance(error, tomllib.TOMLDecodeError):
        return ConfigError("not TOML: a number with too many digits, or brackets nested too deeply", path)
    what, _, where = str(error).partition(" (at ")
    found = re.match(r"line (\d+)", where)
    number = int(found[1]) if found else len(text.removesuffix("\n").split("\n"))
    return ConfigError(f"not TOML: {what}", f"{path}:{number}")


def _inside_arrays(table: Keys, counts: dict[Keys, int]) -> Keys:
    """Insert array indices: `[a.b]` under `[[a]]` belongs to the newest element of `a`."""
    path: Keys = ()
    for part in table[:-1]:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path])
    return (*path, table[-1])


def _line(lines: dict[Keys, int], keys: Keys) -> int:
    """Return the line of a key, of the first key inside it, or of the nearest table above; 0 if there is none."""
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            return lines[keys[:end]]
        if inside := [line for known, line in lines.items() if known[:end] == keys[:end]]:
            return min(inside)
    return 0


def _unknown_keys(data: Any, kind: Any, at: Keys) -> Iterator[Problem]:
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):  # at most one member is a struct
            yield from _unknown_keys(data, one, at)
    elif get_origin(kind) is dict and isinstance(data, dict):
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
                from agent.config.wording import unknown_key

                yield (*at, key), unknown_key((*at, key), fields)


def _wrong_values(data: dict[str, Any], kind: type[Struct]) -> Iterator[Problem]:
    """Yield values of the wrong type or out of range: the first of each table, or of each named table."""
    for field in msgspec.structs.fields(kind):
        if field.name not in data and not field.required:
            continue
        value = data.get(field.name, {})
        if get_origin(field.type) is dict and isinstance(value, dict):
            key_kind, entry_kind = get_args(field.type)
            for key, entry in value.items():
                yield from _wrong_value(key, key_kind, (field.name, key))
                yield from _wrong_value(entry, entry_kind, (field.name, key))
        else:
            yield from _wrong_value(value, field.type, (field.name,))


def _wrong_value(data: Any, kind: Any, at: Keys) -> Iterator[Problem]:
    try:
        convert(data, kind)
    except msgspec.ValidationError as error:
        from agent.config.wording import in_words

        found = _AT.match(str(error))
        what, path = (found["what"], found["path"] or "$") if found else (str(error), "$")
        steps = re.findall(r"\w+|\.\.\.", path[1:])
        keys = (*at, *(int(step) if step.isdigit() else step for step in steps if step != "..."))
        yield keys, f"`{dotted(keys)}`: {in_words(what, data, kind, steps)}"


def _drop(data: Any, keys: Keys) -> None:
    for key in keys[:-1]:
        data = data[key]
    del data[keys[-1]]


NAME = {"use": "use letters, digits, - and _, up to 63 characters; begin with a letter or digit"}
"""Text that replaces the pattern in messages, see `agent.config.toml`."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", extra=NAME)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e8)]
Patience = Annotated[float, Meta(ge=0.1, le=1e8)]
Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Edges = tuple[Unit, Unit, Unit, Unit]
"""Left, top, right, bottom, as fractions 0..1 of the picture."""
Count = Annotated[int, Meta(ge=1)]
