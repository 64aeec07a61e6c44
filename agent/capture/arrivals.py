"""Packets of a camera on the network: when they were captured and are read, and when it counts as lost.

Rules only: the time is passed in.
"""

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
            arrived_ns: CLOCK_MONOTONIC when the packet came, ns; never decreases.
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
            arrived_ns: CLOCK_MONOTONIC when the packet came, ns; never decreases over the packets of a track.
            length_ns: of the sound in the packet, whose last sample was captured before it came; 0: a picture.
        """
        if (clock := self._clocks.get(track)) is None:
            clock = self._clocks[track] = PacketClock()
        if pts_ns is None:
            return arrived_ns - length_ns
        own_ns = clock.captured_ns(pts_ns + length_ns, arrived_ns) - length_ns - pts_ns
        least_ns = own_ns
        for other in self._clocks.values():
            offset_ns = own_ns if other is clock else other.offset_ns(arrived_ns)
            if offset_ns is not None and offset_ns < least_ns and own_ns - offset_ns <= _APART_NS:
                least_ns = offset_ns
        return pts_ns + least_ns


KEY_FRAME_S = 60.0
"""Longest time for which packets may come before the first key frame, s, unless `stall_s` is longer."""
_TELL_S = 3.0
"""Time after which it is told that a key frame is awaited, s."""
_LATE = 2.0
"""Key frames are missing after so many times the longest distance between two, or `KEY_FRAME_S` where that is
longer: cameras vary it."""
_FAILURES = 2
"""Key frames that gave no picture before a camera is blind: one may be damaged."""


class Liveness:
    """Tells when a camera counts as lost although its connection is open. Times are of any monotonic clock, s.

    A camera is alive as long as packets come, whether they have to be decoded or not, until key frames that were
    decoded gave no picture. One key frame may be damaged, and then what follows it gives no picture either.
    Who connects between two key frames, or wants pictures of a camera that was only heard, has to wait for
    the next one; cameras may have one a minute. Where key frames alone are decoded, it is lost if none comes
    for twice the longest time between two so far.

    Attributes:
        needs_keys: whether pictures come from key frames alone.
    """

    def __init__(self, stall_s: float, now_s: float, key_frame_s: float = KEY_FRAME_S) -> None:
        """Begin with the opening.

        Args:
            stall_s: longest time without a packet, or a picture where packets do not count, s.
            now_s: the present.
            key_frame_s: see `KEY_FRAME_S`.
        """
        self._stall_s, self._key_frame_s = stall_s, max(stall_s, key_frame_s)
        self.needs_keys, self._apart_s, self._keys = False, 0.0, 0
        self._failed_s: float | None = None
        self._failed_keys: set[int] = set()
        """Numbers of key frames that gave no picture: one may be decoded twice."""
        self.begin_again(now_s)

    def begin_again(self, now_s: float) -> None:
        """Wait for the next key frame: nothing was decoded for a while, or nothing will be."""
        self._alive_s, self._packet_s, self._has_key = now_s, float("-inf"), False
        self._since_s: float | None = None
        """When the newest key frame came, or, before there is one, the first packet of video."""
        self._forgive()

    def add_packet(self, now_s: float, *, keyframe: bool, counts: bool) -> None:
        """Add a packet of video; `counts`: it is life by itself, else only its picture is."""
        self._packet_s = now_s
        self._since_s = now_s if self._since_s is None else self._since_s
        if counts or (keyframe and not self._has_key):
            self._alive_s = now_s
        if keyframe:
            self._apart_s = max(self._apart_s, now_s - self._since_s) if self._has_key else self._apart_s
            self._keys, self._since_s, self._has_key = self._keys + 1, now_s, True

    def add_step(self, now_s: float, *, gave: bool, keyframe: bool = False) -> None:
        """Add a packet that was decoded.

        Args:
            now_s: the present.
            gave: it gave a picture, perhaps that of another packet.
            keyframe: decoding can begin with it.
        """
        if gave:
            self._forgive()
        elif self._has_key:
            self._failed_s = now_s if self._failed_s is None else self._failed_s
            if keyframe:
                self._failed_keys.add(self._keys)

    def add_picture(self, now_s: float) -> None:
        """Add a picture."""
        self._alive_s, self._has_key = now_s, True
        self._forgive()

    def add_sound(self, now_s: float) -> None:
        """Add sound of a camera that is only heard."""
        self._alive_s = now_s

    def awaits_key_frame(self, now_s: float) -> bool:
        """Return True if packets come, and only a key frame has been missing for a while."""
        is_fed = now_s - self._packet_s < self._stall_s
        return is_fed and not self._has_key and self._unkeyed_s(now_s) >= _TELL_S

    def trouble(self, now_s: float) -> str:
        """Return why the camera counts as lost now; empty: it does not."""
        if now_s - self._packet_s < self._stall_s and (self.needs_keys or not self._has_key):
            limit_s = _LATE * max(self._key_frame_s, self._apart_s) if self._has_key else self._key_frame_s
            if self._unkeyed_s(now_s) >= limit_s:
                return f"no key frame for {limit_s:g} s"
            if not self._has_key:
                return ""
        is_sure = len(self._failed_keys) >= _FAILURES
        blind_s = self._stall_s if is_sure else max(self._key_frame_s, self._apart_s + self._stall_s)
        if self._failed_s is not None and now_s - self._failed_s >= blind_s:
            return f"packets come, but none can be decoded for {blind_s:g} s"
        return f"no picture for {self._stall_s:g} s" if now_s - self._alive_s >= self._stall_s else ""

    def _forgive(self) -> None:
        self._failed_keys, self._failed_s = set(), None

    def _unkeyed_s(self, now_s: float) -> float:
        return 0.0 if self._since_s is None else now_s - self._since_s
