"""Differences between two configurations: what a reload can change, and what waits for a restart.

Only a restart changes under which topics the device publishes, and which folders it uses.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from agent.config import Config

Key = tuple[str, str]
"""Table and name of a key."""

RESTART: tuple[Key, ...] = (
    ("device", "name"),
    ("mqtt", "prefix"),
    ("storage", "state_dir"),
    ("storage", "clips_folder"),
)

RULE = (
    "a reload takes up everything but "
    + ", ".join(f"[{table}] {key}" for table, key in RESTART)
    + ": these wait for a restart"
)
"""The rule for people."""


def keep_until_restart(running: Config, wanted: Config) -> tuple[Config, tuple[Key, ...]]:
    """Return the new configuration with the running values of keys that only a restart can change.

    Args:
        running: configuration in use.
        wanted: configuration of the file.

    Returns:
        what can be used now; and the keys that wait.
    """
    waiting = [one for one in RESTART if _value(running, one) != _value(wanted, one)]
    held = wanted
    for table, key in waiting:
        room = replace(getattr(held, table), **{key: _value(running, (table, key))})
        held = replace(held, **{table: room})
    return held, tuple(waiting)


def _value(config: Config, wanted: Key) -> object:
    table, key = wanted
    return getattr(getattr(config, table), key)


def names(keys: Iterable[Key]) -> tuple[str, ...]:
    """Return dotted names of keys, such as `storage.state_dir`."""
    return tuple(map(".".join, keys))


def describe_pending(keys: Iterable[Key]) -> list[str]:
    """Return a sentence for each table with keys that wait."""
    by_table = dict[str, list[str]]()
    for table, key in keys:
        by_table.setdefault(table, []).append(key)
    return [
        f"[{table}] {', '.join(some)} {'waits' if len(some) == 1 else 'wait'} for a restart"
        for table, some in by_table.items()
    ]


MODEL_FILE = "the model's file or manifest"
"""Stands for keys if the stream's configuration is the same, and the model file is not."""


class ConfigDiff(Struct, frozen=True):
    """Differences between the current and a new configuration.

    Attributes:
        tables: changed keys by table, such as `host` and `port` of `mqtt`; without streams.
        changed: changed keys by stream; `MODEL_FILE` if only the model file is another one.
        added, removed: names of streams.
    """

    tables: dict[str, list[str]]
    changed: dict[str, list[str]]
    added: list[str]
    removed: list[str]

    @property
    def is_empty(self) -> bool:
        """True if nothing differs."""
        return not (self.tables or self.changed or self.added or self.removed)

    def __str__(self) -> str:
        said = [f"[{table}] {', '.join(keys)}" for table, keys in self.tables.items()]
        said += [f"stream {name}: {', '.join(keys)}" for name, keys in self.changed.items()]
        said += [f"stream {name} is new" for name in self.added]
        said += [f"stream {name} is gone" for name in self.removed]
        return "; ".join(said) or "nothing has changed"


def changes(old: Config, new: Config) -> ConfigDiff:
    """Compare two configurations."""
    tables = [table for table in _keys(old, new) if table != "streams"]
    both = [name for name in new.streams if name in old.streams]
    return ConfigDiff(
        {table: _keys(getattr(old, table), getattr(new, table)) for table in tables},
        {name: keys for name in both if (keys := _keys(old.streams[name], new.streams[name]))},
        [name for name in new.streams if name not in old.streams],
        [name for name in old.streams if name not in new.streams],
    )


def _keys(old: Struct, new: Struct) -> list[str]:
    return [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]
