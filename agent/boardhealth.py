"""The daemon's health as a file for programs on the board: in memory, rewritten every two seconds."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from agent import __version__
from agent.bulletin import Bulletin
from agent.comms.payload import LinkHealth, StreamHealth
from agent.errors import StorageError, reason_of
from agent.health.files import read_text
from agent.health.machine import resident_mb
from agent.house import House
from agent.shadow import Findings
from agent.shadows import Shadows
from agent.storage.durable import write_passing
from agent.stream import Stream
from agent.vitals import link_health

log = logging.getLogger(__name__)

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
    shadow: Findings | None = None


class BoardHealth(Struct, frozen=True):
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


class LocalHealth:
    """Writes the file, for the daemon's thread. Without a folder for what runs, nothing is written."""

    def __init__(
        self,
        house: House,
        bulletin: Bulletin,
        shadows: Shadows,
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
            write_passing(self._path, msgspec.json.encode(self._report(ready)))
        except (StorageError, OSError) as error:
            if not self._failed:
                log.warning("what is told to programs on this board gets old: %s", reason_of(error))
            self._failed = True
        else:
            self._failed = False

    def _report(self, ready: bool) -> BoardHealth:
        return BoardHealth(
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
