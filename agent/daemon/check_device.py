"""Check what of a configuration does not belong to a single stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from agent.comms.mqtt.endpoint import check_prefixes
from agent.comms.mqtt.endpoint import problems as problems_of_brokers
from agent.comms.topics import COMMANDS
from agent.config import Config, SelectionConfig
from agent.daemon.parts import check_device_tables
from agent.errors import BackendError, ConfigError, NotInstalledError, StorageError, VedetteError
from agent.models.findings import ModelReader, all_findings
from agent.storage.state import check_state_folder, clips_path, folder_of, service_user


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
