"""How fast a stream is: rates since the last look at its totals."""

from __future__ import annotations

import time

from msgspec import Struct

from agent.corridor import Tally


class Rates(Struct, frozen=True):
    """Of an interval.

    Attributes:
        fps: frames handled per second. inferences_per_s: of those, frames that were inferred.
        infer_ms: mean time of an inference; 0 without one.
    """

    fps: float
    inferences_per_s: float
    infer_ms: float


class Meter:
    """Of one stream. Not for several threads."""

    def __init__(self) -> None:
        self._before, self._at = Tally(), time.monotonic()

    def reset(self) -> None:
        """The totals begin anew."""
        self._before = Tally()

    def look(self, tally: Tally) -> Rates:
        """Rates since the last look.

        Args:
            tally: totals, which may be counted on meanwhile.
        """
        now, tally = time.monotonic(), Tally(tally.frames, tally.inferences, tally.infer_ns)
        before, seconds = self._before, max(1e-3, now - self._at)
        self._before, self._at = tally, now
        inferences = max(0, tally.inferences - before.inferences)
        return Rates(
            round(max(0, tally.frames - before.frames) / seconds, 2),
            round(inferences / seconds, 2),
            round((tally.infer_ns - before.infer_ns) / 1e6 / inferences, 3) if inferences else 0.0,
        )
