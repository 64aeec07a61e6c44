"""Check what of a configuration does not belong to a single stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from agent.comms.mqtt.endpoint import check_prefixes
from agent.comms.mqtt.endpoint import problems as problems_of_brokers
from agent.comms.topics import COMMANDS
from agent.config import Config, SelectionConfig
from agent.daemon.parts import check_device_tables
from agent.errors import BackendError, ConfigError, NotInstalledError, StorageError, VedetteError
from agent.storage.state_folder import check_state_folder, clips_path, folder_of, service_user

if TYPE_CHECKING:
    from agent.compute.track.fusion_rule import EvidenceSource


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


def device_problems(
    config: Config, sources: Mapping[str, EvidenceSource] | None = None
) -> Iterator[VedetteError]:
    """Yield all problems outside of the streams, except of the state folder.

    A daemon starts in spite of a `NotInstalledError`, and with no other problem.

    `sources` is what the streams can give to fused events; None: it is found from their models.
    """
    yield from problems_of_brokers(config.mqtt)
    for check in (
        partial(check_selection, config.selection),
        partial(check_streams, config),
        partial(_check_clips_place, config),
        partial(_check_pins, config),
        partial(_check_fusion, config, sources),
    ):
        try:
            check()
        except VedetteError as error:
            yield error
    yield from check_device_tables(config)


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


def _check_fusion(config: Config, sources: Mapping[str, EvidenceSource] | None) -> None:
    if config.fusion or config.text:
        from agent.daemon.fusion import plan_fusion

        plan_fusion(config, sources)


def sources_without_root(config: Config) -> dict[str, EvidenceSource]:
    """Return what the streams can give to fused events. Root reads the models as another user."""
    from agent.compute.infer.vetting.unprivileged import without_root
    from agent.compute.track.fusion_rule import EvidenceSource
    from agent.daemon.fusion import evidence_sources
    from agent.models.files import preloaded

    with preloaded(stream.model for stream in config.streams.values()):
        return without_root(partial(evidence_sources, config), dict[str, EvidenceSource])


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
