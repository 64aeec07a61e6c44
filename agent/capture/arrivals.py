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


_WAITED_NS = 2_000_000
"""Time that a read takes from which on its packet was not there yet when it was asked for, ns."""


class ParsedArrivals:
    """Tells when pictures came that FFmpeg gives one late: only the beginning of the next one ends them.

    So the data of a picture began to come before the one before it was given. Only an opening, or a read, that
    ended for want of time has given its last picture without the next one.

    Attributes:
        was_awaited: whether the newest picture began to come while it was asked for, since the one before it was
            given for want of time.
    """

    def __init__(self, longest_ns: int, *, cut_off: bool) -> None:
        """Begin with the opening, which `cut_off`: was ended for want of time; reads are after `longest_ns`."""
        self._longest_ns, self._cut_off, self._before_ns = longest_ns, cut_off, 0
        self.was_awaited = False

    def came_ns(self, asked_ns: int, read_ns: int) -> int:
        """Return when the picture came that was asked for and read then; all ns of one clock."""
        before_ns, self._before_ns = self._before_ns or asked_ns, read_ns
        # What the opening has read is given at once, but a busy machine may take tens of milliseconds for it.
        self.was_awaited = self._cut_off and read_ns - asked_ns >= self._longest_ns // 10
        if not self.was_awaited:
            return before_ns
        self._cut_off = read_ns - asked_ns >= self._longest_ns
        return read_ns - 1  # unknown, and before the next one


_WEIGHT = 0.05
"""Weight of the newest packet in the time from one to the next."""
_LEAST_NS = 5_000_000
"""Packets that come faster are read without pauses, ns."""
_PAUSES = 24
"""Pauses until it is found out whether packets pile up."""
_PILED_NS, _BANNED_NS = 300_000_000, 60_000_000_000
"""Length of packets piled up at which pauses end, and the time without pauses after that, ns."""


class ReadPauses:
    """Tells how long to wait before a packet is read, so that several are there when the reader wakes.

    A camera sends a picture in pieces, each of which may wake a reader that waits for it; that costs more than
    reading them. The pauses follow the time stamps. Where these run slower than the time,
    packets would pile up, so every few seconds the reader waits for a packet to come; if too much was there by
    then, there are no pauses for a minute.
    """

    def __init__(self, late_s: float = 0.005) -> None:
        """Read packets `late_s` after the newest of them should have come, s."""
        self._late_ns = round(1e9 * late_s)
        self._before_ns: int | None = None
        self._apart_ns = 0.0
        self._count = self._pauses = self._piled = self._banned_ns = 0

    def add(self, captured_ns: int, asked_ns: int, read_ns: int) -> None:
        """Record a packet of pictures: when it was captured, see `PacketClock`, asked for, and read, ns."""
        before_ns, self._before_ns = self._before_ns, captured_ns
        if self._pauses < _PAUSES:
            if before_ns is not None and abs(captured_ns - before_ns) < _JUMP_NS:
                self._count += 1
                self._apart_ns += (captured_ns - before_ns - self._apart_ns) * max(1.0 / self._count, _WEIGHT)
        elif read_ns - asked_ns < _WAITED_NS:
            self._piled += 1
        else:
            is_much = self._piled * self._apart_ns >= _PILED_NS
            self._pauses, self._piled = 0, 0
            self._banned_ns = read_ns + _BANNED_NS if is_much else 0

    def next_ns(self, now_ns: int, longest_ns: int) -> int:
        """Return how long to wait before the next packet is read, ns; 0: it may be there.

        Packets are read up to about `longest_ns` after they came.
        """
        apart_ns = round(self._apart_ns)
        if self._before_ns is None or self._pauses >= _PAUSES or now_ns < self._banned_ns or apart_ns < _LEAST_NS:
            return 0
        due_ns = self._before_ns + apart_ns
        if due_ns <= now_ns:
            return 0
        self._pauses += 1
        due_ns += (max(1, longest_ns // apart_ns) - 1) * apart_ns + self._late_ns
        return min(due_ns - now_ns, longest_ns + self._late_ns)


KEY_FRAME_S = 60.0
"""Longest time for which packets may come before the first key frame, s, unless `stall_s` is longer."""
_TELL_S = 3.0
"""Time after which it is told that a key frame is awaited, s."""
_LATE = 2.0
"""Key frames are missing after so many times the longest distance between two, or `KEY_FRAME_S` where that is
longer: cameras vary it."""
_FAILURES = 2
"""Key frames in a row that gave no picture before a camera can be blind: one may be damaged."""
_LONGEST_BLIND_S = 600.0
_ALONE = '; its key frames may need others (intra refresh): set capture.decode = "auto"'


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
        self._alive_s, self._packet_s = now_s, float("-inf")
        self._began_s: float | None = None
        """When the first packet of video came."""
        self._key_s: float | None = None
        """Time at which the newest key frame came."""
        self._apart_s, self.needs_keys, self._has_begun = 0.0, False, False
        self._keys = self._failed_key = 0
        """Key frames that came, and the number of the newest that gave no picture: it may be decoded twice."""
        self._failed, self._failed_keys, self._failed_s = 0, 0, 0.0

    def begin_again(self, now_s: float) -> None:
        """Wait for the next key frame: nothing was decoded for a while, or nothing will be."""
        self._alive_s, self._began_s, self._key_s, self._has_begun = now_s, None, None, False
        self._forgive()

    def add_packet(self, now_s: float, *, keyframe: bool, counts: bool) -> None:
        """Add a packet of video; `counts`: it is life by itself, else only its picture is."""
        self._began_s = now_s if self._began_s is None else self._began_s
        self._packet_s = now_s
        if keyframe:
            if self._key_s is not None:
                self._apart_s = max(self._apart_s, now_s - self._key_s)
            self._keys, self._key_s = self._keys + 1, now_s
        if counts or (keyframe and not self._has_begun):
            self._alive_s = now_s
        self._has_begun = self._has_begun or keyframe

    def add_step(self, now_s: float, *, gave: bool, keyframe: bool = False) -> None:
        """Add a packet that was decoded.

        Args:
            now_s: the present.
            gave: it gave a picture, perhaps that of another packet.
            keyframe: decoding can begin with it.
        """
        if gave:
            self._forgive()
        elif self._has_begun:
            self._failed_s = self._failed_s if self._failed else now_s
            self._failed += 1
            self._failed_keys += keyframe and self._failed_key != self._keys
            self._failed_key = self._keys if keyframe else self._failed_key

    def add_picture(self, now_s: float) -> None:
        """Add a picture."""
        self._alive_s, self._has_begun = now_s, True
        self._forgive()

    def add_sound(self, now_s: float) -> None:
        """Add sound of a camera that is only heard."""
        self._alive_s = now_s

    def awaits_key_frame(self, now_s: float) -> bool:
        """Return True if packets come, and only a key frame has been missing for a while."""
        return self._unkeyed_s(now_s) >= _TELL_S

    def trouble(self, now_s: float) -> str:
        """Return why the camera counts as lost now; empty: it does not."""
        if (unkeyed_s := self._unkeyed_s(now_s)) > 0.0:
            return f"no key frame for {self._key_frame_s:g} s" if unkeyed_s >= self._key_frame_s else ""
        is_fed, limit_s = now_s - self._packet_s < self._stall_s, _LATE * max(self._key_frame_s, self._apart_s)
        if self.needs_keys and is_fed and self._key_s is not None and now_s - self._key_s >= limit_s:
            return f"no key frame for {limit_s:.0f} s"
        is_silent, blind_s = now_s - self._alive_s >= self._stall_s, self._longest_blind_s()
        if self._failed and now_s - self._failed_s >= blind_s:
            return self._blind(blind_s)
        has_failed = self._failed_keys >= _FAILURES and now_s - self._failed_s >= self._stall_s
        if has_failed or (is_silent and self._failed >= _FAILURES):
            return self._blind(self._stall_s)
        return f"no picture for {self._stall_s:g} s" if is_silent else ""

    def _longest_blind_s(self) -> float:
        """Return how long the next key frame may take after one that is damaged, s."""
        return max(self._key_frame_s, min(_LONGEST_BLIND_S, self._apart_s + self._stall_s))

    def _blind(self, time_s: float) -> str:
        return f"packets come, but none can be decoded for {time_s:g} s" + (_ALONE if self.needs_keys else "")

    def _forgive(self) -> None:
        self._failed = self._failed_keys = self._failed_key = 0

    def _unkeyed_s(self, now_s: float) -> float:
        """Return for how long packets have come without a key frame, s; 0: one came, or no packets come."""
        if self._has_begun or self._began_s is None or now_s - self._packet_s >= self._stall_s:
            return 0.0
        return now_s - self._began_s
