"""Try the broker and every network camera at the same time, for a few seconds."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from agent.capture.source import open_source, with_login
from agent.cli.checks import Finding, Job, run_parallel
from agent.comms.mqtt.connection import WakeupPipe
from agent.comms.mqtt.endpoint import address, check_host, commands_off
from agent.comms.mqtt.link import BrokerEndpoint
from agent.config import Config, StreamConfig
from agent.config.servers import MqttConfig
from agent.config.source_uri import parse
from agent.errors import BrokerError, ConfigError, SoundAloneError, SourceError
from agent.health import HEALTH_FILE, DaemonHealth, StreamReport
from agent.update.install.health_check import read_health

TRY_S = 5.0
"""Time limit for a broker's answer, s; that of a camera is `capture.stall_s`, for each of two steps."""
_PATIENCE_S = 3.0
"""Additional time for name resolution, s, for which the system has no limit."""
_FLOWING = ("running", "degraded")


def check_network(config: Config, root: Path) -> Iterator[Finding]:
    """Report whether the broker lets this device in, and whether each camera on the network answers.

    A running daemon is not disturbed: the client id differs, and a camera that the daemon has open is not tried.
    """
    health = read_health(_health(root))
    jobs: list[tuple[str, Job]] = [("broker", partial(_check_broker, config.mqtt, health))]
    if config.mqtt.commands is None and not commands_off(config.mqtt):
        jobs.append(("commands", partial(_check_anonymous, config.mqtt)))
    for name, stream in config.streams.items():
        at = None if health is None or name not in health.streams else health.streams[name]
        jobs.append((f"stream {name}", partial(_check_source, f"stream {name}", stream.source, stream, at)))
        if stream.clips is not None and (uri := stream.clips.record_source):
            about = f"stream {name}: record_source"
            lost = at is not None and at.detail.startswith("record_source")
            jobs.append((about, partial(_check_source, about, uri, stream, None if lost else at)))
    longest_s = max((2.0 * stream.capture.stall_s for stream in config.streams.values()), default=0.0)
    yield from run_parallel(jobs, max(TRY_S, longest_s) + _PATIENCE_S, _timed_out)
    yield _check_commands(config)


def _health(root: Path) -> Path:
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return (Path(folder) if folder else root / "run/vedette") / HEALTH_FILE


def _check_broker(config: MqttConfig, health: DaemonHealth | None) -> Iterator[Finding]:
    where, name = address(config), "broker"
    try:
        how = _try_broker(config)
    except ConfigError as error:
        yield Finding(name, f"{where}: not tried: {error}", "warning", str(error))
    except BrokerError as error:
        connected = health is not None and health.link is not None and health.link.broker == where
        more = "; the running daemon is connected: it may accept one client id only" if connected else ""
        value = f"{where}: {error}{more}"
        advice = f"check that the broker runs and accepts this device, or correct [mqtt]: {where}: {error}"
        yield Finding(name, value, "warning" if connected else "problem", advice)
    else:
        yield Finding(name, f"{where}: accepts this device, {how}")


def _try_broker(config: MqttConfig) -> str:
    """Connect and disconnect. Return protocol and login, for people.

    Raises:
        ConfigError: the host is not valid, or a file that the configuration names cannot be used.
        BrokerError: the broker cannot be reached, or refuses the connection; with its reason.
    """
    check_host(config)
    until, wake = time.monotonic() + TRY_S, WakeupPipe()
    # With the daemon's client id the broker would disconnect the daemon. No last will either.
    broker = BrokerEndpoint(config, f"vedette{secrets.token_hex(8)}", None)
    try:
        broker.open(wake, lambda: until - time.monotonic()).farewell(0.2)
    except BrokerError as error:
        raise BrokerError(broker.describe(error)) from error
    finally:
        wake.close()
    return broker.how


def _check_anonymous(config: MqttConfig) -> Iterator[Finding]:
    """Check whether a broker with login also accepts anonymous clients, who could send commands."""
    try:
        _try_broker(replace(config, username="", password_file="", cert_file="", key_file=""))
    except (ConfigError, BrokerError):
        return
    where = address(config)
    yield Finding(
        "commands",
        f"{where} also accepts clients without a user name",
        "warning",
        f"every client of {where} may command this device, unless its access list forbids it: set "
        "allow_anonymous false there, or [mqtt] commands = false",
    )


def _check_source(about: str, uri: str, stream: StreamConfig, health: StreamReport | None) -> Iterator[Finding]:
    """Report whether a source on the network answers; `health`: of its stream in the running daemon."""
    try:
        source = parse(uri)
        if not (stream.enabled and source.on_network):
            return
        if health is not None and health.state in _FLOWING:
            yield Finding(about, f"{source.masked}: in use by the running daemon; not tried")
            return
        with_login(source, stream.capture)
    except SourceError as error:  # also reported by the configuration's section
        yield Finding(about, f"not tried: {error}", "warning", str(error))
        return
    try:
        open_source(uri, stall_s=stream.capture.stall_s, login=stream.capture).close()
    except SoundAloneError:
        yield Finding(about, f"{source.masked}: answers, and provides sound alone")
        return
    except SourceError as error:
        yield Finding(about, str(error), "problem", f"{about}: {error}")
        return
    yield Finding(about, f"{source.masked}: answers, and provides the stream")


def _check_commands(config: Config) -> Finding:
    off = commands_off(config.mqtt)
    return Finding("commands", f"off: {off}" if off else "accepted from the broker")


def _timed_out(name: str, limit_s: float) -> Finding:
    value = f"no answer in {limit_s:.0f} s; its name may not be resolved"
    return Finding(name, value, "problem", f"{name}: check its name, the network and the name server")
