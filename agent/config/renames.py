"""Keys of earlier versions: how they are reported, read, and rewritten in a file.

Errors name the new key. A daemon reads old keys as the new ones, so that a board in the field starts after an
update. `vedette config migrate` rewrites a file, and a bundle carries the same changes (see `migrations`).
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from agent.errors import ConfigError

_Keys = tuple[str | int, ...]

RENAMED: Mapping[str, str] = {
    "storage.folder": "state_dir",
    "streams.*.ladder": "cascade",
    "streams.*.rung": "variant",
    "stream.ladder": "cascade",  # of a board's profile
    "rungs": "variants",  # of a model's manifest
}
"""New name, in the same table, by old key; `*` matches any name. A row here is all that a renamed key needs."""

REMOVED: Mapping[str, str] = {
    "mqtt.inflight": "at most 20 messages wait for an acknowledgement, or fewer if the broker says so",
    "storage.spool_max_age_s": "undelivered events are kept for 7 days",
    "streams.*.clips.ring_max_bytes": "the pictures before a clip take 32 MiB at most",
}
"""Hints by removed key: what to know or do instead."""

NARROWED: Mapping[str, tuple[object, ...]] = {"storage.durability": ("memory", dict)}
"""Values of earlier versions, or their types, by key. Such a key is dropped, for its default."""
_NARROWED_HINT = {"storage.durability": "`event`, the default, is used; the other value is `batch`"}

_CONFIG = ("storage.", "streams.", "mqtt.", "device.", "health.", "selection.", "thermal.", "homeassistant.")


class OldKey(Struct, frozen=True):
    """A key of an earlier version.

    Attributes:
        keys: its path in the file.
        name: what it is called now; empty: it was removed, or its value was.
        hint: what to know or do instead of a key that was removed.
        change: what happened to it.
    """

    keys: _Keys
    name: str
    hint: str = ""
    change: Literal["renamed", "removed", "narrowed", "doubled"] = "renamed"

    @property
    def new_keys(self) -> _Keys:
        return (*self.keys[:-1], self.name)

    def problem(self) -> str:
        """Describe it to who is to change the file."""
        key = f"`{_dotted(self.keys)}`"
        if self.change == "removed":
            return f"{key} was removed: {self.hint}; delete it"
        if self.change == "doubled":
            return f"{key} is called {self.hint} now, which is set, too: delete {key}"
        return f"{key} is called `{self.name}` now: rename it, or all such keys by `vedette config migrate FILE`"

    def reading(self, line: int) -> str:
        """Describe how it is read, where it is accepted."""
        key = f"`{_dotted(self.keys)}` (line {line})"
        return {
            "renamed": f"{key} is read as `{self.name}`",
            "removed": f"{key} was removed: {self.hint}",
            "narrowed": f"{key} has a value of an earlier version: {self.hint}",
            "doubled": f"{key} is called {self.hint} now, which is set, too, and counts",
        }[self.change]

    def __str__(self) -> str:
        return f"{_dotted(self.keys)} → {self.name or 'removed'}"


def old_key(keys: _Keys) -> OldKey | None:
    """Look up a key that is unknown now. Return None if no earlier version knew it."""
    for pattern, name in RENAMED.items():
        if _matches(pattern, keys):
            return OldKey(keys, name)
    for pattern, hint in REMOVED.items():
        if _matches(pattern, keys):
            return OldKey(keys, "", hint, "removed")
    return None


def _matches(pattern: str, keys: _Keys) -> bool:
    parts = pattern.split(".")
    return len(parts) == len(keys) and all(part in ("*", key) for part, key in zip(parts, keys, strict=True))


def replace_old_keys(
    data: dict[str, Any], lines: dict[_Keys, int], patterns: Iterable[str] | None = None
) -> list[OldKey]:
    """Rename old keys of a file and drop those that were removed.

    If a key is set under its new name as well, that one counts.

    Args:
        data: tables of the file; changed in place.
        lines: line number by key path, see `agent.config.toml.TomlFile`; changed in place.
        patterns: those of the keys of the three tables above that count; None: all.

    Returns:
        What was changed, in the order of the file's tables.
    """
    chosen = (*RENAMED, *REMOVED, *NARROWED) if patterns is None else patterns
    found = [one for pattern in chosen for one in _find(data, pattern)]
    for old in found:
        table = _table(data, old.keys[:-1])
        value = table.pop(str(old.keys[-1]))
        if old.name:
            table[old.name] = value
        moved = [keys for keys in lines if keys[: len(old.keys)] == old.keys]
        for keys in moved:
            line = lines.pop(keys)
            if old.name:
                lines[(*old.new_keys, *keys[len(old.keys) :])] = line
    return found


def _find(data: dict[str, Any], pattern: str) -> Iterator[OldKey]:
    tables: list[tuple[_Keys, Any]] = [((), data)]
    *above, last = pattern.split(".")
    for part in above:
        tables = [
            ((*keys, name), table[name])
            for keys, table in tables
            if isinstance(table, dict)
            for name in (table if part == "*" else [part])
            if name in table
        ]
    for keys, table in tables:
        if isinstance(table, dict) and last in table:
            old_values = NARROWED.get(pattern, ())
            old = old_key((*keys, last))
            if table[last] in old_values or type(table[last]) in old_values:
                yield OldKey((*keys, last), "", _NARROWED_HINT[pattern], "narrowed")
            elif old is not None:
                yield doubled(old) if old.name in table else old


def doubled(old: OldKey) -> OldKey:
    """Return a renamed key whose new name is set as well."""
    return OldKey(old.keys, "", f"`{old.name}`", "doubled")


def _table(data: dict[str, Any], keys: _Keys) -> dict[str, Any]:
    for key in keys:
        data = data[str(key)]
    return data


def rewrite(text: str, lines: dict[_Keys, int]) -> tuple[str, list[OldKey]]:
    """Rename old keys in the text of a file, and delete the lines of those that were removed.

    Comments, order and layout stay.

    Returns:
        The new text, and what was changed.

    Raises:
        ConfigError: a key stands where it cannot be renamed line by line, such as within an inline table.
    """
    data = tomllib.loads(text)
    wanted = copy.deepcopy(data)
    found = replace_old_keys(wanted, {})
    rows: list[str | None] = [*text.split("\n")]
    ends = [*sorted(number - 1 for number in lines.values()), len(rows)]
    for old in found:
        for keys, number in lines.items():
            if keys[: len(old.keys)] == old.keys:
                _edit(rows, number - 1, next(end for end in ends if end > number - 1), old)
    rewritten = "\n".join(row for row in rows if row is not None)
    if not _means(rewritten, wanted):
        names = ", ".join(map(str, found))
        raise ConfigError(f"cannot be rewritten line by line, change it by hand: {names}")
    return rewritten, found


def _edit(rows: list[str | None], row: int, end: int, old: OldKey) -> None:
    """Change the line of an old key. One that was removed may have a value of several lines."""
    if old.name:
        rows[row] = _renamed(rows[row] or "", str(old.keys[-1]), old.name)
        return
    while end > row + 1 and (rows[end - 1] or "").split("#")[0].strip() == "":
        end -= 1
    rows[row:end] = [None] * (end - row)


def _renamed(line: str, old: str, new: str) -> str:
    """Replace the last `old` in a table's header, or left of the `=`."""
    is_header = line.lstrip().startswith("[")
    head, mark, rest = line.partition("]" if is_header else "=")
    parts = list(re.finditer(rf"(?<![\w-])(['\"]?){re.escape(old)}\1(?![\w-])", head))
    if not parts:
        return line
    return f"{head[: parts[-1].start()]}{new}{head[parts[-1].end() :]}{mark}{rest}"


def _means(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(_without_empty(tomllib.loads(text)) == _without_empty(wanted))
    except tomllib.TOMLDecodeError:
        return False


def _without_empty(value: Any) -> Any:
    """Return a value without empty tables: the header of one may have been deleted with its last key."""
    if not isinstance(value, dict):
        return value
    found = {key: _without_empty(one) for key, one in value.items()}
    return {key: one for key, one in found.items() if one != {}}


def migrations() -> Iterator[tuple[Literal["rename", "remove"], str, str]]:
    """List what changes in a configuration, as rules of a bundle: operation, key, and new key of a rename."""
    for key, name in RENAMED.items():
        if key.startswith(_CONFIG):
            yield "rename", key, f"{key.rpartition('.')[0]}.{name}"
    for key in REMOVED:
        if key.startswith(_CONFIG):
            yield "remove", key, ""


def _dotted(keys: _Keys) -> str:
    return ".".join(map(str, keys))
