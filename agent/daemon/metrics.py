"""Metrics of one stream: totals of inputs and inferences, their rates, and the newest inference times."""

from __future__ import annotations

import time
from array import array

from msgspec import Struct

from agent.types import StreamResult

_WINDOW = 256


class LatencyWindow:
    """The newest 256 inference times of a stream. One thread adds; any thread may read."""

    def __init__(self) -> None:
        self._ns, self._added = array("q", bytes(8 * _WINDOW)), 0

    def add(self, nanoseconds: int) -> None:
        """Add the time of one inference, ns."""
        self._ns[self._added % _WINDOW] = nanoseconds
        self._added += 1

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the window, ms; None before the first inference."""
        newest = sorted(self._ns[: min(self._added, _WINDOW)])
        return round(newest[(len(newest) * 19 - 1) // 20] / 1e6, 3) if newest else None


class Rates(Struct, frozen=True):
    """Rates of one stream since the previous call.

    Attributes:
        fps: inputs handled per second.
        inferences_per_s: inferences per second.
        infer_ms: mean time of an inference, ms; 0 without one.
    """

    fps: float
    inferences_per_s: float
    infer_ms: float


class StreamMetrics:
    """Count what one stream handles. The stream's thread adds; one other thread may ask for rates.

    Attributes:
        frames: inputs handled since the start: pictures, or chunks of sound.
        inferences: made since the start.
        has_result: an inference was made in the current run.
        latency: inference times of the current run.
    """

    def __init__(self) -> None:
        self.frames = self.inferences = self._infer_ns = 0
        self.has_result, self.latency = False, LatencyWindow()
        self._before, self._at = (0, 0, 0), time.monotonic()

    def begin_run(self) -> None:
        """Start a new run: totals continue, latencies and `has_result` start anew."""
        self.has_result, self.latency = False, LatencyWindow()

    def add(self, result: StreamResult, inferences: int) -> None:
        """Count one input and the inferences that were made for it."""
        self.frames += 1
        if result.detections is not None:
            self.inferences += inferences
            self._infer_ns += result.stages.infer
            self.latency.add(result.stages.infer // max(1, inferences))
            self.has_result = True

    def rates(self) -> Rates:
        """Return the rates since the previous call."""
        now, totals = time.monotonic(), (self.frames, self.inferences, self._infer_ns)
        frames, inferences, infer_ns = (new - old for new, old in zip(totals, self._before, strict=True))
        seconds = max(1e-3, now - self._at)
        self._before, self._at = totals, now
        infer_ms = round(infer_ns / 1e6 / inferences, 3) if inferences else 0.0
        return Rates(round(frames / seconds, 2), round(inferences / seconds, 2), infer_ms)
