"""`vedette demo`: daemon, subscriber and an embedded MQTT broker (amqtt, extra `[demo]`) in one process."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agent.cli.options import duration
from agent.cli.output import print_json
from agent.errors import BrokerError, VedetteError, reason_of

if TYPE_CHECKING:
    from agent.comms.consumer import ReceivedMessage, Subscriber
    from agent.config import Config, StreamConfig
    from agent.daemon.daemon import Daemon


@click.command()
@click.option(
    "--for",
    "seconds",
    type=duration,
    metavar="DURATION",
    help="Stop after this time, such as 20s; default: the clip's end.",
)
@click.option("--hear", is_flag=True, help="Use sound: digits, and with the extra [wakeword] wake words.")
@click.option("--source", help="A camera, microphone or clip of your own, such as v4l2:/dev/video0.")
@click.option("--model", help="Bundled model or file. [default: nanodet, or small-speech]")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("vedette-demo.jpg"),
    show_default=True,
    help="File for the annotated picture.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as lines of JSON, and a summary as the last.")
def demo(
    seconds: float | None, hear: bool, source: str | None, model: str | None, picture: Path, as_json: bool
) -> None:
    """Play a clip through an INT8 model to an embedded MQTT broker, and print the received events."""
    if not picture.absolute().parent.is_dir():
        raise click.BadParameter(f"{picture}: there is no such folder", param_hint="--picture")
    chosen = choose_streams(hear=hear, source=source, model=model, loop=seconds is not None)
    show = Show(chosen.streams, picture, seconds)
    show.check(source)
    with _ended_by_signal(show.request_stop), closing(show.messages()) as messages:
        if as_json:
            _print_json(messages, show)
        else:
            _show_table(messages, show, chosen.title)


@contextmanager
def _ended_by_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first SIGINT or SIGTERM; a second one has its usual effect."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        stop()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def _print_json(messages: Iterable[ReceivedMessage | None], show: Show) -> None:
    for message in messages:
        if message is not None and message.kind == "events":
            click.echo(message.payload.decode())
    print_json({"summary": asdict(show.summary)})


def _show_table(messages: Iterable[ReceivedMessage | None], show: Show, title: str) -> None:
    from agent.cli.watch import follow

    follow(messages, title)
    summary = show.summary
    labels = ", ".join(f"{count} {label}" for label, count in summary.labels.items()) or "nothing"
    heard = f"{summary.keyword} heard" if summary.keyword else ""
    seen = f"{summary.new} new, {summary.update} update, {summary.end} end"
    click.echo(
        f"{summary.seconds} s: {heard or seen} ({labels}); "
        f"median capture → publish {summary.median_ms} ms; lost {summary.lost}"
    )
    if summary.picture:
        click.echo(f"annotated picture: {summary.picture}")


_START_S = 10.0


class _IteratedAsItWas(dict[Any, Any]):
    """A dictionary that may change while it is iterated over: the loop sees what it held when the loop began."""

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self.keys()))

    def items(self) -> Any:
        return tuple(super().items())


class EmbeddedBroker:
    """MQTT broker that runs in a thread while the `with` block lasts, on the free port `port`."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    def __enter__(self) -> EmbeddedBroker:
        """Start the broker.

        Raises:
            BrokerError: amqtt is not installed, or does not start.
        """
        self._kind = broker_class()
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._thread.start()
        if not self._up.wait(_START_S) or self._error is not None:
            raise BrokerError(f"the demo's broker did not start on 127.0.0.1:{self.port}: {self._why()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    def _why(self) -> str:
        if self._error is None:
            return f"no answer in {_START_S:g} s"
        cause = self._error.__cause__  # amqtt wraps the system's error
        return reason_of(cause if isinstance(cause, OSError) else self._error)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        config: dict[str, Any] = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = self._kind(config)
        # amqtt pauses in its loops over these; a client that subscribes then would end one that is connecting.
        broker._subscriptions = _IteratedAsItWas()
        try:
            await broker.start()
        except Exception as error:  # reported by __enter__
            self._error = error
            return
        finally:
            self._up.set()
        await self._stop.wait()
        await broker.shutdown()


def broker_class() -> Any:
    """Return amqtt's broker class.

    Raises:
        BrokerError: amqtt is not installed.
    """
    try:
        from amqtt.broker import Broker
    except ImportError as error:
        raise BrokerError("the demo's broker is not installed: pip install '.[demo]' in the clone") from error
    return Broker


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_OPEN_S, _OPEN_LIVE_S = 10.0, 5.0
_RATE_HZ = 16_000
_ONLINE_S = 60.0
"""Longest wait for the daemon's connection, s, before the time to show counts anyway."""


@dataclass
class Summary:
    """Result of a demo.

    Attributes:
        seconds: duration, s.
        new, update, end, keyword: events received.
        labels: tracks and words by label.
        median_ms: median time from capture to publish, ms; events without a frame do not count.
        lost: events missing by their `seq`.
        picture: file of the annotated picture; empty: none was written.
    """

    seconds: float = 0.0
    new: int = 0
    update: int = 0
    end: int = 0
    keyword: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    median_ms: float = 0.0
    lost: int = 0
    picture: str = ""


def _check_readable(uri: str) -> None:
    """Open a source and read its beginning.

    Raises:
        SourceError: the source cannot be read.
    """
    from agent.capture.sound import open_sound
    from agent.capture.source import open_source
    from agent.config.source_uri import parse

    address = parse(uri)
    patience_s = _OPEN_LIVE_S if address.live else _OPEN_S
    if not address.gives_pictures:
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
        """Refuse sources and models that cannot be used, before the demo begins.

        Args:
            source: URI as the user gave it, for messages; None: those of the streams.

        Raises:
            VedetteError: the broker is not installed, or a source or a model cannot be used.
        """
        from agent.daemon.check import check_stream

        broker_class()
        for name, stream in self._streams.items():
            check_stream(name, stream)
            _check_readable(source or stream.source)

    def request_stop(self) -> None:
        """End early, with every track ended. For a signal handler."""
        self._until = 0.0

    def messages(self) -> Generator[ReceivedMessage | None]:
        """Yield the messages that the subscriber receives, and None now and then while there are none.

        Raises:
            VedetteError: a source or a model cannot be used.
        """
        from agent.comms.consumer import BrokerOptions, Subscriber
        from agent.daemon.daemon import Daemon
        from agent.daemon.runtime import StopTimes

        # The state folder is deleted at the end: what is not published then is lost, however slow the disk is.
        patient = StopTimes(5.0, 5.0, 10.0, 10.0)
        began = time.monotonic()
        temporary = tempfile.TemporaryDirectory(prefix="vedette-demo-", ignore_cleanup_errors=True)
        with temporary as folder, EmbeddedBroker() as broker:
            subscriber = Subscriber(BrokerOptions("127.0.0.1", broker.port))
            subscriber.start()
            daemon = Daemon(self._config(folder, broker.port), exit_when_done=True, stop_times=patient)
            thread = threading.Thread(target=self._run, args=(daemon,), name="demo-daemon", daemon=True)
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
        from agent.config import Config, DeviceConfig, HomeAssistantConfig, SelectionConfig, StorageConfig
        from agent.config.servers import MqttConfig

        return Config(
            streams=self._streams,
            device=DeviceConfig(name="demo"),
            # amqtt never answers an MQTT 5 CONNECT: `auto` would find out, after seconds.
            mqtt=MqttConfig(host="127.0.0.1", port=port, protocol="3.1.1"),
            storage=StorageConfig(state_dir=folder),
            homeassistant=HomeAssistantConfig(enabled=False),
            # The state folder is deleted at the end, so a measurement would be lost.
            selection=SelectionConfig(after_s=1e8),
        )

    def _until_stopped(
        self, subscriber: Subscriber, daemon: Daemon, thread: threading.Thread
    ) -> Iterator[ReceivedMessage | None]:
        """Yield messages until the daemon publishes `stopped`. The time counts from `online`."""
        if self._seconds is not None:
            self._until = min(self._until, time.monotonic() + _ONLINE_S + self._seconds)
        for message in subscriber.messages():
            if self._seconds is not None and message is not None and message.payload == b"online":
                self._until = min(self._until, time.monotonic() + self._seconds)
            if time.monotonic() >= self._until:
                daemon.request_stop()
                self._until = math.inf
            if message is not None:
                self._add(message)
            yield message
            stopped = message is not None and message.kind == "status" and message.payload == b"stopped"
            if stopped or (message is None and not thread.is_alive()):
                return

    def _add(self, message: ReceivedMessage) -> None:
        if message.kind == "snapshot" and message.payload:
            from agent.storage.files import write_atomic

            write_atomic(self._picture, message.payload)
            self.summary.picture = str(self._picture)
        if (event := message.event()) is None:
            return
        setattr(self.summary, event.kind, getattr(self.summary, event.kind) + 1)
        if event.kind in ("new", "keyword"):
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


_ZOO = Path(__file__).parent.parent / "models" / "zoo"
CLIP, SPOKEN = _ZOO / "walkers.mp4", _ZOO / "spoken.flac"
_WAKE_WORDS = ("alexa", "okay_nabu")
"""Wake words in the recording, besides digits."""
_SNAPSHOT_S = 1.0
"""Least time between annotated pictures, s."""


class DemoStreams(NamedTuple):
    """Streams that run together.

    Attributes:
        title: what is shown, in one line.
        streams: by name.
    """

    title: str
    streams: dict[str, StreamConfig]


def choose_streams(*, hear: bool, source: str | None, model: str | None, loop: bool) -> DemoStreams:
    """Choose the streams.

    Args:
        hear: use sound instead of pictures.
        source: URI; None: the bundled clip or recording.
        model: None: the default; for the bundled recording every model that recognises something in it.
        loop: repeat the bundled clip or recording.
    """
    from agent.config.source_uri import mask
    from agent.models import PREFIX
    from agent.models.wakeword import packaged

    models = {"demo": model or ("small-speech" if hear else "nanodet")}
    if hear and source is None and model is None:
        words = [word for word in _WAKE_WORDS if PREFIX + word in packaged()]
        models = {"digits": "small-speech", **{word: PREFIX + word for word in words}}
    bundled = f"wav:{SPOKEN}" if hear else f"file:{CLIP}"
    shown = mask(source) if source else (SPOKEN if hear else CLIP).stem
    uri = source or f"{bundled}?pace=realtime" + ("&loop=1" if loop else "")
    title = f"{shown} → {', '.join(models.values())} → MQTT: events as a subscriber receives them"
    return DemoStreams(title, {name: _stream(uri, used) for name, used in models.items()})


def _stream(source: str, model: str) -> StreamConfig:
    from agent.config import PublishConfig, StreamConfig, ZoneConfig
    from agent.config.places import LineConfig

    publish = PublishConfig(snapshot_every_s=_SNAPSHOT_S, snapshot_zones=source.startswith(f"file:{CLIP}?"))
    if not publish.snapshot_zones:
        return StreamConfig(source, model, publish=publish)
    zones = (ZoneConfig("left", ((0.0, 0.3), (0.46, 0.36), (0.46, 0.58), (0.0, 0.58))),)
    lines = (LineConfig("kerb", ((0.72, 0.3), (0.7, 0.8))),)
    return StreamConfig(source, model, zones=zones, lines=lines, publish=publish)
