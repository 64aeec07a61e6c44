"""Read what the metrics show from the running daemon, once for each scrape."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from agent import __version__
from agent.board.cpu import StreamCpuMeter, thread_names, thread_seconds
from agent.board.power import PowerReading
from agent.board.proc import Memory, read_memory
from agent.board.processors import Ticks, read_ticks
from agent.capture.supervisor import CaptureStats
from agent.comms.mqtt.session import LinkState
from agent.daemon.runtime import Runtime
from agent.daemon.streams.counters import StreamMetrics
from agent.daemon.streams.stream import Stream
from agent.storage.spool.spool import SpoolStats

if TYPE_CHECKING:
    from agent.comms.messages import ClipsHealth

_THREADS = ("stream-", "capture-", "read-", "clips-", "shadow-", "reject-")
"""Beginnings of the names of a stream's threads."""


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
        hot: see `agent.comms.messages.HealthMessage`.
        unmet: True if the board cannot be kept below its limits, see `agent.comms.messages.HealthMessage`.
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


class LoadMeter:
    """Processor time of the streams' threads and of the board: totals for scrapes, shares for health messages.

    Any thread may call `stream_seconds`; `shares` is for the daemon's thread.
    """

    def __init__(self) -> None:
        self._threads = StreamCpuMeter()
        self._before: dict[str, float] = {}
        self._at, self._board = time.monotonic(), read_ticks()

    def stream_seconds(self, streams: set[str]) -> dict[str, float]:
        """Return the processor time of each stream's threads since the start, s."""
        self._threads.forget(streams)
        return self._threads.poll(_THREADS, thread_seconds(), thread_names())

    def shares(self, streams: set[str]) -> tuple[dict[str, float], float | None]:
        """Return the processors that each stream used since the last call, and the share of all that was busy."""
        now, board, totals = time.monotonic(), read_ticks(), self.stream_seconds(streams)
        seconds = max(1e-3, now - self._at)
        used = {name: total - self._before.get(name, 0.0) for name, total in totals.items()}
        busy = _busy_share(self._board, board)
        self._before, self._at, self._board = totals, now, board
        shares = {name: round(max(0.0, one) / seconds, 3) for name, one in used.items()}
        return shares, None if busy is None else round(busy, 3)


def _busy_share(before: Ticks, now: Ticks) -> float | None:
    total = now.total - before.total
    return None if total <= 0.0 else min(1.0, max(0.0, 1.0 - (now.idle - before.idle) / total))


def read_all(
    runtime: Runtime,
    load: LoadMeter,
    *,
    began_s: float,
    temperature_c: float | None,
    hot: bool,
    power: PowerReading | None = None,
) -> DaemonReadings:
    """Read everything. Any thread may call this; `began_s` is when the daemon started, CLOCK_MONOTONIC, s."""
    streams = dict(runtime.streams)
    used, health = load.stream_seconds(set(streams)), runtime.parts.health()
    return DaemonReadings(
        version=__version__,
        python=platform.python_version(),
        device=runtime.topics.device,
        uptime_s=time.monotonic() - began_s,
        streams={name: _reading(stream, used.get(name, 0.0)) for name, stream in streams.items()},
        spool=runtime.spool.stats(),
        link=runtime.mqtt.state,
        clips=health.get("clips"),
        temperature_c=temperature_c,
        hot=hot,
        unmet=bool(health.get("unmet")),
        cpu=read_ticks(),
        memory=read_memory(),
        power=power,
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
