"""How fast a stream is: rates since the last look at its totals."""

from __future__ import annotations

import time
from array import array

from msgspec import Struct

# The newest times of inferences, for a quantile that follows what is now and not the whole day.

_KEPT = 256


class LatencyWindow:
    """Of one stream: its thread adds, any thread asks."""

    def __init__(self) -> None:
        self._ns, self._added = array("q", bytes(8 * _KEPT)), 0

    def add(self, nanoseconds: int) -> None:
        """An inference took so long."""
        self._ns[self._added % _KEPT] = nanoseconds
        self._added += 1

    @property
    def p95_ms(self) -> float | None:
        """19 of 20 of the newest 256 took no longer, ms; None: there was none."""
        kept = sorted(self._ns[: min(self._added, _KEPT)])
        return round(kept[(len(kept) * 19 - 1) // 20] / 1e6, 3) if kept else None


# What every stream's corridor does, for pictures and sound: take, hand on, notice time, end every track.


class StreamTotals(Struct):
    """Running totals of one corridor. A picture, or some sound, is a frame."""

    frames: int = 0
    inferences: int = 0
    infer_ns: int = 0


class Rates(Struct, frozen=True):
    """Of an interval.

    Attributes:
        fps: frames handled per second. inferences_per_s: of those, frames that were inferred.
        infer_ms: mean time of an inference; 0 without one.
    """

    fps: float
    inferences_per_s: float
    infer_ms: float


class StreamMetrics:
    """Of one stream. Not for several threads."""

    def __init__(self) -> None:
        self._before, self._at = StreamTotals(), time.monotonic()

    def reset(self) -> None:
        """The totals begin anew."""
        self._before = StreamTotals()

    def rates(self, tally: StreamTotals) -> Rates:
        """Rates since the last look.

        Args:
            tally: totals, which may be counted on meanwhile.
        """
        now, tally = time.monotonic(), StreamTotals(tally.frames, tally.inferences, tally.infer_ns)
        before, seconds = self._before, max(1e-3, now - self._at)
        self._before, self._at = tally, now
        inferences = max(0, tally.inferences - before.inferences)
        return Rates(
            round(max(0, tally.frames - before.frames) / seconds, 2),
            round(inferences / seconds, 2),
            round((tally.infer_ns - before.infer_ns) / 1e6 / inferences, 3) if inferences else 0.0,
        )
