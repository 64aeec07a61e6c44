"""Control: the configuration in use is that of the file, and over it what operators have set.

A change is prepared first, then kept on the disk, then carried out: a power cut in between leaves what was asked
for. What only concerns thresholds, zones or a variant that is open is taken in mid-stream; else the stream is
swapped.
"""

from __future__ import annotations

import logging
import time
from weakref import WeakSet

from msgspec.structs import replace

from agent.comms.commands import ZONE, shown
from agent.comms.messages import StreamHealth
from agent.comms.mqtt.inbox import RateLimiter
from agent.config import Config
from agent.config.diff import keep_until_restart
from agent.daemon.overrides import (
    UNKNOWN_STATE,
    Override,
    Overrides,
    OverridesFile,
    StreamSettings,
    Value,
    all_off,
    basis_of,
    settings_of,
)
from agent.daemon.reload import ReloadPlan
from agent.daemon.runtime import Runtime
from agent.daemon.stream import Stream
from agent.errors import CommandError, StorageError, VedetteError

log = logging.getLogger(__name__)

_RETRY_S = 5.0
"""Time between two attempts to write what the disk has refused, s."""
_WRITES_PER_S, _WRITES = 0.2, 60
"""Changes that are kept on the disk, in the long run and at once: cards wear out."""


class ConfigManager:
    """For the daemon's thread.

    Attributes:
        config: to be used.
        unwritten: why what operators have set is not on the disk, for health; empty: it is. `look` tries again.
        folder_trouble: why nothing may be written to the state folder now; empty: it may be written.
    """

    def __init__(self, config: Config, file: OverridesFile) -> None:
        """Take up what was set before the restart.

        Args:
            config: of the file.
            file: where overrides are kept.
        """
        self._file, self._from_file = file, config
        self._writes = RateLimiter(per_s=_WRITES_PER_S, burst=_WRITES)
        self._overrides = Overrides()
        self._looked_at: WeakSet[Stream] = WeakSet()
        self.unwritten = self.folder_trouble = ""
        self._retry_at = 0.0
        self._read()
        usable, dropped = _usable(self._overrides, config)
        self._tell(dropped)
        self._keep(usable)
        for name in usable.lost:
            log.warning("stream %s: %s", name, UNKNOWN_STATE)
        self.config = usable.apply_to(config)

    def attach(self, house: Runtime) -> None:
        """Begin to control a house that runs on `config`."""
        self._house = house
        self._show({name: settings_of(stream) for name, stream in self.config.streams.items()})

    def look(self) -> None:
        """Write what the disk has refused, and show the variants of models that have been opened since."""
        if self.unwritten and not self.folder_trouble and time.monotonic() >= self._retry_at:
            self._write(self._overrides)
        settings = self._house.settings
        late = [
            name
            for name, stream in self._house.streams.items()
            if stream.model is not None and name in settings and not settings[name].variants
            if stream not in self._looked_at
        ]
        self._looked_at.update(self._house.streams[name] for name in late)
        if found := {
            name: settings_of(self.config.streams[name]) for name in late if name in self.config.streams
        }:
            self._show({**settings, **found})

    def overridden(self, stream: str) -> tuple[str, ...]:
        """What operators have set of a stream, sorted."""
        return self._overrides.of(stream)

    def remark(self, stream: str) -> str:
        """Why a stream is off that nobody has switched off; empty: there is none such."""
        return UNKNOWN_STATE if stream in self._overrides.lost else ""

    def health(self, stream: str, found: StreamHealth) -> StreamHealth:
        """That of a stream, with what operators have set of it."""
        told = replace(found, set_by_command=self.overridden(stream))
        return replace(told, detail=self.remark(stream)) if self.remark(stream) else told

    def set(self, stream: str, what: str, value: Value | None) -> str:
        """Set something.

        Args:
            stream: its name, as sent.
            what: `enabled`, `threshold`, `variant` or `zone/NAME`, as sent.
            value: of the type that `agent.comms.commands` gives; None: as the file says.

        Returns:
            what is to be said besides; mostly nothing.

        Raises:
            CommandError: it cannot be, with the reason.
        """
        self.check(stream)
        self._check_place(stream, what)
        if what == "variant" and value is not None:
            self._check_variant(stream, str(value))
        overrides = self._overrides.set(self._from_file, stream, what, value)
        config = overrides.apply_to(self._from_file)
        again = what == "enabled" and value is True and self._house.streams[stream].state in ("failed", "ended")
        if config == self.config and overrides == self._overrides and not again:
            return self._warning
        if overrides != self._overrides and self._writes.allow() != "take":
            raise CommandError("too many changes in a short time; try again in a few seconds")
        live = not again and self._house.streams[stream].can_adjust(config.streams[stream])
        swap = None if live else self._swap(stream, config)
        warning = self._keep(overrides)
        if swap is None:
            self._house.streams[stream].adjust(config.streams[stream])
        else:
            swap.apply()
        self._house.config = self.config = config
        self._show({**self._house.settings, stream: settings_of(config.streams[stream])})
        log.info("command: stream %s: %s", stream, _said(what, value))
        return warning

    def reload(self, config: Config) -> str:
        """Take up a file that has been read anew; gives what is different, and what waits for a restart.

        Raises:
            VedetteError: it cannot be used, and everything is as before.
        """
        config, waiting = keep_until_restart(self.config, config)
        overrides, dropped = _usable(self._overrides, config)
        over = overrides.apply_to(config)
        reload = ReloadPlan(self._house, over, waiting=waiting)
        self._keep(overrides)
        reload.apply()
        self._from_file, self.config = config, over
        self._tell(dropped)
        self._show({name: settings_of(stream) for name, stream in over.streams.items()})
        return str(reload)

    def write_anew(self) -> None:
        """Write again what operators have set: the state folder was deleted, and has been made again."""
        self.folder_trouble = ""
        self._write(self._overrides)

    def check(self, stream: str) -> None:
        """Refuse a stream that there is not.

        Raises:
            CommandError: names those that there are.
        """
        if stream not in self.config.streams:
            raise CommandError(f"no stream {shown(stream)}; there are: {', '.join(self.config.streams)}")

    def _check_place(self, stream: str, what: str) -> None:
        if basis_of(self._from_file.streams[stream], what) is None:
            zones = ", ".join(zone.name for zone in self.config.streams[stream].zones)
            name, known = shown(what.removeprefix(ZONE)), f"it has: {zones}" if zones else "it has none"
            raise CommandError(f"stream {stream} has no zone {name}; {known}")

    def _check_variant(self, stream: str, variant: str) -> None:
        settings: StreamSettings = self._house.settings[stream]
        if variant not in settings.variants:
            model = self.config.streams[stream].model
            known = f"it has: {', '.join(settings.variants)}" if settings.variants else "it cannot be opened"
            raise CommandError(f"model {model} has no variant {shown(variant)}; {known}")

    def _swap(self, stream: str, config: Config) -> ReloadPlan:
        try:
            return ReloadPlan(self._house, config, only=stream)
        except VedetteError as error:
            raise CommandError(str(error).replace("\n", "; ")) from error

    def _show(self, settings: dict[str, StreamSettings]) -> None:
        """Tell the house how its streams are set, and by whom."""
        off = {name for name, one in settings.items() if not one.enabled}
        self._house.publish_settings(settings, frozenset(name for name in off if self._overrides.keeps_off(name)))

    def _read(self) -> None:
        """Read the overrides. Where the file is damaged, switch every stream off and write that.

        A camera that an operator had switched off cannot be told from others then. One that is off by mistake is
        noticed and switched on again; one that is on by mistake films somebody.
        """
        try:
            self._overrides = self._file.read()
        except StorageError as error:
            asides = ", ".join(map(str, self._file.set_aside()))
            see = f"; see {asides}" if asides else ""
            log.error("what commands had set is lost, so every stream stays off: %s%s", error, see)
            self._write(all_off(self._from_file))
        else:
            if self._file.has_former_copy:
                self._write(self._overrides)

    def _keep(self, overrides: Overrides) -> str:
        """Write what has changed, and return a warning for the operator who asked."""
        if overrides != self._overrides:
            self._write(overrides)
        return self._warning

    def _write(self, overrides: Overrides) -> None:
        """Write the overrides, or remember that they could not be written."""
        self._overrides, self._retry_at = overrides, time.monotonic() + _RETRY_S
        try:
            if self.folder_trouble:
                raise StorageError(self.folder_trouble)
            self._file.write(overrides)
        except StorageError as error:
            pending = f"what commands have set is not written yet, and a restart would undo it: {error}"
            if not self.unwritten:
                log.error("%s", pending)
            self.unwritten = pending
        else:
            if self.unwritten:
                log.warning("what commands have set is written now")
            self.unwritten = ""

    @property
    def _warning(self) -> str:
        return self.unwritten and f"done, but {self.unwritten}"

    def _tell(self, dropped: list[str]) -> None:
        for text in dropped:
            log.info("%s", text)


def _usable(overrides: Overrides, config: Config) -> tuple[Overrides, list[str]]:
    """Those that still count, and why the others do not: a model may have lost a variant."""
    kept, dropped = overrides.still_valid(config)
    for name, some in list(kept.streams.items()):
        variant = some.get("variant", Override("", []))
        variants = settings_of(config.streams[name]).variants if variant.value else ()
        if variants and variant.value not in variants:
            kept = kept.set(config, name, "variant", None)
            dropped.append(f"stream {name}: variant {variant.value!r} is gone from its model: the file counts")
    return kept, dropped


def _said(what: str, value: Value | None) -> str:
    if value is None:
        return f"{what} as the file says"
    return f"{what} = {('off', 'on')[value] if isinstance(value, bool) else value}"
