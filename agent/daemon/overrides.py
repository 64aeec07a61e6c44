"""Operator overrides of configuration values, kept in the state folder.

An override remembers the value that the configuration file had for its key, and for a threshold or a variant also
the model. It lapses when the file says something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.comms.topics import FILTER, LINE, MOTION_MASKS, ONLY_MOVING, ZONE
from agent.compute.manifest import AUTO, Manifest
from agent.config import Config, StreamConfig
from agent.errors import ModelError, StorageError
from agent.models.library import open_manifest
from agent.storage.state import StateFile
from agent.structs import Keys, from_json

FILE = "overrides.json"
"""Name of their file in the state folder."""
UNKNOWN_STATE = "off: settings made by commands are lost, maybe it was off; set enabled to on, off or default"
"""Health detail of a stream."""

Value = bool | float | str
Basis = bool | int | float | str | None


class Override(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One value set by a command.

    Attributes:
        value: on or off, a number, or a name.
        basis: what the file said when the value was set, see `basis_of`.
        lost: True if no operator set it: the setting was lost, and this is the safe value.
    """

    value: Value
    basis: list[Basis]
    lost: bool = False


class Overrides(Struct, frozen=True, forbid_unknown_fields=True):
    """All overrides of a device.

    Attributes:
        streams: overrides by stream and by setting: `enabled`, `threshold`, `variant`, `only_moving`,
            `motion_masks`, `zone/NAME`, `line/NAME`, `filter/NAME`.
    """

    streams: dict[str, dict[str, Override]] = {}

    def apply_to(self, config: Config) -> Config:
        """Return the file's configuration with every override applied; all of them are `still_valid`."""
        streams = dict(config.streams)
        for name, what, override in self._each():
            streams[name] = _changed(streams[name], what, override.value)
        return replace(config, streams=streams)

    def still_valid(self, config: Config) -> tuple[Overrides, list[str]]:
        """Return the overrides that still hold under this file, and a line about each of the others."""
        kept, dropped = Overrides(), []
        for name, what, override in self._each():
            stream = config.streams.get(name)
            if stream is None:
                dropped.append(f"stream {name} was removed, and with it its setting by command: {what}")
            elif (setting := setting_of(stream, what)) is None:
                dropped.append(f"stream {name}: {what} was removed, and with it its setting by command")
            elif basis_of(stream, what) != override.basis or not _is_valid(setting, override.value):
                dropped.append(f"stream {name}: the file has changed {what}, so the setting by command lapses")
            else:
                kept = kept._put(name, what, override)
        return kept, dropped

    def set(self, config: Config, name: str, what: str, value: Value | None) -> Overrides:
        """Return the overrides with one more; without that setting if `value` is None. `config` is the file's."""
        stream = config.streams[name]
        basis = basis_of(stream, what)
        assert basis is not None
        if value is None or _changed(stream, what, value) == stream:
            rest = {key: one for key, one in self.streams.get(name, {}).items() if key != what}
            others = {key: some for key, some in self.streams.items() if key != name}
            return Overrides({**others, name: rest} if rest else others)
        return self._put(name, what, Override(value, basis))

    def keys_of(self, name: str) -> tuple[str, ...]:
        """Return the settings of a stream that commands have set, sorted."""
        return tuple(sorted(what for what, one in self.streams.get(name, {}).items() if not one.lost))

    def keeps_off(self, name: str) -> bool:
        """Return True if an override switches the stream off."""
        one = self.streams.get(name, {}).get("enabled")
        return one is not None and one.value is False

    @property
    def lost(self) -> tuple[str, ...]:
        """Streams that are off because it is unknown whether an operator had switched them off."""
        return tuple(name for name, what, one in self._each() if what == "enabled" and one.lost)

    def remarks(self, config: Config) -> dict[Keys, str]:
        """Return a remark for each overridden key of the file's configuration; all overrides hold under it."""
        return {
            ("streams", name, *setting.keys): UNKNOWN_STATE
            if one.lost
            else f"set by a command ({what}), not by the file"
            for name, what, one in self._each()
            if (setting := setting_of(config.streams[name], what)) is not None
        }

    def encode(self) -> bytes:
        """Return the content of the file: JSON with a checksum."""
        file = _File(self.streams, _checksum(self.streams))
        return msgspec.json.format(msgspec.json.encode(file, order="sorted"), indent=1) + b"\n"

    def _put(self, name: str, what: str, override: Override) -> Overrides:
        return Overrides({**self.streams, name: {**self.streams.get(name, {}), what: override}})

    def _each(self) -> Iterator[tuple[str, str, Override]]:
        for name, some in self.streams.items():
            for what, override in some.items():
                yield name, what, override


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the file. A file written by hand may leave the checksum out."""

    streams: dict[str, dict[str, Override]]
    check: str = ""


def _checksum(streams: dict[str, dict[str, Override]]) -> str:
    return hashlib.sha256(msgspec.json.encode(streams, order="sorted")).hexdigest()[:16]


def all_off(config: Config) -> Overrides:
    """Switch every stream off: the safe choice where it is unknown which ones an operator had switched off."""
    overrides = Overrides()
    for name, stream in config.streams.items():
        if stream.enabled:
            overrides = overrides._put(name, "enabled", Override(False, [True], lost=True))
    return overrides


def decode(data: bytes) -> Overrides:
    """Decode the content of the file. Raises StorageError if it is damaged."""
    try:
        file = from_json(data, _File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StorageError(f"not readable as overrides: {error}") from error
    if file.check and file.check != _checksum(file.streams):
        raise StorageError("not readable as overrides: the checksum does not match")
    return Overrides(file.streams)


class OverridesFile:
    """The file that keeps the overrides; a change replaces it as a whole."""

    def __init__(self, folder: Path) -> None:
        """Name the file in the state folder; nothing is read or written yet."""
        self._file = StateFile(folder / FILE)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._file.path

    def read(self) -> Overrides:
        """Read the overrides; none where nothing was ever set.

        Raises:
            StorageError: the file is damaged or cannot be read, so it is not known what was set.
        """
        try:
            return Overrides() if (data := self._file.read()) is None else decode(data)
        except StorageError as error:
            raise StorageError(f"{self.path}: {str(error).removeprefix(f'{self.path}: ')}") from error

    def write(self, overrides: Overrides) -> None:
        """Replace the file, or delete it where nothing is set. Raises StorageError if the disk refuses."""
        self._file.write(overrides.encode() if overrides.streams else b"")

    def set_aside(self) -> list[Path]:
        """Keep a damaged file for people to look at, and return its new path."""
        return [self._file.set_aside()] if os.path.lexists(self.path) else []


class Setting(Struct, frozen=True):
    """A setting of a stream that a command may change.

    Attributes:
        keys: path of the configuration's key below the stream.
        basis: further keys of the stream; an override lapses when the file has another value for one of them.
        kind: type of its values.
    """

    keys: Keys
    basis: tuple[str, ...] = ()
    kind: type[bool | float | str] = bool


_SETTINGS = {
    "enabled": Setting(("enabled",)),
    "threshold": Setting(("decode", "score_threshold"), ("model",), float),
    "variant": Setting(("variant",), ("model",), str),
    ONLY_MOVING: Setting(("track", "only_moving")),
    MOTION_MASKS: Setting(("gate", "masks_enabled")),
}
_TABLES = {"zones": ZONE, "lines": LINE, "filters": FILTER}
"""Tables of what has a switch by its name, and the beginning of the name of its setting."""


def setting_of(stream: StreamConfig, what: str) -> Setting | None:
    """Return a setting by its name in commands; None: the stream has no such thing."""
    if what == MOTION_MASKS and not stream.gate.masks:
        return None
    for table, prefix in _TABLES.items():
        for number, one in enumerate(getattr(stream, table)):
            if one.name and f"{prefix}{one.name}" == what:
                return Setting((table, number, "enabled"))
    return _SETTINGS.get(what)


def basis_of(stream: StreamConfig, what: str) -> list[Basis] | None:
    """Return the file's values that an override depends on; None: the stream has no such thing."""
    if (setting := setting_of(stream, what)) is None:
        return None
    return [*(getattr(stream, key) for key in setting.basis), _value_at(stream, setting.keys)]


def _value_at(table: Any, keys: Keys) -> Any:
    for key in keys:
        table = table[key] if isinstance(key, int) else getattr(table, key)
    return table


def _with_value(table: Any, keys: Keys, value: Value) -> Any:
    """Return a struct, or a tuple, with another value at a path."""
    if not keys:
        return value
    key, *rest = keys
    if isinstance(key, int):
        return (*table[:key], _with_value(table[key], tuple(rest), value), *table[key + 1 :])
    return replace(table, **{key: _with_value(getattr(table, key), tuple(rest), value)})


def _is_valid(setting: Setting, value: Value) -> bool:
    if setting.kind is float:
        return not isinstance(value, (bool, str)) and 0.0 <= value <= 1.0
    return isinstance(value, setting.kind)


def _changed(stream: StreamConfig, what: str, value: Value) -> StreamConfig:
    setting = setting_of(stream, what)
    assert setting is not None
    changed: StreamConfig = _with_value(stream, setting.keys, setting.kind(value))
    return changed


class StreamSettings(Struct, frozen=True):
    """Settings of one stream that an operator can change.

    Attributes:
        enabled: True if the stream is to run.
        threshold: least score of a detection; None: not known before the model can be opened.
        variant: its name, or `auto` for calibrated exits; empty: the model cannot be opened.
        variants: that may be set, `auto` among them for a model with calibrated exits.
        zones, lines: True for each that is on, by name.
        pictures: True if the stream has pictures, and so snapshots.
        only_moving: True if only objects that have moved are announced; None: it has no objects.
        motion_masks: True if they are used; None: it has none.
        filters: True for each that has a name and is on, by name.
    """

    enabled: bool
    threshold: float | None
    variant: str
    variants: tuple[str, ...]
    zones: dict[str, bool]
    pictures: bool
    lines: dict[str, bool] = {}
    only_moving: bool | None = None
    motion_masks: bool | None = None
    filters: dict[str, bool] = {}

    def state_payloads(self) -> dict[str, str]:
        """Return the payload of `state/<what>` by `what`."""
        states = {"enabled": _switch(self.enabled)}
        if self.threshold is not None:
            states["threshold"] = f"{self.threshold:.6g}"
        if self.variant:
            states["variant"] = self.variant
        if self.only_moving is not None:
            states[ONLY_MOVING] = _switch(self.only_moving)
        if self.motion_masks is not None:
            states[MOTION_MASKS] = _switch(self.motion_masks)
        for table, prefix in _TABLES.items():
            states |= {f"{prefix}{name}": _switch(on) for name, on in getattr(self, table).items()}
        return states


def settings_of(config: StreamConfig) -> StreamSettings:
    """Return the settings of a stream, without asking the TFLite runtime about its model, which may take long."""
    wish = config.decode.score_threshold
    try:
        manifest = open_manifest(config.model, wait_s=0.0)
        variant = AUTO if manifest.exits(config.variant) else manifest.variant(config.variant).name
    except ModelError:
        known = StreamSettings(config.enabled, wish, config.variant, (), {}, pictures=True)
    else:
        pictures = manifest.audio is None
        threshold = manifest.output.score_threshold if wish is None else wish
        known = StreamSettings(config.enabled, threshold, variant, _variants(manifest), {}, pictures)
        if pictures and config.inspection is None and manifest.finds_objects:
            known = replace(known, only_moving=config.track.only_moving)
    masks = config.gate.masks_enabled if config.gate.masks and known.pictures else None
    return replace(known, motion_masks=masks, **_switches(config))


def _switches(config: StreamConfig) -> dict[str, dict[str, bool]]:
    """Return what has a switch by its name, and whether that is on, by table."""
    return {table: {one.name: one.enabled for one in getattr(config, table) if one.name} for table in _TABLES}


def settings_after(known: StreamSettings, config: StreamConfig, what: str, value: Value | None) -> StreamSettings:
    """Return `settings_of` a stream after a command, from those before it where the model says nothing new."""
    if not known.variants:
        return settings_of(config)
    if isinstance(value, float) and what == "threshold":
        return replace(known, threshold=value)
    if isinstance(value, bool) and what in (ONLY_MOVING, MOTION_MASKS):
        return replace(known, **{what: value})
    if isinstance(value, bool) and what.startswith(tuple(_TABLES.values())):
        return replace(known, **_switches(config))
    return settings_of(config)


def _variants(manifest: Manifest) -> tuple[str, ...]:
    names = tuple(variant.name for variant in manifest.variants)
    return (AUTO, *names) if manifest.cascade else names


def _switch(on: bool) -> str:
    return "on" if on else "off"
