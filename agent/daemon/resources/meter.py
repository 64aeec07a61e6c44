"""Measures one stream for the governor: rates, latency and cost of its inferences, in windows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from msgspec import Struct

from agent.types import StreamResult

_GAP_NS = 1_000_000_000
"""Longest time between two inputs that counts as open or closed, ns: beyond it the source gave nothing."""
_KEPT = 512
"""Most latencies and costs of one window."""


class Window(Struct, frozen=True, gc=False):
    """What one stream did in some time.

    Attributes:
        inputs: handled.
        open_s, closed_s: time in which the gate was open, and closed, s.
        inferred: inputs that were inferred.
        latencies_ms: of these, from capture to result, ms.
        costs_ms: of these, processor time of the stream's thread, ms.
        least_ms: shortest of these, without the time before its first stage, ms: its processor time where that is
            shorter; None: nothing was inferred.
    """

    inputs: int = 0
    open_s: float = 0.0
    closed_s: float = 0.0
    inferred: int = 0
    latencies_ms: tuple[float, ...] = ()
    costs_ms: tuple[float, ...] = ()
    least_ms: float | None = None


def joined(windows: Sequence[Window]) -> Window:
    """Join consecutive windows into one."""
    return Window(
        sum(one.inputs for one in windows),
        sum(one.open_s for one in windows),
        sum(one.closed_s for one in windows),
        sum(one.inferred for one in windows),
        tuple(value for one in windows for value in one.latencies_ms),
        tuple(value for one in windows for value in one.costs_ms),
        min((one.least_ms for one in windows if one.least_ms is not None), default=None),
    )


class StreamMeter:
    """Counts what one stream does until the governor asks. The stream's thread adds; another one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before_ns: int | None = None
        self._cpu_ns = 0
        self._least_ms: float | None = None
        self._clear()

    def add(
        self,
        result: StreamResult,
        now_ns: int | None = None,
        cpu_ns: int | None = None,
        *,
        late: bool = False,
    ) -> None:
        """Add the result of one input, in the stream's thread.

        Args:
            result: of the input.
            now_ns: CLOCK_MONOTONIC, ns; None: now.
            cpu_ns: processor time of this thread, ns; None: until now.
            late: the input was decoded late, so that its latency says nothing about the board.
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        cpu_ns = time.thread_time_ns() if cpu_ns is None else cpu_ns
        used_ms, self._cpu_ns = max(0, cpu_ns - self._cpu_ns) / 1e6, cpu_ns
        stages, is_inferred = result.stages, result.detections is not None
        with self._lock:
            gap_ns = 0 if self._before_ns is None else min(_GAP_NS, max(0, now_ns - self._before_ns))
            self._before_ns = now_ns
            self._inputs += 1
            if is_inferred or result.predicted is not None:
                self._open_ns += gap_ns
            else:
                self._closed_ns += gap_ns
            self._inferred += is_inferred
            if is_inferred and len(self._latencies) < _KEPT:
                if not late:
                    self._latencies.append(stages.total / 1e6)
                self._costs.append(used_ms)
                took_ms = min(used_ms, (stages.total - stages.queue) / 1e6)
                self._least_ms = took_ms if self._least_ms is None else min(self._least_ms, took_ms)

    def take(self) -> Window:
        """Return what was added since the call before."""
        with self._lock:
            window = Window(
                self._inputs,
                self._open_ns / 1e9,
                self._closed_ns / 1e9,
                self._inferred,
                tuple(self._latencies),
                tuple(self._costs),
                self._least_ms,
            )
            self._clear()
            return window

    def _clear(self) -> None:
        self._inputs = self._open_ns = self._closed_ns = self._inferred = 0
        self._latencies: list[float] = []
        self._costs: list[float] = []
        self._least_ms = None
