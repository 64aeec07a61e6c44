"""Runtime of one configuration: the streams of a device, the event queue and the connection to the broker."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from msgspec.structs import replace

from agent.board.monitor import BoardMonitor
from agent.board.proc import ADVICE, cpu_info_unreadable
from agent.capture.camera import Cameras
from agent.comms.mqtt.endpoint import commands_off
from agent.comms.mqtt.publisher import Publisher
from agent.comms.reporter import EventTap
from agent.comms.topics import Topics
from agent.config import Config, StreamConfig
from agent.config.load import Key
from agent.config.toml import Where
from agent.daemon.check_device import check_device, check_not_shared, unmasked_twins
from agent.daemon.overrides import StreamSettings
from agent.daemon.parts import DeviceParts
from agent.daemon.streams.services import StreamServices
from agent.daemon.streams.stream import Stream
from agent.errors import ModelError, StreamError, VedetteError
from agent.storage.spool.spool import DiskLoad, Spool
from agent.storage.state import clips_path, state_path
from agent.text import plural

if TYPE_CHECKING:
    from agent.daemon.autoselect import AutoBackend


log = logging.getLogger(__name__)


class StopTimes(NamedTuple):
    """Time of each step of a stop, s. The defaults are together below the two seconds that it may take.

    What a step does not need is given to the next ones until the flush: on a slow disk that takes the longest.

    Attributes:
        streams: until a stream's thread ends.
        clips: until the clips that are being recorded are closed.
        flush: until the last events are on the disk.
        drain: until the broker has acknowledged them.
    """

    streams: float = 0.8
    clips: float = 0.25
    flush: float = 0.25
    drain: float = 0.5


STOP_TIMES = StopTimes()
_CONNECT_S, _DELETE_S, _POLL_S = 5.0, 1.0, 0.05
"""Longest waits for a broker, and for it to delete pictures, before a daemon ends without a stream, s."""


def device_name(config: Config) -> str:
    """Return the configured name, or the host name with characters replaced that a topic cannot hold."""
    host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())
    return config.device.name or host.strip("-") or "vedette"


class Runtime:
    """Runs everything of one configuration: streams, event queue and connection to the broker.

    Attributes:
        config: in use.
        topics: of the device.
        spool: queue of events.
        mqtt: connection to the broker.
        streams: by name; also those that are disabled or have failed.
        auto_backend: opens the models' sessions; None: `auto` is the CPU.
        settings: of each stream, by name.
        pending_restart: keys with another value in the file, which need a restart, by table and name.
        disabled_by_operator: streams that a command has switched off.
        silent: streams that are off or removed: their clips are not announced.
        state_trouble: what happened to the state folder, or is not written to it yet; empty: nothing.
        measured: what the board has measured since the start: `temperature`, `power`, `under_voltage`, `battery`.
        tap: of the events of all streams.
        clips_folder: of all clips.
        parts: of the device.
        board: what it measures.
        began_s: when this was made, CLOCK_MONOTONIC, s.
    """

    def __init__(
        self,
        config: Config,
        spool: Spool,
        where: Where | None = None,
        auto_backend: AutoBackend | None = None,
    ) -> None:
        """Make all parts; nothing runs and nothing is sent before `start`.

        Args:
            config: to use.
            spool: open.
            where: returns file and line of a key; None without a file.
            auto_backend: opens the models' sessions.

        Raises:
            ConfigError: the broker's configuration cannot be used, or a backend is unknown.
            StorageError: the folder of the clips cannot be used.
        """
        check_device(config)
        self.config, self.spool, self._where, self.auto_backend = config, spool, where, auto_backend
        self.topics = Topics(config.mqtt.prefix, device_name(config))
        self.mqtt = Publisher(
            config.mqtt,
            self.topics,
            spool,
            lambda name: name in self.streams or name in self.config.fusion,
            lambda: {name: stream.config for name, stream in dict(self.streams).items()},
        )
        self.mqtt.on_sent(self._count_sent)
        self.clips_folder = clips_path(config.storage)
        self.parts = DeviceParts(self)
        self.streams: dict[str, Stream] = {}
        self.settings: dict[str, StreamSettings] = {}
        self.pending_restart: tuple[Key, ...] = ()
        self.disabled_by_operator: frozenset[str] = frozenset()
        self.silent = frozenset(name for name, stream in config.streams.items() if not stream.enabled)
        self.state_trouble = ""
        self.measured: frozenset[str] = frozenset()
        self.board, self.began_s = BoardMonitor(), time.monotonic()
        self.tap = EventTap()
        self._cameras = Cameras()
        self._state_topics: set[str] = set()
        self._abandoned: WeakSet[Stream] = WeakSet()  # a thread that hangs holds its stream; nothing else should

    def disk_load(self) -> DiskLoad:
        """Return how busy the disk is with events and clips. Any thread may call this."""
        behind_s = max((part.behind_s for part in self.parts), default=0.0)
        return replace(self.spool.load(), clips_behind_s=round(behind_s, 3))

    def _count_sent(self, topic: str, waited_s: float) -> None:
        """Count how long an event of a stream waited to be sent. For the connection's thread."""
        if (stream := self.streams.get(self.topics.stream_of(topic))) is not None:
            stream.metrics.stages["publish"].add(round(waited_s * 1e9))

    def make_stream(
        self, name: str, config: StreamConfig, among: Mapping[str, StreamConfig] | None = None
    ) -> tuple[Stream, str]:
        """Return a prepared stream, and why it cannot run; empty: it can.

        Args:
            name: of the stream.
            config: of the stream.
            among: all streams that are to run with it, whose cameras must differ; None: it runs alone.
        """
        opener, vetting = (
            (self.auto_backend.open, self.auto_backend.vetting) if self.auto_backend else (None, None)
        )
        services = StreamServices(
            self.topics,
            self.spool,
            self.mqtt,
            opener,
            self.parts.get,
            vetting,
            state=state_path(self.config.storage),
            clips=self.clips_folder,
            tap=self.tap,
            cameras=self._cameras,
        )
        stream = Stream(name, config, services)
        try:
            check_not_shared(name, among or {name: config})
            stream.prepare()
        except VedetteError as error:
            stream.state, stream.detail = "failed", str(error)
            return stream, self._describe_refusal(name, config, error)
        return stream, ""

    def _describe_refusal(self, name: str, config: StreamConfig, error: VedetteError) -> str:
        """Add the place in the file, and the model's path, which not every error names."""
        reason = str(error).removeprefix(f"stream {name}: ")
        if isinstance(error, ModelError) and config.model not in reason:
            reason = f"{config.model}: {reason}"
        if self._where is None:
            return f"stream {name}: {reason}"
        return f"{self._where('streams', name, *error.keys)}: stream {name}: {reason}"

    def prepare(self) -> None:
        """Prepare every stream. One that cannot run is `failed`, unless none is left that can.

        Raises:
            StreamError: no stream can run.
        """
        _warn_of_hidden_processors()
        self.parts.open(self.config)
        warn_of_unmasked(self.config.streams)
        refused = []
        for name, config in self.config.streams.items():
            self.streams[name], refusal = self.make_stream(name, config, self.config.streams)
            if refusal:
                log.error(refusal)
                refused.append(refusal)
        if refused and all(stream.finished for stream in self.streams.values()) and not self.disabled_by_operator:
            self._delete_hidden_pictures()
            raise StreamError("\n".join(refused))

    def _delete_hidden_pictures(self) -> None:
        """Connect to the broker for a moment: that deletes snapshots from before the masks of a stream."""
        if any(stream.config.hides for stream in self.streams.values()):
            self.mqtt.start()
            self.wait_to_delete_hidden_pictures()
            self.mqtt.stop(_DELETE_S)

    def wait_to_delete_hidden_pictures(self) -> None:
        """Wait a moment for the broker before the daemon ends, if a stream hides something."""
        until = time.monotonic() + _CONNECT_S
        while any(stream.config.hides for stream in self.streams.values()) and time.monotonic() < until:
            if self.mqtt.state.connected:
                return
            time.sleep(_POLL_S)

    @property
    def commands(self) -> bool:
        """True if commands are accepted from the broker."""
        return not self.commands_off

    @property
    def commands_off(self) -> str:
        """Why no commands are accepted from the broker; empty: they are."""
        return commands_off(self.config.mqtt)

    def publish_settings(self, settings: dict[str, StreamSettings], disabled: frozenset[str]) -> None:
        """Set the streams' settings, and publish them where commands are accepted.

        Args:
            settings: by stream.
            disabled: streams that a command has switched off.
        """
        self.settings, self.disabled_by_operator = settings, disabled
        states = {
            self.topics.state(name, what): payload.encode()
            for name, one in (settings if self.commands else {}).items()
            for what, payload in one.state_payloads().items()
        }
        for topic in self._state_topics - set(states):
            self.mqtt.retain(topic, b"")
        for topic, payload in states.items():
            self.mqtt.retain(topic, payload)
        self._state_topics = set(states)

    def log_unclean_shutdown(self) -> None:
        """Log how many tracks of a killed process the event queue has ended."""
        if ended := self.spool.crash_ends:
            log.info("unclean shutdown of the last run: ending %s", plural(ended, "open track"))

    def start(self) -> None:
        """Connect to the broker, and start every stream."""
        self.mqtt.start()
        self.parts.start()
        for stream in self.streams.values():
            stream.start()

    def stop(self, times: StopTimes = STOP_TIMES, began: float | None = None) -> None:
        """Publish what is left, and disconnect. The streams have stopped before.

        Args:
            times: of the steps.
            began: when the stop began, a time of CLOCK_MONOTONIC, s; None: now, without the time of the streams.
        """
        until = time.monotonic() if began is None else began + times.streams
        if self.auto_backend is not None:
            self.auto_backend.close()
        until += times.clips
        self.parts.close(_left(until))
        self.spool.flush(_left(until + times.flush))
        self.mqtt.stop(times.drain)

    def stop_streams(self, names: Iterable[str]) -> None:
        """Stop streams that are replaced or removed, and remember those whose threads hang."""
        self._abandoned.update(stop_streams(self.streams[name] for name in names))

    def hanging(self, name: str) -> list[Stream]:
        """Return the former streams of this name whose threads still hang."""
        return [one for one in self._abandoned if one.name == name and not one.join(0.0)]

    def delete_outdated(self, name: str) -> None:
        """Delete at the broker what a stream that was replaced has published, and its configuration forbids now.

        These are counts in zones that are gone, and pictures of a stream that hides something or is off: they may
        be from before its masks, and whoever switches a camera off does not want its last picture to be seen.
        """
        config = self.streams[name].config
        zones = {zone.name for zone in config.zones}
        for topic in self.mqtt.retained():
            if self.topics.is_of_other_zone(name, zones, topic):
                self.mqtt.retain(topic, b"")
        if config.hides or not config.enabled:
            self.mqtt.retain(self.topics.snapshot(name), b"")

    def remove(self, name: str) -> None:
        """Remove a stream that has stopped, and delete its retained topics at the broker."""
        del self.streams[name]
        for topic in self.mqtt.retained():
            if topic.startswith(self.topics.retained_of(name)):
                self.mqtt.retain(topic, b"")


def warn_of_unmasked(
    streams: Mapping[str, StreamConfig], before: Mapping[str, StreamConfig] | None = None
) -> None:
    """Log which streams show what others hide, unless the streams `before` did so, too."""
    known = set(unmasked_twins(before or {}))
    for twin in unmasked_twins(streams):
        if twin not in known:
            log.warning("%s", twin.text)


def _warn_of_hidden_processors() -> None:
    if hidden := cpu_info_unreadable():
        paths = ", ".join(hidden)
        log.warning("%s: cannot be read, so XNNPACK is off and models run many times slower; %s", paths, ADVICE)


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


def stop_streams(streams: Iterable[Stream], seconds: float = STOP_TIMES.streams) -> list[Stream]:
    """Stop streams together, and wait for all of them no longer than this.

    Returns:
        those that did not stop in time and were abandoned. Nothing more of them is published.
    """
    streams, abandoned = list(streams), []
    for stream in streams:
        stream.ask_to_stop()
    deadline = time.monotonic() + seconds
    for stream in streams:
        if not stream.join(_left(deadline)):
            log.warning("stream %s did not stop in %.1f s: abandoning its thread", stream.name, seconds)
            stream.abandon()
            abandoned.append(stream)
    return abandoned
