"""The house: the streams of a device, their spool and their line to the broker."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakSet

from agent.board.proc import ADVICE, cpu_info_unreadable, read_clock
from agent.comms.messages import clip_message, encode
from agent.comms.mqtt.endpoint import commands_off
from agent.comms.mqtt.inbox import Answer, Handler
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import Config
from agent.config.device import MqttConfig
from agent.config.diff import Key
from agent.config.source_uri import check_not_shared
from agent.config.stream import StreamConfig
from agent.config.toml import Where
from agent.daemon.check import check_device, keys_of
from agent.daemon.overrides import StreamSettings
from agent.daemon.stream import Stream, StreamServices
from agent.errors import ModelError, StreamError, VedetteError
from agent.storage.files import clips_path
from agent.storage.spool.spool import Spool
from agent.text import plural
from agent.types import Clip

if TYPE_CHECKING:
    from agent.daemon.autoselect import AutoBackend
    from agent.storage.clips.recorder import Recorder


# The line to the broker: stays where the streams hold it while the publisher behind it is exchanged.


class PublisherProxy:
    """A board for the streams. Every method may be called from any thread."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self._lock = threading.Lock()

    def exchange(self, publisher: Publisher) -> Publisher:
        """Put another publisher behind it, which takes over retained topics and handlers; gives the old one."""
        with self._lock:
            old, self.publisher = self.publisher, publisher
            for topic, payload in old.retained().items():
                publisher.retain(topic, payload)
            for pattern, hearing in old.listened().items():
                publisher.listen(pattern, hearing.handler, as_published=hearing.as_published)
        return old

    def retain(self, topic: str, payload: bytes, *, patient: bool = False) -> None:
        """Set a retained topic; an empty payload deletes it at the broker."""
        with self._lock:  # or a payload could go to a publisher that has just been taken over
            self.publisher.retain(topic, payload, patient=patient)

    def ask(self, topic: str, answer: Answer) -> None:
        """Find out what the broker retains under a topic, see `Publisher.ask`."""
        with self._lock:
            self.publisher.ask(topic, answer)

    def listen(self, pattern: str, handler: Handler, *, as_published: bool = False) -> None:
        """Hand what comes for a pattern to a handler, see `Publisher.listen`."""
        with self._lock:
            self.publisher.listen(pattern, handler, as_published=as_published)

    def ignore(self, pattern: str) -> None:
        """Listen no more."""
        with self._lock:
            self.publisher.ignore(pattern)

    def repeat(self, topic: str) -> None:
        """Send a retained topic again, see `Publisher.repeat`."""
        self.publisher.repeat(topic)

    def answer(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        """Answer a request, see `Publisher.answer`."""
        self.publisher.answer(topic, payload, correlation)

    def send(self, topic: str, payload: bytes) -> None:
        """Send once at QoS 0, or drop."""
        self.publisher.send(topic, payload)


log = logging.getLogger(__name__)

CLIP_FLUSH_S = 5.0
"""A clip that is told of and not on the disk by then is told of again after a crash."""
STREAMS_STOP_S, CLIPS_S, FLUSH_S, DRAIN_S = 0.8, 0.25, 0.25, 0.5
"""Together below the two seconds in which a stop must be over."""


def device_name(config: Config) -> str:
    """The configured name, or the host's with what a topic cannot hold replaced."""
    host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())
    return config.device.name or host.strip("-") or "vedette"


class Runtime:
    """What runs on one configuration.

    Attributes:
        config: in use.
        topics: of the device.
        spool: where events wait.
        line: to the broker.
        streams: by name; also those that are disabled or have failed.
        chooser: of what runs their models; None: `auto` is the CPU.
        settings: how each stream is set.
        waiting: keys that have another value in the file, and wait for a restart, by table and name.
        kept_off: streams that an operator has switched off: somebody may want them on again.
        silent: streams that are off or gone: no clip of theirs is announced.
        state_trouble: what happened to the state folder while this runs, or is not written yet; empty: nothing.
    """

    def __init__(
        self,
        config: Config,
        spool: Spool,
        where: Where | None = None,
        chooser: AutoBackend | None = None,
    ) -> None:
        """Nothing runs and nothing is sent before `start`.

        Args:
            config: in use.
            spool: open.
            where: tells where in the configuration's file a key stands, if there is one.
            chooser: of what runs the streams' models.

        Raises:
            ConfigError: the broker's configuration cannot be used, or what may run models is not known.
            StorageError: clips have no place.
        """
        check_device(config)
        self.config, self.spool, self._where, self.chooser = config, spool, where, chooser
        self.topics = Topics(config.mqtt.prefix, device_name(config))
        self.line = PublisherProxy(self.publisher(config.mqtt))
        self._clips = clips_path(config.storage)
        self._recorder: Recorder | None = None
        self.streams: dict[str, Stream] = {}
        self.settings: dict[str, StreamSettings] = {}
        self.pending_restart: tuple[Key, ...] = ()
        self.disabled_by_operator: frozenset[str] = frozenset()
        self.silent = frozenset(name for name, stream in config.streams.items() if not stream.enabled)
        self.state_trouble = ""
        self._stated: set[str] = set()
        self._left: WeakSet[Stream] = WeakSet()  # a thread that hangs holds its stream, and nothing else should

    @property
    def recorder(self) -> Recorder:
        """Of the streams' clips; made when the first stream has some."""
        if self._recorder is None:
            from agent.storage.clips.recorder import Recorder

            self._recorder = Recorder(self._clips, self.config.storage, self._tell_clip)
        return self._recorder

    def _tell_clip(self, clip: Clip) -> None:
        """Announce a clip, unless its stream has been switched off: nothing of that is published any more."""
        if clip.occasion.stream in self.silent:
            return
        news = clip_message(clip, self.topics.device)
        self.spool.put(self.topics.clips(clip.occasion.stream), encode(news))
        self.spool.flush(CLIP_FLUSH_S)

    def publisher(self, config: MqttConfig) -> Publisher:
        """A publisher of the house's events, to this broker."""
        return Publisher(
            config,
            self.topics,
            self.spool,
            lambda: read_clock().synchronised,
            lambda name: name in self.streams,
        )

    def stream(
        self, name: str, config: StreamConfig, among: Mapping[str, StreamConfig] | None = None
    ) -> tuple[Stream, str]:
        """A stream, prepared, and why it is refused; empty: it is not.

        Args:
            name: of the stream.
            config: of the stream.
            among: all streams that are to run with it; None: none that could have its camera.
        """
        opener, vetting = (self.chooser.open, self.chooser.vetting) if self.chooser else (None, None)
        recorder = None if config.clips is None else self.recorder
        stream = Stream(
            name, config, StreamServices(self.topics, self.spool, self.line, opener, recorder, vetting)
        )
        try:
            check_not_shared(name, among or {name: config})
            stream.prepare()
        except VedetteError as error:
            stream.state, stream.detail = "failed", str(error)
            return stream, self._refusal(name, config, error)
        return stream, ""

    def _refusal(self, name: str, config: StreamConfig, error: VedetteError) -> str:
        """With the place in the file, and with the model's path, which not every room knows."""
        said = str(error).removeprefix(f"stream {name}: ")
        if isinstance(error, ModelError) and config.model not in said:
            said = f"{config.model}: {said}"
        if self._where is None:
            return f"stream {name}: {said}"
        return f"{self._where('streams', name, *keys_of(error, name, config))}: stream {name}: {said}"

    def prepare(self) -> None:
        """Prepare every stream. One that is refused is kept as failed, unless nothing is left to run.

        Raises:
            ConfigError: there are no streams.
            StreamError: nothing is left to run.
        """
        _tell_hidden_processors()
        refused = []
        for name, config in self.config.streams.items():
            self.streams[name], refusal = self.stream(name, config, self.config.streams)
            if refusal:
                log.error(refusal)
                refused.append(refusal)
        if refused and all(stream.over for stream in self.streams.values()) and not self.disabled_by_operator:
            raise StreamError("\n".join(refused))

    @property
    def commands(self) -> bool:
        """Whether commands are taken from the broker."""
        return not self.commands_off

    @property
    def commands_off(self) -> str:
        """Why no commands are taken from the broker; empty: they are."""
        return commands_off(self.config.mqtt)

    def publish_settings(self, settings: dict[str, StreamSettings], kept_off: frozenset[str]) -> None:
        """Take note of how the streams are set, and publish it where commands are taken."""
        self.settings, self.disabled_by_operator = settings, kept_off
        told = {
            self.topics.state(name, what): payload.encode()
            for name, one in (settings if self.commands else {}).items()
            for what, payload in one.state_payloads().items()
        }
        for topic in self._stated - set(told):
            self.line.retain(topic, b"")
        for topic, payload in told.items():
            self.line.retain(topic, payload)
        self._stated = set(told)
        for name in kept_off:  # who switches a camera off wants nobody to see what it saw last
            self.line.retain(self.topics.snapshot(name), b"")

    def log_unclean_shutdown(self) -> None:
        """Say that the spool has ended what a killed process left open."""
        if ended := self.spool.crash_ends:
            log.info("unclean shutdown of the last run: ending %s", plural(ended, "open track"))

    def start(self) -> None:
        """Begin to publish, and start every stream."""
        self.line.publisher.start()
        if any(stream.config.clips is not None for stream in self.streams.values()):
            self.recorder.start()
        for stream in self.streams.values():
            stream.start()

    def stop(self) -> None:
        """Say what is left to say, and leave the broker. The streams have stopped."""
        if self.chooser is not None:
            self.chooser.close()
        if self._recorder is not None:
            self._recorder.close(CLIPS_S)
        self.spool.flush(FLUSH_S)
        self.line.publisher.stop(DRAIN_S)

    def stop_streams(self, names: Iterable[str]) -> None:
        """Stop streams to replace or remove them; remember those that were left behind."""
        self._left.update(stop_streams(self.streams[name] for name in names))

    def hanging(self, name: str) -> list[Stream]:
        """Streams of this name that were left behind, and whose threads still hang."""
        return [one for one in self._left if one.name == name and not one.join(0.0)]

    def write_anew(self) -> None:
        """Write again what is kept besides the spool: the state folder was deleted."""
        if self.chooser is not None:
            self.chooser.write_anew()
        if self._recorder is not None:
            self._recorder.configure(self.config.storage)  # it looks which clips there are

    def remove(self, name: str) -> None:
        """Drop a stream that has stopped, and what the broker keeps of it: an empty payload deletes that."""
        del self.streams[name]
        for topic in self.line.publisher.retained():
            if topic.startswith(self.topics.retained_of(name)):
                self.line.retain(topic, b"")


def _tell_hidden_processors() -> None:
    if hidden := cpu_info_unreadable():
        paths = ", ".join(hidden)
        log.warning("%s: cannot be read, so XNNPACK is off and models run many times slower; %s", paths, ADVICE)


def stop_streams(streams: Iterable[Stream]) -> list[Stream]:
    """Stop streams at once, and wait for them no longer than `STREAMS_STOP_S` together.

    Returns:
        those that did not stop in time and were left behind. Nothing more of any is published.
    """
    streams, left = list(streams), []
    for stream in streams:
        stream.ask_to_stop()
    deadline = time.monotonic() + STREAMS_STOP_S
    for stream in streams:
        if not stream.join(max(0.0, deadline - time.monotonic())):
            log.warning("stream %s did not stop in %.1f s: left behind", stream.name, STREAMS_STOP_S)
            stream.abandon()
            left.append(stream)
    return left
