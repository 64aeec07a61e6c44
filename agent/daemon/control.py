"""The configuration in use: that of the file, with the operators' overrides applied.

A change is prepared while the old configuration runs, or refused as a whole; then it is written to the disk and
carried out: after a power cut in between, the next start carries it out. Thresholds, zones and variants that are
open change while the stream runs; other changes replace it. Keys that need a restart keep their old values, see
`agent.config.load.keep_until_restart`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from msgspec.structs import replace

from agent.comms.mqtt.inbox import RateLimiter
from agent.comms.topics import MOTION_MASKS, ONLY_MOVING
from agent.config import Config
from agent.config.load import keep_until_restart
from agent.daemon.overrides import (
    UNKNOWN_STATE,
    Override,
    Overrides,
    OverridesFile,
    StreamSettings,
    Value,
    all_off,
    basis_of,
    settings_after,
    settings_of,
)
from agent.daemon.runtime import Runtime
from agent.daemon.streams.stream import Stream
from agent.errors import CommandError, StorageError, VedetteError
from agent.health import StreamHealth

if TYPE_CHECKING:
    from agent.daemon.reload import ReloadPlan

log = logging.getLogger(__name__)
_WRITES_PER_S, _WRITES = 0.2, 60
"""Writes per second in the long run, and in one burst: SD cards wear out."""
_SHOWN = 100
"""Most characters of a stranger's name in a message."""


class ConfigManager:
    """Applies commands and reloads to the running configuration. For the daemon's thread.

    Attributes:
        config: in use.
        unwritten: why the overrides are not on the disk, for health; empty: they are. `poll` tries again.
        folder_trouble: why the state folder cannot be written now; empty: it can.
    """

    def __init__(self, config: Config, file: OverridesFile, retry_s: float = 5.0) -> None:
        """Read the overrides of the previous run from their file.

        Args:
            config: that of the configuration file.
            file: of the overrides.
            retry_s: between two attempts to write overrides that the disk has refused, s.
        """
        self._file, self._from_file, self._retry_s = file, config, retry_s
        self._writes = RateLimiter(per_s=_WRITES_PER_S, burst=_WRITES)
        self._overrides = Overrides()
        self._settings_checked: WeakSet[Stream] = WeakSet()
        self.unwritten = self.folder_trouble = ""
        self._retry_at = 0.0
        self._read()
        usable, dropped = _usable(self._overrides, config)
        _log_each(dropped)
        self._store(usable)
        for name in usable.lost:
            log.warning("stream %s: %s", name, UNKNOWN_STATE)
        self.config = usable.apply_to(config)

    def attach(self, runtime: Runtime) -> None:
        """Control a runtime that was made with `config`."""
        self._runtime = runtime
        self._publish({name: settings_of(stream) for name, stream in self.config.streams.items()})

    def poll(self) -> None:
        """Retry refused writes, and publish the variants of models opened since the last call."""
        if self.unwritten and not self.folder_trouble and time.monotonic() >= self._retry_at:
            self._write(self._overrides)
        settings = self._runtime.settings
        late = [
            name
            for name, stream in self._runtime.streams.items()
            if stream.model is not None and name in settings and not settings[name].variants
            if stream not in self._settings_checked
        ]
        self._settings_checked.update(self._runtime.streams[name] for name in late)
        if found := {
            name: settings_of(self.config.streams[name]) for name in late if name in self.config.streams
        }:
            self._publish({**settings, **found})

    def overridden(self, stream: str) -> tuple[str, ...]:
        """Return the settings of a stream that commands have set, sorted."""
        return self._overrides.keys_of(stream)

    def remark(self, stream: str) -> str:
        """Return why a stream is off although no operator switched it off; empty otherwise."""
        return UNKNOWN_STATE if stream in self._overrides.lost else ""

    def with_settings(self, stream: str, health: StreamHealth) -> StreamHealth:
        """Add to a stream's health which of its settings commands have set."""
        health = replace(health, set_by_command=self.overridden(stream))
        return replace(health, detail=self.remark(stream)) if self.remark(stream) else health

    def set(self, stream: str, what: str, value: Value | None) -> str:
        """Change one setting of a stream; return a warning for the operator, empty if there is none.

        Args:
            stream: its name, as sent.
            what: `enabled`, `threshold`, `variant`, `only_moving`, `motion_masks`, `zone/NAME`, `line/NAME` or
                `filter/NAME`, as sent.
            value: of the type that `agent.comms.commands` returns; None: use the file's value.

        Raises:
            CommandError: the setting cannot be changed, with the reason.
        """
        self.check_stream(stream)
        self._check_setting(stream, what)
        if what == "variant" and value is not None:
            self._check_variant(stream, str(value))
        overrides = self._overrides.set(self._from_file, stream, what, value)
        config = overrides.apply_to(self._from_file)
        again = what == "enabled" and value is True and self._runtime.streams[stream].state in ("failed", "ended")
        if config == self.config and overrides == self._overrides and not again:
            return self._warning
        if overrides != self._overrides and not self._writes.allow():
            raise CommandError("too many changes in a short time; try again in a few seconds")
        live = not again and self._runtime.streams[stream].can_adjust(config.streams[stream])
        plan = None if live else self._plan(stream, config)
        warning = self._store(overrides)
        if plan is None:
            self._runtime.streams[stream].adjust(config.streams[stream])
        else:
            plan.apply()
        self._runtime.config = self.config = config
        known = self._runtime.settings
        self._publish({**known, stream: settings_after(known[stream], config.streams[stream], what, value)})
        log.info("command: stream %s: %s", stream, _describe(what, value))
        return warning

    def reload(self, config: Config) -> str:
        """Use a configuration file that was read again; return the changes, and which keys need a restart.

        Raises:
            VedetteError: the file cannot be used; nothing has changed.
        """
        config, waiting = keep_until_restart(self.config, config)
        overrides, dropped = _usable(self._overrides, config)
        effective = overrides.apply_to(config)
        from agent.daemon.reload import ReloadPlan

        plan = ReloadPlan(self._runtime, effective, waiting=waiting)
        self._store(overrides)
        plan.apply()
        self._from_file, self.config = config, effective
        _log_each(dropped)
        self._publish({name: settings_of(stream) for name, stream in effective.streams.items()})
        return str(plan)

    def write_anew(self) -> None:
        """Write the overrides again: the state folder was deleted and has been made again."""
        self.folder_trouble = ""
        self._write(self._overrides)

    def check_stream(self, stream: str) -> None:
        """Raise CommandError if there is no such stream, naming those that there are."""
        if stream not in self.config.streams:
            raise CommandError(f"no stream {stream[:_SHOWN]!r}; there are: {', '.join(self.config.streams)}")

    def _check_setting(self, stream: str, what: str) -> None:
        config = self._from_file.streams[stream]
        if basis_of(config, what) is None:
            if what == MOTION_MASKS:
                raise CommandError(f"stream {stream} has no motion masks: [streams.{stream}.gate] masks has them")
            kind, _, name = what.partition("/")
            names = ", ".join(one.name for one in getattr(config, f"{kind}s") if one.name)
            known = f"it has: {names}" if names else "it has none"
            raise CommandError(f"stream {stream} has no {kind} {name[:_SHOWN]!r}; {known}")
        if what == ONLY_MOVING and self._runtime.settings[stream].only_moving is None:
            raise CommandError(f"stream {stream} finds no objects that may move")

    def _check_variant(self, stream: str, variant: str) -> None:
        settings: StreamSettings = self._runtime.settings[stream]
        if variant not in settings.variants:
            model = self.config.streams[stream].model
            known = f"it has: {', '.join(settings.variants)}" if settings.variants else "it cannot be opened"
            raise CommandError(f"model {model} has no variant {variant[:_SHOWN]!r}; {known}")

    def _plan(self, stream: str, config: Config) -> ReloadPlan:
        from agent.daemon.reload import ReloadPlan

        try:
            return ReloadPlan(self._runtime, config, only=stream)
        except VedetteError as error:
            raise CommandError(str(error).replace("\n", "; ")) from error

    def _publish(self, settings: dict[str, StreamSettings]) -> None:
        off = {name for name, one in settings.items() if not one.enabled}
        self._runtime.publish_settings(
            settings, frozenset(name for name in off if self._overrides.keeps_off(name))
        )

    def _read(self) -> None:
        """Read the overrides. Where the file is damaged, switch every stream off and write that.

        A camera that an operator had switched off cannot be told from others then. One that is off by mistake is
        noticed and switched on again; one that is on by mistake records people.
        """
        try:
            self._overrides = self._file.read()
        except StorageError as error:
            asides = ", ".join(map(str, self._file.set_aside()))
            see = f"; see {asides}" if asides else ""
            log.error("settings made by commands are lost, so every stream stays off: %s%s", error, see)
            self._write(all_off(self._from_file))

    def _store(self, overrides: Overrides) -> str:
        """Write the overrides if they have changed. Return a warning for the operator; empty: none."""
        if overrides != self._overrides:
            self._write(overrides)
        return self._warning

    def _write(self, overrides: Overrides) -> None:
        self._overrides, self._retry_at = overrides, time.monotonic() + self._retry_s
        try:
            if self.folder_trouble:
                raise StorageError(self.folder_trouble)
            self._file.write(overrides)
        except StorageError as error:
            pending = f"settings made by commands are not on the disk yet, and a restart would undo them: {error}"
            if not self.unwritten:
                log.error("%s", pending)
            self.unwritten = pending
        else:
            if self.unwritten:
                log.warning("settings made by commands are on the disk again")
            self.unwritten = ""

    @property
    def _warning(self) -> str:
        return self.unwritten and f"done, but {self.unwritten}"


def _log_each(lines: list[str]) -> None:
    for line in lines:
        log.info("%s", line)


def _usable(overrides: Overrides, config: Config) -> tuple[Overrides, list[str]]:
    """Return the overrides that still hold, and why the others lapse: a model may also have lost a variant."""
    kept, dropped = overrides.still_valid(config)
    for name, some in list(kept.streams.items()):
        variant = some.get("variant", Override("", []))
        variants = settings_of(config.streams[name]).variants if variant.value else ()
        if variants and variant.value not in variants:
            kept = kept.set(config, name, "variant", None)
            dropped.append(
                f"stream {name}: its model has no variant {variant.value!r} any more; using the file's value"
            )
    return kept, dropped


def _describe(what: str, value: Value | None) -> str:
    if value is None:
        return f"{what} as in the file"
    return f"{what} = {('off', 'on')[value] if isinstance(value, bool) else value}"
