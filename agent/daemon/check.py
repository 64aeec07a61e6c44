"""Check a configuration: its values, its models, and sources that are files or folders.

No camera, microphone, broker or state folder is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

from agent.capture.source import check_opens, check_there, with_login
from agent.comms.mqtt.endpoint import OPEN, commands_off
from agent.comms.mqtt.endpoint import remarks as unwise
from agent.config import Config, StreamConfig
from agent.config.load import ConfigFile, load
from agent.config.places import check_masks
from agent.config.servers import ServedConfig, expand, is_loopback, is_open_to_all, wants_credentials
from agent.config.source_uri import holds_secret, parse
from agent.daemon.check_device import (
    check_not_shared,
    check_streams,
    device_problems,
    folder_problems,
    unmasked_twins,
)
from agent.daemon.parts import Step, check_values
from agent.daemon.streams.perception import check_crop, check_drawn, check_only_zones, open_perception
from agent.errors import ConfigError, VedetteError
from agent.models.findings import findings_without_root
from agent.models.library import look_up, open_model
from agent.storage.state import service_user
from agent.structs import Keys


def problems(path: Path) -> list[str]:
    """Return all problems of a configuration file, a line each, with file and line number."""
    try:
        file = load(path)
    except ConfigError as error:
        return str(error).splitlines()
    if not file.config.streams:
        return [f"{path}: no [streams.NAME]: there is nothing to run"]
    return [
        *(
            f"{file.where(*keys)}: {error}"
            for keys, error in _device_problems(file)
            if not _is_of_another_user(error)
        ),
        *_stream_problems(file),
    ]


def remarks(path: Path) -> list[str]:
    """Return what was guessed about the models of a valid file, a line each."""
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded

    file = load(path)
    models = {stream.model for stream in file.config.streams.values()}

    def guessed() -> dict[str, list[str]]:
        return {model: look_up(model, thorough=True).remarks() for model in models}

    with preloaded(models):
        found = without_root(guessed, dict[str, list[str]])
    return [
        f"{file.where('streams', name, 'model')}: {stream.model}: {remark}"
        for name, stream in file.config.streams.items()
        for remark in found[stream.model]
    ]


def warnings(path: Path) -> list[str]:
    """Return what is unwise in a readable file, a line each, such as secrets that every user may read."""
    try:
        file = load(path)
    except ConfigError:
        return []
    found = [*unwise(file.config.mqtt), *_not_checked(file), *_texts_off(file), *_in_plain_text(file)]
    found += [f"{file.where(*twin.keys)}: {twin.text}" for twin in unmasked_twins(file.config.streams)]
    found += [f"{secret}: {OPEN}; chmod o= {secret}" for secret in _open_passwords(file.config)]
    if is_open_to_all(path):
        found += [
            f"{file.where(*keys)}: holds a password, and {OPEN}; chmod o= {path}, or put the "
            "password into a file of its own, see capture.password_file"
            for keys, address in _addresses(file.config)
            if holds_secret(address)
        ]
    return found


def _addresses(config: Config) -> Iterator[tuple[Keys, str]]:
    for name, stream in config.streams.items():
        yield ("streams", name, "source"), stream.source
        if stream.clips is not None:
            yield ("streams", name, "clips", "record_source"), stream.clips.record_source


def _texts_off(file: ConfigFile) -> Iterator[str]:
    why = commands_off(file.config.mqtt) if file.config.text else ""
    for name in file.config.text if why else ():
        yield f"{file.where('text', name)}: text {name}: nothing is taken from the broker: {why}"
    for name in file.config.text if not file.config.fusion else ():
        yield f"{file.where('text', name)}: text {name} is not used: there is no [fusion]"


def _served_tables(config: Config) -> Iterator[ServedConfig]:
    """Yield the tables of what is served over HTTP."""
    tables = (getattr(config, name) for name in config.__struct_fields__)
    yield from (table for table in tables if isinstance(table, ServedConfig))


def _in_plain_text(file: ConfigFile) -> Iterator[str]:
    for config in _served_tables(file.config):
        with suppress(ConfigError):  # reported as a problem
            if config.username and not config.cert_file and not is_loopback(config.address[0]):
                where = file.where(config.TABLE, "listen")
                yield f"{where}: the password crosses the network in plain text; set cert_file and key_file"


def _not_checked(file: ConfigFile) -> Iterator[str]:
    """Yield the checks that only the service's user can make."""
    found = list(_device_problems(file))
    for name, stream in file.config.streams.items():
        found += [(("streams", name, *keys), error) for keys, error in _first_problem(_source_steps(stream))]
    for keys, error in found:
        if _is_of_another_user(error):
            yield f"{file.where(*keys)}: not checked, since this user may not see it: {error}"


def _open_passwords(config: Config) -> list[str]:
    found = dict[str, None]()
    of_streams = (stream.capture.password_file for stream in config.streams.values())
    of_servers = (name for one in _served_tables(config) for name in (one.password_file, one.key_file))
    for name in (*of_streams, *of_servers):
        if name and not wants_credentials(name):
            with suppress(ConfigError):  # reported as a problem of the stream
                path = expand(name, ConfigError)
                found |= {str(path): None} if is_open_to_all(path) else {}
    return list(found)


def can_start(path: Path) -> bool:
    """Return True if a daemon starts on a file, even if all of its streams fail then."""
    try:
        check_streams(load(path).config)
    except ConfigError:
        return False
    return True


def check_stream(name: str, stream: StreamConfig) -> None:
    """Check one stream. Raises VedetteError, its first problem."""
    for _, error in _first_problem((*_source_steps(stream), *_steps(name, stream))):
        raise error


def _device_problems(file: ConfigFile) -> Iterator[tuple[Keys, VedetteError]]:
    seen = set[str]()
    for error in chain(device_problems(file.config, findings_without_root), folder_problems(file.config)):
        if str(error) not in seen:
            yield error.keys, error
        seen.add(str(error))


def _is_of_another_user(error: VedetteError) -> bool:
    """Return True if only this user lacks access, and the service's user may have it."""
    user, cause = service_user(), error.__cause__
    if user is None:
        return False
    return isinstance(cause, KeyError) or (isinstance(cause, PermissionError) and os.geteuid() not in (0, user))


def _stream_problems(file: ConfigFile) -> Iterator[str]:
    """Yield the problems of each source, and the first of the other steps: each step needs those before it."""
    streams = file.config.streams
    of_models = _model_problems(streams)
    for name, stream in streams.items():
        found = [
            (keys, str(error))
            for steps in (_source_steps(stream, check_opens), _shared(file, name))
            for keys, error in _first_problem(steps)
            if not _is_of_another_user(error)
        ]
        for keys, text in (*found, *of_models[name]):
            yield f"{file.where('streams', name, *keys)}: {text}"


def _model_problems(streams: dict[str, StreamConfig]) -> dict[str, list[tuple[Keys, str]]]:
    """Return the problems from the zones to the opened model, by stream. Root runs this as another user."""
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded

    def found() -> dict[str, list[tuple[Keys, str]]]:
        return {
            name: [(keys, str(error)) for keys, error in _first_problem(_steps(name, stream))]
            for name, stream in streams.items()
        }

    with preloaded(model for stream in streams.values() for model in stream.models):
        return without_root(found, dict[str, list[tuple[Keys, str]]])


def _shared(file: ConfigFile, name: str) -> Iterator[Step]:
    yield ("source",), partial(check_not_shared, name, file.config.streams)


def _source_steps(stream: StreamConfig, check: Callable[[str], None] = check_there) -> Iterator[Step]:
    yield ("source",), lambda: check(stream.source)
    yield ("capture",), lambda: with_login(parse(stream.source), stream.capture)


def _steps(name: str, stream: StreamConfig) -> Iterator[Step]:
    """Yield the steps from the zones to the opened model."""
    from agent.compute.infer.backends import open_for_command, resolve_backend

    yield ("zones",), partial(check_drawn, stream)
    yield ("privacy",), partial(check_masks, stream.privacy)
    yield from check_values(name, stream)
    yield ("publish", "only_zones"), partial(check_only_zones, stream)
    yield ("crop",), partial(check_crop, stream.crop)
    yield ("backend",), lambda: resolve_backend(stream.backend)
    yield ("model",), lambda: open_model(stream.model)
    yield ("variant",), lambda: open_model(stream.model, stream.variant)
    if any(_first_problem([(("source",), lambda: parse(stream.source))])):
        return  # reported at its own line; whether it fits the model is unknown
    yield ("model",), lambda: open_perception(name, stream, opener=open_for_command).close()


def _first_problem(steps: Iterable[Step]) -> Iterator[tuple[Keys, VedetteError]]:
    for keys, step in steps:
        try:
            step()
        except VedetteError as error:
            yield error.keys or keys, error
            return
