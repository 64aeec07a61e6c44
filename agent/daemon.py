"""The house: opens the state folder, the spool and the broker, starts the streams, watches, reloads, stops."""

from __future__ import annotations

import logging
import queue
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from agent import __version__
from agent.comms import payload
from agent.comms.mqtt import Publisher
from agent.comms.reporter import forget
from agent.comms.topics import Topics
from agent.config import Config, StreamConfig
from agent.errors import ConfigError, VedetteError
from agent.health.machine import resident_mb, temperature_c
from agent.line import Line
from agent.storage.durable import lock_folder, state_folder
from agent.storage.spool import Spool
from agent.stream import Desk, Stream

log = logging.getLogger(__name__)

_STREAMS_STOP_S, _FLUSH_S, _DRAIN_S = 0.9, 0.3, 0.6
"""Together below the two seconds in which a stop must be over."""
_LOOK_S = 0.5
"""Between two looks at the streams for a change of state that is worth a health message."""


def device_name(config: Config) -> str:
    """The configured name, or the host's with what a topic cannot hold replaced."""
    host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())
    return config.device.name or host.strip("-") or "vedette"


class Daemon:
    """Everything that runs. `run` returns when it is over; the two requests may come from signal handlers."""

    def __init__(
        self, config: Config, *, reload: Callable[[], Config] | None = None, exit_when_done: bool = False
    ) -> None:
        """Take a validated configuration.

        Args:
            config: what to run.
            reload: gives the configuration anew when asked to reload.
            exit_when_done: end when every stream's source has.
        """
        self.config = config
        self.topics = Topics(config.mqtt.prefix, device_name(config))
        self.streams: dict[str, Stream] = {}
        self._reload, self._exit_when_done = reload, exit_when_done
        self._began = time.monotonic()
        self._stop_asked = self._reload_asked = False
        # Not an Event: a signal handler that sets one waits for ever if it interrupts the same Event's `wait`.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def request_stop(self) -> None:
        """End tracks, drain, say `stopped`, return from `run`."""
        self._stop_asked = True
        self._wake.put(None)

    def request_reload(self) -> None:
        """Read the configuration again and swap what changed."""
        self._reload_asked = True
        self._wake.put(None)

    def run(self) -> None:
        """Run until asked to stop.

        Raises:
            VedetteError: nothing could be started, or every stream has failed.
        """
        with lock_folder(state_folder(self.config.storage)) as folder:
            self._spool = Spool(folder, self.config.storage)
            try:
                self._line = Line(Publisher(self.config.mqtt, self.topics, self._spool))
                self._settle_left()
                self.streams = self._prepared(self.config)
                self._run_streams()
            finally:
                self._spool.close()

    def _settle_left(self) -> None:
        """The spool has ended what a killed process left open; its counts are still at the broker."""
        ended = self._spool.executed
        if ended:
            log.info("the last run was cut off: %d open tracks end now", len(ended))
            forget(self._line, self.topics, ended)

    def _run_streams(self) -> None:
        self._line.publisher.start()
        try:
            for stream in self.streams.values():
                stream.start()
            self._watch()
        finally:
            self._shut_down()

    def _prepared(self, config: Config) -> dict[str, Stream]:
        """Every stream, prepared. One that is refused is kept as failed, unless all are."""
        _check_not_empty(config)
        streams = {name: self._stream(name, stream_config) for name, stream_config in config.streams.items()}
        errors = [error for stream in streams.values() if (error := _prepare(stream))]
        if errors and all(stream.over for stream in streams.values()):
            raise errors[0]
        return streams

    def _stream(self, name: str, config: StreamConfig) -> Stream:
        return Stream(name, config, Desk(self.topics, self._spool, self._line))

    def _watch(self) -> None:
        """Publish health at its pace and at every change of state, until it is time to stop."""
        told, told_at = "", 0.0
        while not self._stop_asked:
            if self._reload_asked:
                self._reload_asked = False
                self._do_reload()
            states = "".join(f"{name} {s.standing[0]} {s.has_result};" for name, s in self.streams.items())
            if states != told or time.monotonic() - told_at >= self.config.health.every_s:
                told, told_at = states, time.monotonic()
                self._publish_health()
            if self._done():
                self._tell_failure()
                return
            with suppress(queue.Empty):
                self._wake.get(timeout=_LOOK_S)

    def _done(self) -> bool:
        """Whether every stream is over, and that is reason enough to end."""
        over = all(stream.over for stream in self.streams.values())
        states = {stream.state for stream in self.streams.values()}
        return over and (self._exit_when_done or ("failed" in states and states <= {"failed", "disabled"}))

    def _tell_failure(self) -> None:
        for stream in self.streams.values():
            if stream.state == "failed":
                raise VedetteError(f"every stream is over; {stream.name}: {stream.detail}")

    def _publish_health(self) -> None:
        spool = self._spool.stats()
        temperature = temperature_c()
        message = payload.HealthMessage(
            version=__version__,
            at=datetime.now(UTC),
            uptime_s=round(time.monotonic() - self._began, 1),
            streams={name: stream.health() for name, stream in self.streams.items()},
            spool=payload.SpoolHealth(spool.waiting, spool.bytes, spool.dropped, spool.on),
            rss_mb=round(resident_mb(), 1),
            temperature_c=None if temperature is None else round(temperature, 1),
        )
        self._line.retain(self.topics.health, payload.encode(message))

    def _do_reload(self) -> None:
        """Swap what changed; keep everything as it was when the new configuration cannot be used."""
        if self._reload is None:
            return
        try:
            config = self._reload()
            _check_reloadable(self.config, config)
            changed = self._changed_streams(config)
            publisher = self._new_publisher(config)
        except VedetteError as error:
            log.error("reload refused, running on as before: %s", "; ".join(str(error).splitlines()))
            return
        except Exception:
            # A defect that a new configuration brings out must not end what runs on the old one.
            log.exception("reload refused, running on as before: a defect in Vedette")
            return
        gone = [name for name in self.streams if name not in config.streams]
        self._swap_streams(changed, gone)
        if publisher is not None:
            self._line.exchange(publisher).stop(_DRAIN_S)
            publisher.start()
        self.config = config
        log.info("reloaded: streams changed: %s; removed: %s", list(changed) or "none", gone or "none")

    def _changed_streams(self, config: Config) -> dict[str, Stream]:
        """New and changed streams, prepared while the old ones still run; those that failed are tried again."""
        changed = {}
        for name, stream_config in config.streams.items():
            old = self.streams.get(name)
            is_known = old is not None and old.config == stream_config
            if old is not None and is_known and old.state != "failed":
                continue
            changed[name] = self._stream(name, stream_config)
            if (error := _prepare(changed[name])) and not is_known:
                raise error
        return changed

    def _new_publisher(self, config: Config) -> Publisher | None:
        if config.mqtt == self.config.mqtt:
            return None
        return Publisher(config.mqtt, self.topics, self._spool)

    def _swap_streams(self, changed: dict[str, Stream], gone: list[str]) -> None:
        leaving = [self.streams[name] for name in (*changed, *gone) if name in self.streams]
        _stop_streams(leaving, _STREAMS_STOP_S)
        for name in gone:
            del self.streams[name]
            self._forget(name)
        self.streams.update(changed)
        for stream in changed.values():
            stream.start()

    def _forget(self, name: str) -> None:
        """Take back what the broker keeps of a stream: an empty payload deletes a retained one."""
        ours = (self.topics.snapshot(name), self.topics.count(name, ""))
        for topic in self._line.publisher.retained():
            if topic.startswith(ours):
                self._line.retain(topic, b"")

    def _shut_down(self) -> None:
        _stop_streams(list(self.streams.values()), _STREAMS_STOP_S)
        self._publish_health()
        self._spool.flush(_FLUSH_S)
        self._line.publisher.stop(_DRAIN_S)


def _check_reloadable(old: Config, new: Config) -> None:
    """Refuse what only a restart can change.

    Raises:
        ConfigError: names the key.
    """
    _check_not_empty(new)
    fixed = {
        "[storage]": (old.storage, new.storage),
        "[device] name": (old.device.name, new.device.name),
        "[mqtt] prefix": (old.mqtt.prefix, new.mqtt.prefix),
    }
    for key, (before, after) in fixed.items():
        if before != after:
            raise ConfigError(f"{key} changed: that takes a restart")


def _check_not_empty(config: Config) -> None:
    if not config.streams:
        raise ConfigError("no [streams.NAME] in the configuration: there is nothing to run")


def _prepare(stream: Stream) -> VedetteError | None:
    """Prepare a stream; the error, said, if it is refused."""
    try:
        stream.prepare()
    except VedetteError as error:
        log.error("stream %s: %s", stream.name, error)
        return error
    return None


def _stop_streams(streams: list[Stream], timeout_s: float) -> None:
    """Stop them all at once, and wait for them no longer than this together."""
    for stream in streams:
        stream.ask_to_stop()
    deadline = time.monotonic() + timeout_s
    for stream in streams:
        if not stream.join(max(0.0, deadline - time.monotonic())):
            log.warning("stream %s did not stop in %.1f s: left behind", stream.name, timeout_s)
            stream.leave_behind()
