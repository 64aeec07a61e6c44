"""Health of the device: the MQTT message, sent periodically and at every change, and health.json."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec.structs import asdict, replace

from agent import __version__
from agent.board.monitor import PowerMonitor
from agent.board.proc import boot_id, read_memory
from agent.board.process import resident_mb
from agent.comms import messages
from agent.comms.mqtt.link import LinkState
from agent.config.load import names
from agent.daemon.control import ConfigManager
from agent.daemon.runtime import Runtime
from agent.daemon.streams.stream import Stream
from agent.errors import StorageError, reason_of
from agent.health import (
    HEALTH_FILE,
    BatteryHealth,
    DaemonHealth,
    HealthMessage,
    LinkHealth,
    SpoolHealth,
    StreamHealth,
    StreamReport,
    SupplyHealth,
)
from agent.storage.files import write_atomic
from agent.storage.spool.spool import Spool

log = logging.getLogger(__name__)
EVERY_S = 2.0
"""Time between two writes of health.json while nothing changes, s."""


def spool_health(spool: Spool) -> SpoolHealth:
    """Return the state of the event queue now."""
    stats = spool.stats()
    dropped_by = {str(reason): count for reason, count in stats.dropped_by.items()}
    return SpoolHealth(stats.waiting, stats.bytes, stats.dropped, stats.on, dropped_by, spool.first_seq)


def link_health(state: LinkState) -> LinkHealth | None:
    """Return the state of the connection to the broker; None while there is none."""
    if not state.connected:
        return None
    return LinkHealth(state.broker, state.detail, state.connects, state.trouble)


class HealthPublisher:
    """Publishes the device's health message. Call from the daemon's thread only.

    Attributes:
        changed: True if the state at the last `due` differed from the published one.
        streams: their health as last published.
    """

    def __init__(
        self,
        runtime: Runtime,
        control: ConfigManager,
    ) -> None:
        self._runtime, self._control, self._board = runtime, control, runtime.board
        self._resident_mb = 0.0
        self._unreadable: set[str] = set()
        self._published, self._published_at = "", 0.0
        self.changed = False
        self.streams: dict[str, StreamHealth] = {}

    def _measured(self) -> frozenset[str]:
        power = self._board.power
        measured = {
            "temperature": self._board.heat.celsius is not None,
            "power": power.power is not None and power.power.is_measured,
            "under_voltage": power.measures_voltage,
            "battery": power.battery is not None and power.battery.percent is not None,
        }
        return frozenset(name for name, there in measured.items() if there)

    def due(self) -> bool:
        """Return True if the message is due: it is old, or something has changed. The caller publishes."""
        runtime, overridden, board = self._runtime, self._control.overridden, self._board
        board.sensors.tell_hangs()
        with self._reading("temperature"):
            board.heat.poll(runtime.config.thermal.warn_c)
        with self._reading("power"):
            board.power.poll()
        runtime.measured |= self._measured()
        link = runtime.mqtt.state
        now = [
            *(
                (name, s.status[0], s.has_result, overridden(name), bool(s.unmet), s.parts.problems)
                for name, s in runtime.streams.items()
            ),
            (board.heat.hot, board.power.supply, link.connects, runtime.parts.troubles),
            runtime.pending_restart,
            runtime.commands_off,
            runtime.state_trouble,
        ]
        self.changed = str(now) != self._published
        if not self.changed and time.monotonic() - self._published_at < runtime.config.health.every_s:
            return False
        self._published, self._published_at = str(now), time.monotonic()
        return True

    def publish(self) -> None:
        """Publish the health message."""
        runtime = self._runtime
        with self._reading("memory"):
            self._resident_mb = resident_mb()
        busy = self._read_streams()
        celsius, power = self._board.heat.celsius, self._board.power.power
        message = HealthMessage(
            version=__version__,
            at=datetime.now(UTC),
            uptime_s=round(time.monotonic() - runtime.began_s, 1),
            streams=self.streams,
            spool=spool_health(runtime.spool),
            rss_mb=round(self._resident_mb, 1),
            temperature_c=None if celsius is None else round(celsius, 1),
            hot=self._board.heat.hot,
            power_w=power.watts if power else None,
            power_from=power.source if power else "",
            supply=_supply(self._board.power),
            battery=_battery(self._board.power),
            link=link_health(runtime.mqtt.state),
            commands_off=runtime.commands_off,
            waits_for_restart=names(runtime.pending_restart),
            state_folder=runtime.state_trouble,
            cpu=busy,
            memory_available_mb=read_memory().available_mb or None,
            **runtime.parts.health(),
        )
        runtime.mqtt.retain(runtime.topics.health, messages.encode(message))

    def _read_streams(self) -> float | None:
        """Read the health of each stream; return the share of all processors that was busy meanwhile."""
        shares, busy = self._board.load.shares(set(self._runtime.streams))
        self.streams = {
            name: replace(self._control.with_settings(name, one.health()), cpu=shares.get(name, 0.0))
            for name, one in self._runtime.streams.items()
        }
        return busy

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Keep the previous value if the reading inside fails, as without free file descriptors; log it once.

        What a sensor gives must not end the daemon, whatever it is.
        """
        try:
            yield
        except Exception as error:
            if what not in self._unreadable:
                is_bug = not isinstance(error, OSError)
                text = "%s: cannot be read: %s; health repeats the last value"
                log.warning(text, what, reason_of(error), exc_info=is_bug)
            self._unreadable.add(what)
        else:
            if what in self._unreadable:
                log.info("%s: can be read again", what)
            self._unreadable.discard(what)


def _supply(monitor: PowerMonitor) -> SupplyHealth | None:
    return SupplyHealth(monitor.supply.now, monitor.supply.before) if monitor.supply else None


def _battery(monitor: PowerMonitor) -> BatteryHealth | None:
    return BatteryHealth(monitor.battery.status, monitor.battery.percent) if monitor.battery else None


class HealthFile:
    """Writes health.json into the service's runtime directory; without one, nothing. For the daemon's thread."""

    def __init__(
        self,
        runtime: Runtime,
        health: HealthPublisher,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Prepare. The environment holds RUNTIME_DIRECTORY, set by systemd."""
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._path = Path(folder) / HEALTH_FILE if folder else None
        self._runtime, self._health = runtime, health
        self._written_s, self._failed = -1e9, False
        self._reloads, self._reload_refused = 0, ""

    def count_reload(self, refused: str = "") -> None:
        """Count a reload of the configuration, and why it was refused; empty: it was not."""
        self._reloads += 1
        self._reload_refused = refused

    def write_if_due(self, *, ready: bool, is_due: bool) -> None:
        """Write the file, with this `ready`, if it is old or something has changed (`is_due`)."""
        now_s = time.monotonic()
        if self._path is None or (now_s - self._written_s < EVERY_S and not is_due):
            return
        self._written_s = now_s
        try:
            write_atomic(self._path, msgspec.json.encode(self._report(ready)), follow=False, durable=False)
        except (StorageError, OSError) as error:
            if not self._failed:
                log.warning(
                    "%s: cannot be written: %s", self._path, reason_of(error).removeprefix(f"{self._path}: ")
                )
            self._failed = True
        else:
            self._failed = False

    def _report(self, ready: bool) -> DaemonHealth:
        return DaemonHealth(
            version=__version__,
            pid=os.getpid(),
            boot_id=boot_id(),
            at_s=round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
            uptime_s=round(time.monotonic() - self._runtime.began_s, 3),
            ready=ready,
            rss_mb=round(resident_mb(), 1),
            streams={name: self._stream(name, one) for name, one in self._runtime.streams.items()},
            link=link_health(self._runtime.mqtt.state),
            reloads=self._reloads,
            reload_refused=self._reload_refused,
            **self._runtime.parts.report(),
        )

    def _stream(self, name: str, stream: Stream) -> StreamReport:
        state, detail = stream.status
        published = self._health.streams.get(name) or StreamHealth(state)
        detail = detail or (published.detail if published.state == state else "")
        now = replace(published, state=state, detail=detail)
        return StreamReport(
            **asdict(now),
            inferred=stream.metrics.inferences,
            infer_p95_ms=stream.metrics.latency.p95_ms,
            **self._runtime.parts.report(name),
        )
