"""A new configuration: compared with the one in use, prepared while that runs, and carried out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from msgspec import Struct

from agent.config import Config, StreamConfig
from agent.config.load import Key
from agent.daemon.check_device import check_device
from agent.daemon.runtime import Runtime, warn_of_unmasked
from agent.daemon.streams.perception import check_live_settings
from agent.daemon.streams.stream import Stream
from agent.errors import ConfigError, VedetteError

log = logging.getLogger(__name__)
MODEL_FILE = "the model's file or manifest"
"""Stands for keys if the stream's configuration is the same, and the model file is not."""


class ConfigDiff(Struct, frozen=True):
    """Differences between the current and a new configuration.

    Attributes:
        tables: changed keys by table, such as `host` and `port` of `mqtt`, and names of changed tables in
            `fusion` and `text`; without streams.
        changed: changed keys by stream; `MODEL_FILE` if only the model file is another one.
        added, removed: names of streams.
    """

    tables: dict[str, list[str]]
    changed: dict[str, list[str]]
    added: list[str]
    removed: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.tables or self.changed or self.added or self.removed)

    def __str__(self) -> str:
        parts = [f"[{table}] {', '.join(keys)}" for table, keys in self.tables.items()]
        parts += [f"stream {name}: {', '.join(keys)}" for name, keys in self.changed.items()]
        parts += [f"stream {name} is new" for name in self.added]
        parts += [f"stream {name} is gone" for name in self.removed]
        return "; ".join(parts) or "nothing has changed"


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


def _keys(old: Struct | Mapping[str, Struct] | None, new: Struct | Mapping[str, Struct] | None) -> list[str]:
    """Return the keys with another value; of a table of named tables, their names; of a table that comes, all."""
    if old is None or new is None:
        return list((old or new).__struct_fields__)  # type: ignore[union-attr]  # one of them is a struct
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [name for name in {**old, **new} if old.get(name) != new.get(name)]
    assert isinstance(old, Struct)
    return [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]


def describe_pending(keys: Iterable[Key]) -> list[str]:
    """Return a sentence for each table with keys that wait."""
    by_table = dict[str, list[str]]()
    for table, key in keys:
        by_table.setdefault(table, []).append(key)
    return [
        f"[{table}] {', '.join(some)} {'waits' if len(some) == 1 else 'wait'} for a restart"
        for table, some in by_table.items()
    ]


class ReloadPlan:
    """A new configuration, prepared while the old one runs."""

    def __init__(
        self, runtime: Runtime, config: Config, *, only: str = "", waiting: tuple[Key, ...] = ()
    ) -> None:
        """Prepare the new streams. The runtime does not change before `apply`.

        Args:
            runtime: to change.
            config: the new configuration.
            only: a stream that is replaced in any case, the only one that differs; empty: compare all.
            waiting: keys with another value in the file, which need a restart.

        Raises:
            VedetteError: the configuration cannot be used.
        """
        check_device(config)
        self._runtime, self._config, self._only, self._waiting = runtime, config, only, waiting
        self._changes = changes(runtime.config, config)
        if not only:
            self._changes.changed.update({name: [MODEL_FILE] for name in self._changed_models()})
        self._streams: dict[str, Stream] = {}
        self._adjusted: dict[str, StreamConfig] = {}
        try:
            self._prepare()
        except BaseException:
            self._discard()
            raise

    def _changed_models(self) -> list[str]:
        known = {*self._changes.changed, *self._changes.removed}
        return [
            name
            for name, stream in self._runtime.streams.items()
            if name not in known and stream.state != "failed" and stream.model_changed
        ]

    def _prepare(self) -> None:
        """Prepare new and changed streams, and failed ones, which are tried again and may fail again."""
        refused = []
        for name, config in self._config.streams.items():
            is_new = name in self._changes.added or name in self._changes.changed or name == self._only
            if not is_new and (self._only or self._runtime.streams[name].state != "failed"):
                continue
            if name != self._only and self._goes_on(name, config):
                self._adjusted[name] = config
                continue
            self._streams[name], refusal = self._runtime.make_stream(name, config, self._config.streams)
            if refusal and is_new:
                refused.append(refusal)
            elif refusal:
                log.error(refusal)
        if refused:
            raise VedetteError("\n".join(refused))

    def _goes_on(self, name: str, config: StreamConfig) -> bool:
        """Return True if a running stream can go on with what has changed.

        Zones and lines that come or go have topics and entities of their own: the stream is replaced. So it is
        for `decode` and a variant, which only commands change while it runs.
        """
        stream = self._runtime.streams.get(name)
        if stream is None or stream.state != "running" or stream.model is None or stream.model_changed:
            return False
        now = stream.config
        same_topics = [one.name for one in config.zones] == [one.name for one in now.zones]
        same_topics = same_topics and config.labels_to_count == now.labels_to_count
        if not same_topics or (config.decode, config.variant) != (now.decode, now.variant):
            return False
        try:
            check_live_settings(name, config, stream.model)
        except ConfigError:  # reported when it is prepared as a new stream
            return False
        return stream.can_adjust(config)

    def _discard(self) -> None:
        for stream in self._streams.values():
            stream.discard()

    def apply(self) -> None:
        """Replace what differs, and log it, unless it is a single stream."""
        self._replace_streams()
        if self._runtime.auto_backend is not None:
            self._runtime.auto_backend.configure(self._config.selection)
        if "mqtt" in self._changes.tables:
            self._runtime.mqtt.reconfigure(self._config.mqtt)
        warn_of_unmasked(self._config.streams, self._runtime.config.streams)
        self._runtime.config = self._config
        if not self._only:
            self._runtime.parts.configure(self._config)
            self._runtime.pending_restart = self._waiting
            log.log(logging.WARNING if self._waiting else logging.INFO, "reloaded: %s", self)

    def _replace_streams(self) -> None:
        runtime, removed = self._runtime, self._changes.removed
        # Before they stop: the clip that a stop ends must not be announced after the state `off`.
        off = (name for name, stream in self._config.streams.items() if not stream.enabled)
        runtime.silent = frozenset((*removed, *off))
        runtime.stop_streams(name for name in (*self._streams, *removed) if name in runtime.streams)
        for name in removed:
            runtime.remove(name)
        runtime.streams.update(self._streams)
        for name in self._streams:
            runtime.delete_outdated(name)
        for name, config in self._adjusted.items():
            runtime.streams[name].adjust(config)
        runtime.parts.open(self._config)
        for name, stream in self._streams.items():
            stream.start(runtime.hanging(name))

    def __str__(self) -> str:
        known = {*self._changes.added, *self._changes.changed}
        again = [f"stream {name} is tried again" for name in self._streams if name not in known]
        changed = [] if self._waiting and self._changes.is_empty else [str(self._changes)]
        return "; ".join([*changed, *again, *describe_pending(self._waiting)])
