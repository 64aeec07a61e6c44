"""Check what of a configuration does not belong to a single stream, and which streams cannot share a camera."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from agent.comms.mqtt.endpoint import check_prefixes
from agent.comms.mqtt.endpoint import problems as problems_of_brokers
from agent.comms.topics import COMMANDS
from agent.config import Config, SelectionConfig, StreamConfig
from agent.config.source_uri import DEFAULT_PORTS, SourceUri, parse
from agent.daemon.parts import check_device_tables
from agent.errors import BackendError, ConfigError, NotInstalledError, SourceError, StorageError, VedetteError
from agent.models.findings import ModelReader, all_findings
from agent.storage.state import check_state_folder, clips_path, folder_of, service_user
from agent.structs import Keys


def check_streams(config: Config) -> None:
    """Check that there are streams, and that their topics collide with no others. Raises ConfigError."""
    if not config.streams:
        raise ConfigError("no [streams.NAME] in the configuration: there is nothing to run", keys=("streams",))
    if COMMANDS in config.streams:
        text = f"no stream can be called {COMMANDS!r}: the topic of commands; choose another name"
        raise ConfigError(text, keys=("streams", COMMANDS))
    check_prefixes(config)


def check_selection(selection: SelectionConfig) -> None:
    """Check the candidates of `[selection]`. Raises ConfigError if a candidate is unknown."""
    if selection.candidates:
        from agent.compute.infer.delegates import probe_delegates

        try:
            probe_delegates(selection.candidates)
        except BackendError as error:
            raise ConfigError(str(error), keys=("selection", "candidates")) from None


def check_device(config: Config) -> None:
    """Check all that does not belong to a single stream.

    Raises:
        VedetteError: the first of `device_problems` that keeps a daemon from starting.
    """
    for problem in device_problems(config):
        if not isinstance(problem, NotInstalledError):
            raise problem


def device_problems(config: Config, read: ModelReader = all_findings) -> Iterator[VedetteError]:
    """Yield all problems outside of the streams, except of the state folder.

    A daemon starts in spite of a `NotInstalledError`, and with no other problem.

    `read` reads the streams' models, if a check needs to.
    """
    yield from problems_of_brokers(config.mqtt)
    for check in (
        partial(check_selection, config.selection),
        partial(check_streams, config),
        partial(_check_clips_place, config),
        partial(_check_pins, config),
    ):
        try:
            check()
        except VedetteError as error:
            yield error
    yield from check_device_tables(config, read)


def _check_pins(config: Config) -> None:
    """Refuse a pin that two streams use. Raises ConfigError."""
    users: dict[str, str] = {}
    for name, stream in config.streams.items():
        for key in ("trigger", "reject"):
            pin = getattr(stream.inspection, key, "") if stream.enabled else ""
            if not pin.startswith("gpio:"):
                continue
            if pin in users:
                keys = ("streams", name, "inspection", key)
                raise ConfigError(f"{pin}: stream {users[pin]} uses it already", keys=keys)
            users[pin] = name


def _check_clips_place(config: Config) -> None:
    try:
        clips_path(config.storage, folder_of(config.storage))
    except StorageError as error:
        key = "clips_folder" if "clips_folder" in str(error) else "state_dir"
        raise ConfigError(str(error), keys=("storage", key)) from error


def folder_problems(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps the service's user from writing to the folders of `[storage]`."""
    folders = {"state_dir": folder_of, "clips_folder": clips_path}
    for key in ("state_dir", "clips_folder") if config.storage.clips_folder else ("state_dir",):
        try:
            check_state_folder(folders[key](config.storage), service_user(), key=key)
        except StorageError as error:
            problem = ConfigError(str(error), keys=("storage", key))
            problem.__cause__ = error.__cause__
            yield problem


_EXCLUSIVE = ("v4l2", "libcamera")
"""Schemes of cameras that are opened once."""


def check_not_shared(name: str, streams: Mapping[str, StreamConfig]) -> None:
    """Refuse a stream whose camera an earlier stream opens in another way: it is opened once, and shared.

    Args:
        name: of the stream.
        streams: all streams in order; disabled ones hold no camera.

    Raises:
        ConfigError: names the other stream, and what differs.
    """
    own, device = streams[name], _camera_of(streams[name])
    for other, stream in streams.items():
        if other == name or not device:
            return
        if _camera_of(stream) == device and (differs := _difference(own, stream)):
            raise ConfigError(
                f"{parse(own.source).masked} is the camera of stream {other}, too, with another {differs}: it is "
                "opened once, so streams that share it need the same source and [capture], except max_fps",
                keys=("source",),
            )


def _difference(one: StreamConfig, other: StreamConfig) -> str:
    """Return what keeps two streams from sharing a camera; empty: nothing does."""
    if one.source != other.source:
        return f"source, {parse(other.source).masked}"
    keys = [key for key in one.capture.__struct_fields__ if key != "max_fps"]
    return ", ".join(f"capture.{key}" for key in keys if getattr(one.capture, key) != getattr(other.capture, key))


def _camera_of(stream: StreamConfig) -> str:
    """Return what identifies a camera: device number, or else path without links; empty for other sources."""
    address = _address(stream)
    if address is None or address.scheme not in _EXCLUSIVE:
        return ""
    if address.scheme == "libcamera":
        return f"libcamera:{int(address.target)}"
    try:
        node = Path(address.target).stat()
    except (OSError, ValueError):  # not plugged in
        return os.path.realpath(address.target)
    return f"v4l2:{node.st_rdev}" if stat.S_ISCHR(node.st_mode) else os.path.realpath(address.target)


def _address(stream: StreamConfig) -> SourceUri | None:
    try:
        return parse(stream.source) if stream.enabled else None
    except SourceError:
        return None


class UnmaskedTwin(NamedTuple):
    """A stream that shows what another one hides.

    Attributes:
        keys: of the source that shows it.
        text: warning.
    """

    keys: Keys
    text: str


def unmasked_twins(streams: Mapping[str, StreamConfig]) -> Iterator[UnmaskedTwin]:
    """Yield each stream that shows or records the source of a stream which hides more. Masks must be equal."""
    running = {name: stream for name, stream in streams.items() if stream.enabled}
    for name, stream in running.items():
        for other, its in running.items():
            if not stream.hides or other == name:
                continue
            masks, others = ({mask.polygon for mask in one.privacy} for one in (its, stream))
            hides_all = others <= masks and set(stream.blur) <= set(its.blur)
            if not hides_all and _place(its.source) == _place(stream.source):
                text = f"stream {other} shows the source of stream {name}, and hides less of it"
                yield UnmaskedTwin(("streams", other, "source"), text)
            if its.clips is not None and _place(its.clips.record_source) == _place(stream.source):
                text = f"the clips of stream {other} show the source of stream {name}, and hide nothing of it"
                yield UnmaskedTwin(("streams", other, "clips", "record_source"), text)


def _place(uri: str) -> tuple[str, ...]:
    """Return what addresses of one source have in common: a login and the scheme's own port do not count."""
    try:
        parts = urlsplit(uri.strip(), allow_fragments=False)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:  # reported elsewhere
        return (uri,)
    return parts.scheme, parts.hostname or "", str(port), parts.path or "/", parts.query
