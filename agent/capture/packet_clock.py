"""Capture times of packets: their time stamps, put on this machine's clock. Rules only: the time is passed in."""

from __future__ import annotations

_JUMP_NS = 1_000_000_000
"""A time stamp that is so far from the time of arrival begins a new time line, ns."""
_DRIFT = 1_000
"""The camera's clock may be slower than this one by one part in so many."""


class PacketClock:
    """Puts the time stamps of one track on CLOCK_MONOTONIC.

    The packet that was on its way for the shortest time defines the difference of the clocks, so that a network
    that delays some packets does not bend the time. No time is later than the packet's arrival.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._before_ns = 0

    def captured_ns(self, pts_ns: int | None, arrived_ns: int) -> int:
        """Return when a packet's picture was captured, ns.

        Args:
            pts_ns: time stamp of presentation, ns of any origin; None: there is none.
            arrived_ns: CLOCK_MONOTONIC when the packet was read, ns; never decreases.
        """
        if pts_ns is None:
            return arrived_ns
        now_ns = arrived_ns - pts_ns
        if self._offset_ns is None or abs(now_ns - self._offset_ns) > _JUMP_NS:
            self._offset_ns = now_ns
        else:
            drifted_ns = self._offset_ns + (arrived_ns - self._before_ns) // _DRIFT
            self._offset_ns = min(now_ns, drifted_ns)
        self._before_ns = arrived_ns
        return pts_ns + self._offset_ns
