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

    def offset_ns(self, now_ns: int) -> int | None:
        """Return what is added to a time stamp; None: no packet came lately."""
        return self._offset_ns if now_ns - self._before_ns < _JUMP_NS else None

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


_APART_NS = 500_000_000
"""Largest difference between the offsets of tracks that count time from the same moment, ns."""


class MediaClock:
    """Puts the time stamps of all tracks of a camera on CLOCK_MONOTONIC, so that pictures and sound fit together.

    Tracks of a camera count time from the same moment, but encoding a picture takes longer than encoding sound.
    So the smallest offset of all tracks counts. A track whose offset is far from the others counts for itself.
    """

    def __init__(self) -> None:
        self._clocks: dict[int, PacketClock] = {}

    def captured_ns(self, track: int, pts_ns: int | None, arrived_ns: int, length_ns: int = 0) -> int:
        """Return when a packet's picture, or its first sample, was captured, ns.

        Args:
            track: number of the track.
            pts_ns: time stamp of presentation, ns; None: there is none.
            arrived_ns: CLOCK_MONOTONIC when the packet was read, ns; never decreases over all tracks.
            length_ns: of the sound in the packet, whose last sample was captured before it came; 0: a picture.
        """
        if (clock := self._clocks.get(track)) is None:
            clock = self._clocks[track] = PacketClock()
        if pts_ns is None:
            return arrived_ns - length_ns
        own_ns = clock.captured_ns(pts_ns + length_ns, arrived_ns) - length_ns - pts_ns
        if len(self._clocks) == 1:
            return pts_ns + own_ns
        offsets = (one.offset_ns(arrived_ns) for one in self._clocks.values())
        return pts_ns + min(one for one in offsets if one is not None and abs(one - own_ns) <= _APART_NS)
