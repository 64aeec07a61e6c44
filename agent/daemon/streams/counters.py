"""Counters of one stream: inputs, inferences, times of its stages, rates, and windows for budgets."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from msgspec import Struct

from agent.comms.reporter import EventCounts
from agent.types import StreamResult

_WINDOW = 256
_GAP_NS = 1_000_000_000
"""Longest time between two inputs that counts as open or closed, ns: beyond it the source gave nothing."""
_KEPT = 512
"""Most latencies and costs of one window."""


BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the buckets of a histogram, s, besides infinity: from a gate to an outage of the broker."""
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_S)


class StageTimer:
    """Times of one stage: a histogram since the start, and the newest 256. One thread adds; any may read.

    Attributes:
        counts: times by bucket, each in one; the last is of those above all bounds.
        sum_ns: of all times, ns.
    """

    def __init__(self) -> None:
        self.counts, self.sum_ns = [0] * (len(BOUNDS_S) + 1), 0
        self.begin_run()

    def begin_run(self) -> None:
        """Forget the newest times."""
        self._added, self._newest = 0, array("q", bytes(8 * _WINDOW))  # in this order: another thread may read

    def add(self, nanoseconds: int) -> None:
        """Add one time, ns. A negative one, which only a faulty clock gives, counts as 0."""
        if nanoseconds < 0:
            nanoseconds = 0
        self.counts[bisect_left(_BOUNDS_NS, nanoseconds)] += 1
        self.sum_ns += nanoseconds
        self._newest[self._added % _WINDOW] = nanoseconds
        self._added += 1

    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the newest times, ms; None before the first time."""
        newest = sorted(self._newest[: min(self._added, _WINDOW)])
        return round(newest[(len(newest) * 19 - 1) // 20] / 1e6, 3) if newest else None


STAGES = ("queue", "gate", "prepare", "infer", "decode", "track", "secondary", "publish")
"""Stages whose times are kept, in their order; see `agent.comms.messages.Latency` for what each is."""


class Rates(Struct, frozen=True):
    """Rates of one stream since the previous call.

    Attributes:
        fps: inputs handled per second.
        inferences_per_s: inferences per second.
        infer_ms: mean time of an inference, ms; 0 without one.
        decoded_fps: pictures decoded per second.
    """

    fps: float
    inferences_per_s: float
    infer_ms: float
    decoded_fps: float = 0.0


class Window(Struct, frozen=True, gc=False):
    """What one stream did in some time.

    Attributes:
        inputs: handled.
        open_s, closed_s: time in which the gate was open, and closed, s.
        inferred: inputs that were inferred.
        latencies_ms: of these, from capture to result, ms.
        costs_ms: of these, processor time of the stream's thread, ms.
    """

    inputs: int = 0
    open_s: float = 0.0
    closed_s: float = 0.0
    inferred: int = 0
    latencies_ms: tuple[float, ...] = ()
    costs_ms: tuple[float, ...] = ()


def joined(windows: Sequence[Window]) -> Window:
    """Join consecutive windows into one."""
    return Window(
        sum(one.inputs for one in windows),
        sum(one.open_s for one in windows),
        sum(one.closed_s for one in windows),
        sum(one.inferred for one in windows),
        tuple(value for one in windows for value in one.latencies_ms),
        tuple(value for one in windows for value in one.costs_ms),
    )


class StreamMeter:
    """Counts what one stream does until another thread asks. The stream's thread adds; another one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before_ns: int | None = None
        self._cpu_ns = 0
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
        is_inferred = result.detections is not None
        with self._lock:
            gap_ns = 0 if self._before_ns is None else min(_GAP_NS, max(0, now_ns - self._before_ns))
            self._before_ns = now_ns
            if is_inferred or result.predicted is not None:
                self._open_ns += gap_ns
            else:
                self._closed_ns += gap_ns
            self._inputs += 1
            self._inferred += is_inferred
            if is_inferred and len(self._latencies) < _KEPT:
                if not late:
                    self._latencies.append(result.stages.total / 1e6)
                self._costs.append(used_ms)

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
            )
            self._clear()
            return window

    def _clear(self) -> None:
        self._inputs = self._open_ns = self._closed_ns = self._inferred = 0
        self._latencies: list[float] = []
        self._costs: list[float] = []


class StreamMetrics:
    """Count what one stream handles. The stream's thread adds; one other thread may ask for rates.

    Attributes:
        frames: inputs handled since the start: pictures, or chunks of sound.
        gated: of these, inputs for which the gate was closed.
        predicted: of these, inputs that were not inferred although the gate was open, as the budget wanted it.
        inferences: made since the start.
        has_result: an inference was made in the current run.
        stages: times by stage; `infer` is that of one inference. Another thread adds those of `publish`.
        events: published events by label and kind.
        meter: measures for what sets budgets.
    """

    def __init__(self) -> None:
        self.frames = self.gated = self.predicted = self.inferences = self._infer_ns = 0
        self.has_result, self.events, self.meter = False, EventCounts(), StreamMeter()
        self.stages = {stage: StageTimer() for stage in STAGES}
        self._before, self._at = (0, 0, 0, 0), time.monotonic()

    @property
    def latency(self) -> StageTimer:
        """Inference times of the current run."""
        return self.stages["infer"]

    def begin_run(self) -> None:
        """Start a new run: totals continue, the newest times and `has_result` start anew."""
        self.has_result = False
        for timer in self.stages.values():
            timer.begin_run()

    def add(self, result: StreamResult, inferences: int, *, late: bool = False) -> None:
        """Count one input and the inferences that were made for it; `late`: see `Frame`."""
        self.frames += 1
        self.meter.add(result, late=late)
        times, stages = result.stages, self.stages
        if not late:
            stages["queue"].add(times.queue)
        stages["gate"].add(times.gate)
        stages["track"].add(times.track)
        if result.detections is None:
            self.gated += result.predicted is None
            self.predicted += result.predicted is not None
            return
        self.inferences += inferences
        self._infer_ns += times.infer
        stages["prepare"].add(times.prepare)
        stages["infer"].add(times.infer // max(1, inferences))
        stages["decode"].add(times.decode)
        if times.secondary:
            stages["secondary"].add(times.secondary)
        self.has_result = True

    def p95_ms(self) -> dict[str, float]:
        """Return the 95th percentile of the newest times by stage, ms, of stages that ran."""
        found: Iterable[tuple[str, float | None]]
        found = ((stage, timer.p95_ms) for stage, timer in self.stages.items())
        return {stage: round(ms, 1) for stage, ms in found if ms is not None}

    def rates(self, decoded: int = 0) -> Rates:
        """Return the rates since the previous call; `decoded`: pictures since the source was opened."""
        now, totals = time.monotonic(), (self.frames, self.inferences, self._infer_ns, decoded)
        frames, inferences, infer_ns, pictures = (
            new - old for new, old in zip(totals, self._before, strict=True)
        )
        seconds = max(1e-3, now - self._at)
        self._before, self._at = totals, now
        infer_ms = round(infer_ns / 1e6 / inferences, 3) if inferences else 0.0
        decoded_fps = round(max(0, pictures) / seconds, 2)
        return Rates(round(frames / seconds, 2), round(inferences / seconds, 2), infer_ms, decoded_fps)
