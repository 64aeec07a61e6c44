"""Read what the metrics show from the running daemon, once for each scrape."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from agent import __version__
from agent.board.power import PowerReading
from agent.board.proc import Memory, read_memory
from agent.board.processors import Ticks, read_ticks
from agent.capture.supervisor import CaptureStats
from agent.comms.mqtt.publisher import LinkState
from agent.daemon.streams.counters import StreamMetrics
from agent.storage.spool.spool import SpoolStats

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream
    from agent.health import ClipsHealth


class StreamTotals(Struct, frozen=True):
    """One stream at a scrape.

    Attributes:
        state: see `agent.health.StreamHealth`.
        metrics: what it has handled.
        capture: totals of its source; None: it has never run.
        tracks: alive now.
        model, backend, variant: in use; empty: not known.
        cpu_s: processor time of its threads, s.
        reduced: True if the governor gives it less than everything.
        unmet: True if a promise of its service is not kept.
    """

    state: str
    metrics: StreamMetrics
    capture: CaptureStats | None
    tracks: int
    model: str
    backend: str
    variant: str
    cpu_s: float
    reduced: bool = False
    unmet: bool = False


class DaemonReadings(Struct, frozen=True):
    """Everything at a scrape.

    Attributes:
        version, python: of Vedette, and of Python.
        device: name of the device.
        uptime_s: of the daemon, s.
        streams: by name.
        spool: the event queue.
        link: connection to the broker.
        clips: of all streams; None: no stream makes any.
        temperature_c: of the hottest zone, °C; None: not known.
        hot: see `agent.health.HealthMessage`.
        unmet: True if the board cannot be kept below its limits, see `agent.health.HealthMessage`.
        cpu: time of the board's processors; zeros: not known.
        memory: of the board.
        power: that the board takes; None: not known.
    """

    version: str
    python: str
    device: str
    uptime_s: float
    streams: dict[str, StreamTotals]
    spool: SpoolStats
    link: LinkState
    clips: ClipsHealth | None
    temperature_c: float | None
    hot: bool
    unmet: bool
    cpu: Ticks
    memory: Memory
    power: PowerReading | None = None


def read_all(runtime: Runtime) -> DaemonReadings:
    """Read everything. Any thread may call this."""
    streams, board, health = dict(runtime.streams), runtime.board, runtime.parts.health()
    used = board.load.stream_seconds(set(streams))
    return DaemonReadings(
        version=__version__,
        python=platform.python_version(),
        device=runtime.topics.device,
        uptime_s=time.monotonic() - runtime.began_s,
        streams={name: _reading(stream, used.get(name, 0.0)) for name, stream in streams.items()},
        spool=runtime.spool.stats(),
        link=runtime.mqtt.state,
        clips=health.get("clips"),
        temperature_c=board.heat.celsius,
        hot=board.heat.hot,
        unmet=bool(health.get("unmet")),
        cpu=read_ticks(),
        memory=read_memory(),
        power=board.power.power,
    )


def _reading(stream: Stream, cpu_s: float) -> StreamTotals:
    model, (backend, variant) = stream.model, stream.answered_by
    return StreamTotals(
        stream.status[0],
        stream.metrics,
        stream.captured,
        stream.tracks,
        model.manifest.name if model else "",
        backend,
        variant,
        cpu_s,
        bool(stream.reduced),
        bool(stream.unmet),
    )
