"""The main job in one process: the daemon on its streams, a broker, and a subscriber who tells what arrives."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from msgspec import Struct

from agent.capture.sound import open_sound
from agent.capture.source import open_source
from agent.capture.uri import parse
from agent.check import check_stream
from agent.comms.access import Access
from agent.comms.subscriber import Received, Subscriber
from agent.config import (
    Config,
    DeviceConfig,
    HomeAssistantConfig,
    MqttConfig,
    SelectionConfig,
    StorageConfig,
    StreamConfig,
)
from agent.daemon import Daemon
from agent.demo.broker import EmbeddedBroker, installed
from agent.errors import VedetteError
from agent.storage.durable import write_atomic

_OPEN_S, _OPEN_LIVE_S = 10.0, 5.0
_RATE_HZ = 16_000


class Summary(Struct):
    """What a demo came to.

    Attributes:
        seconds: how long it ran.
        new, update, end, heard: events received.
        labels: tracks and words by label.
        median_ms: of capture → publish, ms; events without a frame do not count.
        lost: events missing by their `seq`.
        picture: where the annotated picture was written; empty when there was none.
    """

    seconds: float = 0.0
    new: int = 0
    update: int = 0
    end: int = 0
    heard: int = 0
    labels: dict[str, int] = {}
    median_ms: float = 0.0
    lost: int = 0
    picture: str = ""


def _check_readable(uri: str) -> None:
    """Open a source and read its beginning: what gives nothing is refused before anything is shown.

    Raises:
        SourceError: it cannot be read.
    """
    address = parse(uri)
    patience_s = _OPEN_LIVE_S if address.live else _OPEN_S
    if address.sound:
        open_sound(uri, _RATE_HZ, stall_s=patience_s).close()
        return
    source = open_source(uri, stall_s=patience_s)
    try:
        source.grab()
        if address.live:  # a second picture tells a stream from the URL of a snapshot
            source.grab()
    finally:
        source.close()


class Show:
    """Runs the demo while it is iterated over; `summary` is complete afterwards."""

    def __init__(self, streams: dict[str, StreamConfig], picture: Path, seconds: float | None) -> None:
        self.summary = Summary()
        self._streams, self._picture, self._seconds = streams, picture, seconds
        self._latencies: list[float] = []
        self._seqs: set[int] = set()
        self._error: VedetteError | None = None
        self._until = math.inf

    def check(self, source: str | None = None) -> None:
        """Refuse what cannot be shown, before anything begins.

        Args:
            source: as it was asked for, for messages; None: those of the streams.

        Raises:
            VedetteError: the broker is not installed, or a source or a model cannot be used.
        """
        installed()
        for name, stream in self._streams.items():
            check_stream(name, stream)
            _check_readable(source or stream.source)

    def request_stop(self) -> None:
        """End early, with every track ended. For a signal handler."""
        self._until = 0.0

    def messages(self) -> Generator[Received | None]:
        """What the subscriber receives; None now and then when nothing does.

        Raises:
            VedetteError: a source or a model cannot be used.
        """
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="vedette-demo-") as folder, EmbeddedBroker() as broker:
            subscriber = Subscriber(Access("127.0.0.1", broker.port))
            subscriber.start()
            daemon = Daemon(self._config(folder, broker.port), exit_when_done=True)
            thread = threading.Thread(target=self._run, args=(daemon,), name="demo-daemon")
            thread.start()
            try:
                yield from self._until_stopped(subscriber, daemon, thread)
            finally:
                daemon.request_stop()
                thread.join()
                subscriber.stop()
        self._finish(time.monotonic() - began)
        if self._error is not None:
            raise self._error

    def _run(self, daemon: Daemon) -> None:
        try:
            daemon.run()
        except VedetteError as error:
            self._error = error

    def _config(self, folder: str, port: int) -> Config:
        return Config(
            streams=self._streams,
            device=DeviceConfig(name="demo"),
            # amqtt never answers an MQTT 5 CONNECT: `auto` would find out, after seconds.
            mqtt=MqttConfig(host="127.0.0.1", port=port, protocol="3.1.1"),
            storage=StorageConfig(folder=folder),
            homeassistant=HomeAssistantConfig(enabled=False),
            # Its folder goes with it, and with that what would be measured.
            selection=SelectionConfig(after_s=1e8),
        )

    def _until_stopped(
        self, subscriber: Subscriber, daemon: Daemon, thread: threading.Thread
    ) -> Iterator[Received | None]:
        """Everything until the daemon has said `stopped`: by itself, or because the time is over."""
        if self._seconds is not None:
            self._until = min(self._until, time.monotonic() + self._seconds)
        for message in subscriber.messages():
            if time.monotonic() >= self._until:
                daemon.request_stop()
                self._until = math.inf
            if message is not None:
                self._take(message)
            yield message
            said = message is not None and message.kind == "status" and message.payload == b"stopped"
            if said or (message is None and not thread.is_alive()):
                return

    def _take(self, message: Received) -> None:
        if message.kind == "snapshot" and message.payload:
            write_atomic(self._picture, message.payload)
            self.summary.picture = str(self._picture)
        if (event := message.event()) is None:
            return
        setattr(self.summary, event.kind, getattr(self.summary, event.kind) + 1)
        if event.kind in ("new", "heard"):
            self.summary.labels[event.track.label] = self.summary.labels.get(event.track.label, 0) + 1
        if event.latency_ms.has_frame:
            self._latencies.append(event.latency_ms.total)
        self._seqs.add(event.seq)

    def _finish(self, seconds: float) -> None:
        self.summary.seconds = round(seconds, 1)
        if self._seqs:
            self.summary.lost = max(self._seqs) - min(self._seqs) + 1 - len(self._seqs)
        if self._latencies:
            self.summary.median_ms = round(sorted(self._latencies)[len(self._latencies) // 2], 1)
