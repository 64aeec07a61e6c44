"""The bulletin: how a device is, published at its pace and at every change that somebody may wait for."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from agent import __version__
from agent.board.proc import read_text
from agent.board.thermal import Heat, resident_mb
from agent.comms import messages
from agent.comms.messages import LinkHealth, SpoolHealth, StreamHealth
from agent.comms.mqtt.session import LinkState
from agent.config.diff import names
from agent.daemon.control import ConfigManager
from agent.daemon.homeassistant import HomeAssistant
from agent.daemon.runtime import Runtime
from agent.daemon.shadow import ShadowReport
from agent.daemon.shadow_manager import ShadowManager
from agent.daemon.stream import Stream
from agent.errors import StorageError, reason_of
from agent.storage.files import write_atomic
from agent.storage.spool.spool import Spool

# Vitals: what the health message tells of the spool and of the line.


def spool_health(spool: Spool) -> SpoolHealth:
    """State of the spool now."""
    stats = spool.stats()
    dropped_by = {str(reason): count for reason, count in stats.dropped_by.items()}
    return SpoolHealth(stats.waiting, stats.bytes, stats.dropped, stats.on, dropped_by, spool.first_seq)


def link_health(state: LinkState) -> LinkHealth | None:
    """The line to the broker; None: there is none now."""
    if not state.connected:
        return None
    return LinkHealth(state.broker, state.detail, state.is_fallback, state.connects, state.trouble)


log = logging.getLogger(__name__)


class HealthPublisher:
    """Of one daemon, for its thread.

    Attributes:
        has_news: whether something was otherwise at the last look than at the one before.
        streams: their health as it was published last.
    """

    def __init__(self, house: Runtime, control: ConfigManager, homeassistant: HomeAssistant) -> None:
        self._house, self._control, self._homeassistant = house, control, homeassistant
        self._began, self._heat = time.monotonic(), Heat()
        self._resident_mb = 0.0
        self._unread: set[str] = set()
        self._told, self._told_at = "", 0.0
        self.changed = False
        self.streams: dict[str, messages.StreamHealth] = {}

    @property
    def has_temperature(self) -> bool:
        """Whether the board tells one."""
        return self._heat.celsius is not None

    def due(self) -> bool:
        """Look at the house; whether it is time to publish, which is taken as done."""
        house, overridden = self._house, self._control.overridden
        with self._reading("temperature"):
            self._heat.look(house.config.thermal.warn_c)
        link = house.line.publisher.state
        now = [
            *((name, s.standing[0], s.has_result, overridden(name)) for name, s in house.streams.items()),
            (self._heat.hot, link.connects, house.recorder.stats.trouble),
            self._homeassistant.trouble,
            house.pending_restart,
            house.commands_off,
            house.state_trouble,
        ]
        self.changed = str(now) != self._told
        if not self.changed and time.monotonic() - self._told_at < house.config.health.every_s:
            return False
        self._told, self._told_at = str(now), time.monotonic()
        return True

    def publish(self) -> None:
        """Publish how everything is now."""
        house, control = self._house, self._control
        with self._reading("memory"):
            self._resident_mb = resident_mb()
        self.streams = {name: control.health(name, one.health()) for name, one in house.streams.items()}
        celsius = self._heat.celsius
        message = messages.HealthMessage(
            version=__version__,
            at=datetime.now(UTC),
            uptime_s=round(time.monotonic() - self._began, 1),
            streams=self.streams,
            spool=spool_health(house.spool),
            rss_mb=round(self._resident_mb, 1),
            temperature_c=None if celsius is None else round(celsius, 1),
            hot=self._heat.hot,
            link=link_health(house.line.publisher.state),
            clips=_clips(house),
            homeassistant=self._homeassistant.trouble,
            commands_off=house.commands_off,
            waits_for_restart=names(house.pending_restart),
            state_folder=house.state_trouble,
        )
        house.line.retain(house.topics.health, messages.encode(message))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """A reading inside may fail, as it does when files run out: the one before stays, and it is told once."""
        try:
            yield
        except OSError as error:
            if what not in self._unread:
                log.warning("%s: cannot be read: %s; health tells what was read last", what, reason_of(error))
            self._unread.add(what)
        else:
            if what in self._unread:
                log.info("%s: can be read again", what)
            self._unread.discard(what)


def _clips(house: Runtime) -> messages.ClipsHealth | None:
    if all(stream.config.clips is None for stream in house.streams.values()):
        return None
    return messages.ClipsHealth(**asdict(house.recorder.stats))


FILE = "health.json"
EVERY_S = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StreamReport(StreamHealth, frozen=True):
    """A stream, as published last, with its state as of now.

    Attributes:
        inferred: inferences since the stream was started.
        infer_p95_ms: 19 of 20 of the newest inferences took no longer, ms; None: there was none yet.
        shadow: of the new model that runs beside its own; None: none does.
    """

    inferred: int = 0
    infer_p95_ms: float | None = None
    shadow: ShadowReport | None = None


class DaemonHealth(Struct, frozen=True):
    """`health.json`.

    Attributes:
        version: of Vedette.
        pid: of the daemon.
        boot_id: of the kernel, so that a file of another boot is known.
        at_s: when this was written, s since the boot.
        uptime_s: of the daemon, s.
        ready: each stream has inferred, or cannot now: its source is lost, over or switched off.
        rss_mb: resident memory of the daemon, MB.
        streams: by name.
        link: to the broker; None: there is none now.
        shadow: the update whose new models run beside those in use; empty: there is none.
        reloads: how often the configuration was read again, or refused, since the start.
        reload_refused: why it was refused the last time; empty: it was not.
    """

    version: str
    pid: int
    boot_id: str
    at_s: float
    uptime_s: float
    ready: bool
    rss_mb: float
    streams: dict[str, StreamReport]
    link: LinkHealth | None = None
    shadow: str = ""
    reloads: int = 0
    reload_refused: str = ""


class HealthFile:
    """Writes the file, for the daemon's thread. Without a folder for what runs, nothing is written."""

    def __init__(
        self,
        house: Runtime,
        bulletin: HealthPublisher,
        shadows: ShadowManager,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Prepare.

        Args:
            house: that it tells of.
            bulletin: what is published of it.
            shadows: of its streams.
            environment: in which systemd names the folder.
        """
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = Path(folder) / FILE if folder else None
        self._house, self._bulletin, self._shadows = house, bulletin, shadows
        self._began_s, self._written_s = time.monotonic(), -1e9
        self._failed = False
        self._reloads, self._reload_refused = 0, ""

    def reloaded(self, refused: str = "") -> None:
        """The configuration was read again.

        Args:
            refused: why everything is as it was before; empty: it was taken up.
        """
        self._reloads += 1
        self._reload_refused = refused

    def look(self, *, ready: bool, is_due: bool) -> None:
        """Write it, if it is old or something has changed.

        Args:
            ready: what the file says.
            is_due: whether something has changed.
        """
        now_s = time.monotonic()
        if self._path is None or (now_s - self._written_s < EVERY_S and not is_due):
            return
        self._written_s = now_s
        try:
            write_atomic(self._path, msgspec.json.encode(self._report(ready)), follow=False, durable=False)
        except (StorageError, OSError) as error:
            if not self._failed:
                log.warning("what is told to programs on this board gets old: %s", reason_of(error))
            self._failed = True
        else:
            self._failed = False

    def _report(self, ready: bool) -> DaemonHealth:
        return DaemonHealth(
            version=__version__,
            pid=os.getpid(),
            boot_id=read_text(_BOOT_ID),
            at_s=round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
            uptime_s=round(time.monotonic() - self._began_s, 3),
            ready=ready,
            rss_mb=round(resident_mb(), 1),
            streams={name: self._stream(name, one) for name, one in self._house.streams.items()},
            link=link_health(self._house.line.publisher.state),
            shadow=self._shadows.update,
            reloads=self._reloads,
            reload_refused=self._reload_refused,
        )

    def _stream(self, name: str, stream: Stream) -> StreamReport:
        state, detail = stream.standing
        told = self._bulletin.streams.get(name) or StreamHealth(state)
        now = replace(told, state=state, detail=detail or (told.detail if told.state == state else ""))
        return StreamReport(
            **asdict(now),
            inferred=stream.inferred,
            infer_p95_ms=stream.infer_p95_ms,
            shadow=self._shadows.findings(name),
        )
