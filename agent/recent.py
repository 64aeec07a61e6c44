"""The newest times of inferences, for a quantile that follows what is now and not the whole day."""

from __future__ import annotations

from array import array

_KEPT = 256


class Recent:
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
