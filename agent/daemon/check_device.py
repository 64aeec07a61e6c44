"""Check what of a configuration does not belong to a single stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from agent.comms.mqtt.endpoint import check_prefixes
from agent.comms.mqtt.endpoint import problems as problems_of_brokers
from agent.comms.topics import COMMANDS
from agent.config import Config, SelectionConfig
from agent.config.http import ServedConfig
from agent.daemon.parts import check_device_tables
from agent.errors import BackendError, ConfigError, StorageError, VedetteError
from agent.models.findings import ModelReader, all_findings
from agent.storage.state_folder import check_state_folder, clips_path, folder_of, service_user


def served_tables(config: Config) -> Iterator[ServedConfig]:
    """Yield the tables of what is served over HTTP."""
    yield from (one for one in (config.metrics, config.page) if one is not None)


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
    """Check all that does not belong to a single stream. Raises the first of `device_problems`."""
    for problem in device_problems(config):
        raise problem


def device_problems(config: Config, read: ModelReader = all_findings) -> Iterator[VedetteError]:
    """Yield all problems outside of the streams that keep a daemon from starting, except of its state folder.

    `read` reads the streams' models, if a check needs to.
    """
    yield from problems_of_brokers(config.mqtt)
    for check in (
        partial(check_selection, config.selection),
        partial(check_streams, config),
        partial(_check_clips_place, config),
        partial(_check_pins, config),
        *(partial(_check_served, one) for one in served_tables(config)),
        partial(_check_ports, config),
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


def _check_served(config: ServedConfig) -> None:
    from agent.daemon.web.endpoint import check_served

    check_served(config)


def _check_ports(config: Config) -> None:
    """Refuse one port for two tables. Raises ConfigError."""
    metrics, page = config.metrics, config.page
    if metrics is not None and page is not None and metrics.address[1] == page.address[1]:
        raise page.wrong("listen", f"= {page.listen!r}: [metrics] has this port; choose another")


def missing_for_metrics(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps metrics from being served, and nothing else: a daemon runs without them."""
    if config.metrics is not None:
        from agent.daemon.metrics.exposition import check_installed

        try:
            check_installed()
        except ConfigError as error:
            yield error


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
