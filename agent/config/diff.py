"""What only a restart can change: a reload leaves that as it is, takes up the rest, and says which keys wait.

They decide where things are: under which topics the device is known, and which files are open.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from agent.config import Config, StorageConfig

Key = tuple[str, str]
"""Of the file: its table and its name."""

RESTART: tuple[Key, ...] = (
    ("device", "name"),
    ("mqtt", "prefix"),
    ("storage", "folder"),
    ("storage", "clips_folder"),
)
"""Always; and `storage.durability` sometimes, see `hold`."""

RULE = (
    "a reload takes up everything but "
    + ", ".join(f"[{table}] {key}" for table, key in RESTART)
    + ', and [storage] durability where it changes from or to "memory" for all: these wait for a restart'
)
"""For people."""


def hold(running: Config, wanted: Config) -> tuple[Config, tuple[Key, ...]]:
    """The new configuration with what only a restart can change as it is in the old one.

    Durability waits where the spool has no database and would need one, or the other way round.

    Args:
        running: in use.
        wanted: of the file.

    Returns:
        what can be used now; and the keys that wait, by table and name.
    """
    waiting = [one for one in RESTART if _value(running, one) != _value(wanted, one)]
    if _is_memory_only(running.storage) != _is_memory_only(wanted.storage):
        waiting.append(("storage", "durability"))
    held = wanted
    for table, key in waiting:
        room = replace(getattr(held, table), **{key: _value(running, (table, key))})
        held = replace(held, **{table: room})
    return held, tuple(waiting)


def _value(config: Config, wanted: Key) -> object:
    table, key = wanted
    return getattr(getattr(config, table), key)


def _is_memory_only(storage: StorageConfig) -> bool:
    return storage.spooled == {"memory"}


def names(keys: Iterable[Key]) -> tuple[str, ...]:
    """As programs read them: `storage.folder`."""
    return tuple(map(".".join, keys))


def waits(keys: Iterable[Key]) -> list[str]:
    """A sentence for each table."""
    by_table = dict[str, list[str]]()
    for table, key in keys:
        by_table.setdefault(table, []).append(key)
    return [
        f"[{table}] {', '.join(some)} {'waits' if len(some) == 1 else 'wait'} for a restart"
        for table, some in by_table.items()
    ]
