"""Migration of a configuration to a new version: its text stays as its author wrote it, but for what changes.

Going back needs no rules: the text of before is kept as it was, and put back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agent.errors import UpdateError, reason_of

if TYPE_CHECKING:
    from agent.update.description import Migration


def migrate(text: str, migrations: Iterable[Migration]) -> str:
    """Apply the rules of a bundle, in order, to the text of a configuration.

    `rename` moves a key, also into another table; where the key is not there it does nothing. `set` gives a key a
    value unless it has one. `remove` deletes one, if it is there. `*` in the place of a part of a key stands for
    every table there, such as every stream in `streams.*.rate`.

    Args:
        text: TOML.
        migrations: the rules.

    Raises:
        UpdateError: the text is no TOML, or a rule does not fit it: names the key.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        for rule in migrations:
            _apply(document, rule)
        return tomlkit.dumps(document)
    except TOMLKitError as error:
        raise UpdateError(f"the configuration cannot be migrated: {reason_of(error)}") from error


def _apply(document: Any, rule: Migration) -> None:
    before = rule.key.split(".")
    for found in list(_tables(document, before[:-1])):
        path = [*found, before[-1]]
        if rule.op == "set":
            _set(document, path, rule.value)
        elif rule.op == "remove":
            _take(document, path)
        elif (value := _take(document, path)) is not None:
            _set(document, _named(rule.to.split("."), found), value, replace=True)


def _tables(document: Any, parts: list[str]) -> Iterable[list[str]]:
    """Paths of the tables that a pattern stands for; one that is not there yet stands for itself."""
    paths: list[list[str]] = [[]]
    for part in parts:
        if part == "*":
            paths = [[*path, name] for path in paths for name in _names(_at(document, path))]
        else:
            paths = [[*path, part] for path in paths]
    return paths


def _names(table: Any) -> list[str]:
    """Of the tables in a table; what is no table, such as an array of them, has none."""
    return [str(name) for name, one in table.items() if isinstance(one, dict)] if isinstance(table, dict) else []


def _named(parts: list[str], found: list[str]) -> list[str]:
    """The path that a renamed key goes to: each `*` is what it stood for at the same place."""
    return [found[at] if part == "*" and at < len(found) else part for at, part in enumerate(parts)]


def _at(document: Any, path: list[str]) -> Any:
    """What stands at a path; None: nothing."""
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def _take(document: Any, path: list[str]) -> Any:
    table = _at(document, path[:-1])
    return table.pop(path[-1], None) if isinstance(table, dict) else None


def _set(document: Any, path: list[str], value: Any, *, replace: bool = False) -> None:
    import tomlkit

    for at, part in enumerate(path[:-1], 1):
        inside = document.get(part)
        if inside is None:
            document[part] = inside = tomlkit.table()
        if not isinstance(inside, dict):
            raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path[:at])}` is no table")
        document = inside
    if path[-1] in document and replace:
        raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path)}` is set already")
    if path[-1] not in document:
        document[path[-1]] = value
