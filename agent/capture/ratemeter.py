"""The rate that a sound device really has, by the clock. Rules only: the clock is handed in."""

from __future__ import annotations

RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
"""What sound devices offer."""

_TOLERANCE, _SAME = 0.05, 0.02
_WINDOW_S, _BURSTS = 4.0, 50
"""A window lasts so long, and so many of the longest pauses in it: sound comes in bursts, and a window that
begins or ends within one is wrong by its length."""


class RateMeter:
    """Counts what a device delivers, and tells when that is not what it claims.

    Two windows in a row must be off by more than 5 % and agree within 2 %: a hiccup is no rate.
    """

    def __init__(self, claimed_hz: float) -> None:
        self._claimed_hz, self._before_hz = claimed_hz, 0.0
        self.restart()

    def restart(self) -> None:
        """Sound was lost: what was counted so far tells nothing."""
        self._began_s = self._last_s = self._pause_s = 0.0
        self._count = 0

    def add(self, count: int, now_s: float) -> int | None:
        """The rate that it really has, once that is certain and not what it claims.

        Args:
            count: samples that came.
            now_s: when, on a clock that goes on, s.

        Returns:
            Hz; one of `RATES_HZ` where one is near. None: nothing to say.
        """
        if not self._began_s:
            self._began_s = self._last_s = now_s
            return None
        self._count += count
        self._pause_s = max(self._pause_s, now_s - self._last_s)
        self._last_s = now_s
        if now_s - self._began_s < max(_WINDOW_S, _BURSTS * self._pause_s):
            return None
        return self._judge(self._count / (now_s - self._began_s))

    def _judge(self, measured_hz: float) -> int | None:
        """At the end of a window."""
        self.restart()
        before_hz, self._before_hz = self._before_hz, measured_hz
        honest = abs(measured_hz - self._claimed_hz) <= _TOLERANCE * self._claimed_hz
        if honest or abs(measured_hz - before_hz) > _SAME * measured_hz:
            return None
        nearest = min(RATES_HZ, key=lambda rate: abs(rate - measured_hz))
        return nearest if abs(nearest - measured_hz) <= _SAME * nearest else round(measured_hz)
