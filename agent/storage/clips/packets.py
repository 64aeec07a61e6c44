"""Packets of one stream, in memory: time stamps that can be relied upon, and a ring of whole groups of pictures.

A group (GOP) begins with a key frame, before which nothing can be decoded; sound that comes meanwhile is in it.
All groups of a part belong to the same tracks and to one run of time stamps. A reconnection, another codec or
size, and a jump of the time stamps begin a new part: packets of two parts do not go into one file.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import msgspec
from msgspec import Struct

from agent.types import MediaPacket, MediaTrack

_PATIENCE_S = 5.0
"""How long a replay waits for the disk before a picture is lost, s."""
_JUMP_NS = 5_000_000_000
"""A time stamp that is so much further ahead than the clock says has jumped, ns."""
_BACK_NS = 500_000_000
"""A time stamp that goes back by less is put right, ns: an order that was mixed up on the way."""
_APART_NS = 2_000_000_000
"""Tracks that differ by more than this from when they came count from different moments, ns."""
_LATE_NS = 1_000_000_000
"""How long after a picture was captured it may still begin a clip, ns."""
_GAP_NS = 2_000_000_000
"""A group whose last picture is so much older than the wanted begin is from before an outage, ns. Pictures
without time stamps that come that far apart are that far apart."""
_SLOWEST_NS = 60_000_000_000
"""Longest distance of two pictures, ns: what is longer is a jump."""
_MOST_HELD = 500
"""Packets of sound, about, that are held for the third picture."""
_USUAL_NS = 40_000_000
"""Duration of a packet that says none, before another has come, ns."""


class TimedPacket(Struct, frozen=True, gc=False):
    """A packet with time stamps that can be relied upon.

    Attributes:
        packet: as it came.
        seq: running number within its ring.
        part: number of the unbroken part that it belongs to.
        pts_ns, dts_ns: presentation and decoding on the clock of the part's video, ns; dts rises in each track.
        duration_ns: ns; of a packet that says none the time since the one before.
    """

    packet: MediaPacket
    seq: int
    part: int
    pts_ns: int
    dts_ns: int
    duration_ns: int

    @property
    def is_video(self) -> bool:
        return self.packet.track.kind == "video"

    @property
    def opens_group(self) -> bool:
        """True if it is a key frame of the video."""
        return self.packet.keyframe and self.is_video


class _TrackClock:
    """Time stamps of one track within a part."""

    def __init__(self, track: MediaTrack, offset_ns: int = 0) -> None:
        self.track, self.offset_ns = track, offset_ns
        self.dts_ns: int | None = None
        self.came_ns = 0
        self._late_ns = _SLOWEST_NS if track.kind == "video" else 0
        """How much later than its time stamp says the newest packet may have come, ns: what comes during an
        opening is read at once after it."""
        self._step_ns, self._has_stamps = _USUAL_NS, False

    def stamps(self, packet: MediaPacket) -> tuple[int, int, int] | None:
        """Return pts, dts and duration of a packet, ns; None: the time stamps have jumped."""
        own = ticks_ns(self.track, packet.dts if packet.dts is not None else packet.pts)
        pts_ns, dts_ns = ticks_ns(self.track, packet.pts), self._dts_ns(own, packet.captured_ns)
        if dts_ns is None:
            return None
        step_ns = _USUAL_NS if self.dts_ns is None else dts_ns - self.dts_ns
        if 0 < step_ns < _JUMP_NS:
            self._step_ns = step_ns
        if self.dts_ns is not None:
            passed_ns = packet.captured_ns - self.came_ns
            before_ns = self._late_ns if 2 * passed_ns < step_ns else 0
            self._late_ns = max(0, before_ns + passed_ns - step_ns)
        self.dts_ns, self.came_ns = dts_ns, packet.captured_ns
        duration_ns = ticks_ns(self.track, packet.duration) or self._step_ns
        shown_ns = dts_ns if pts_ns is None else pts_ns + self.offset_ns
        return max(shown_ns, dts_ns), dts_ns, duration_ns

    def _dts_ns(self, own_ns: int | None, came_ns: int) -> int | None:
        last_ns, apart_ns = self.dts_ns, came_ns - self.came_ns
        if last_ns is None:
            self._has_stamps = own_ns is not None
            return (came_ns if own_ns is None else own_ns) + self.offset_ns
        if own_ns is None or not self._has_stamps:
            dts_ns = last_ns + (apart_ns if apart_ns > max(_GAP_NS, 2 * self._step_ns) else self._step_ns)
            if own_ns is not None:  # from here on the track's own time stamps go on
                self._has_stamps, self.offset_ns = True, dts_ns - own_ns
            return dts_ns
        step_ns = own_ns + self.offset_ns - last_ns
        # FFmpeg gives a picture when the next one comes: the last one before a pause comes after the pause.
        passed_ns = came_ns - self.came_ns + self._late_ns
        if step_ns < -_BACK_NS or step_ns - passed_ns > _JUMP_NS:
            return None
        # One tick of any usual clock: two packets at the same time cannot be stored.
        return last_ns + max(step_ns, 1_000_000)


def ticks_ns(track: MediaTrack, ticks: int | None) -> int | None:
    """Return ticks of a track as ns; None stays None."""
    numerator, denominator = track.time_base
    return None if ticks is None else ticks * numerator * 1_000_000_000 // denominator


def _stamped_before(first: MediaPacket, second: MediaPacket, third: MediaPacket | None) -> MediaPacket:
    """Return a packet with the time stamp that precedes the next one's; without any if that one has none.

    The first two are as far apart as the next two: the duration is what the camera announces, and when they came
    tells nothing, as several come at once after the opening. Where the third has no time stamp, it counts when it
    came after the second.
    """
    own = second.dts if second.dts is not None else second.pts
    if own is None:
        return first
    apart_ns = 0 if third is None else _apart_ns(second, third)
    is_known = 0 < apart_ns <= _SLOWEST_NS
    step = 0 if is_known else first.duration or second.duration
    if not step:
        numerator, denominator = first.track.time_base
        step_ns = apart_ns if is_known else _USUAL_NS
        step = max(1, round(step_ns * denominator / (numerator * 1_000_000_000)))
    return msgspec.structs.replace(first, pts=own - step, dts=own - step)


def _apart_ns(second: MediaPacket, third: MediaPacket) -> int:
    """Return how far apart two packets are by their time stamps, or by when they came, ns; 0 or less: unknown."""
    own, later = (second.pts, third.pts) if second.dts is None else (second.dts, third.dts)
    if own is not None and later is not None:
        return ticks_ns(second.track, later - own) or 0
    came_ns = third.captured_ns - second.captured_ns
    return came_ns if came_ns > _GAP_NS else 0


def _stamped(held: list[MediaPacket], third: MediaPacket | None) -> list[MediaPacket]:
    """Return a key frame with a time stamp, and what was held with it; nothing if no picture followed."""
    return [_stamped_before(held[0], held[1], third), *held[1:]] if len(held) > 1 else []


class PacketTimeline:
    """Gives the packets of one stream their part and time stamps. For one thread.

    A missing time stamp follows from the one before, one that goes back a little is put right, and any greater
    jump begins a new part, at the next key frame.

    Attributes:
        part: number of the newest part.
        broken: the video track whose time stamps have jumped, until its next key frame; None: there is none.
    """

    def __init__(self) -> None:
        self.part = -1
        self.broken: MediaTrack | None = None
        self._video: _TrackClock | None = None
        self._sound: _TrackClock | None = None
        self._held: list[MediaPacket] = []
        """A key frame without a time stamp, the picture after it, and the sound since."""

    def ready(self, packet: MediaPacket) -> list[MediaPacket]:
        """Return the packets that can be stamped now.

        A key frame that begins a connection without a time stamp, as FFmpeg gives them of RTSP, waits for the
        next two pictures and gets the time stamp before theirs.
        """
        held, is_video = self._held, packet.track.kind == "video"
        if not held:
            return self._begun(packet) if is_video else [packet]
        if not is_video:
            held += [packet] if len(held) > 1 else []
            self._held = [] if len(held) > _MOST_HELD else held
            return [] if self._held else _stamped(held, None)
        if packet.track is not held[0].track:
            self._held = []
            return [*_stamped(held, None), *self._begun(packet)]
        if len(held) == 1 and (packet.pts is not None or packet.dts is not None):
            held.append(packet)
            return []
        self._held = []
        return [*_stamped(held, packet), packet] if len(held) > 1 else [*held, packet]

    def _begun(self, packet: MediaPacket) -> list[MediaPacket]:
        """Return a picture, unless it begins a connection without a time stamp."""
        begins = self._video is None or self._video.track is not packet.track
        if begins and packet.keyframe and packet.pts is None and packet.dts is None:
            self._held = [packet]
            return []
        return [packet]

    def stamp(self, packet: MediaPacket, seq: int) -> TimedPacket | None:
        """Return the packet with its time stamps; None: it cannot be used, since no key frame came before it."""
        if packet.track.kind == "video":
            return self._stamp_video(packet, seq)
        return self._stamp_sound(packet, seq)

    def interrupt(self) -> None:
        """Begin a new part at the next key frame."""
        if self._video is not None:
            self.broken = self._video.track
        self._video = self._sound = None

    def _stamp_video(self, packet: MediaPacket, seq: int) -> TimedPacket | None:
        clock = self._video
        if clock is not None and clock.track is packet.track and (stamps := clock.stamps(packet)):
            return TimedPacket(packet, seq, self.part, *stamps)
        self.interrupt()
        if not packet.keyframe:
            return None
        self.part += 1
        self._video, self.broken = _TrackClock(packet.track), None
        stamps = self._video.stamps(packet)
        assert stamps is not None  # the first is taken as it is
        return TimedPacket(packet, seq, self.part, *stamps)

    def _stamp_sound(self, packet: MediaPacket, seq: int) -> TimedPacket | None:
        video, clock = self._video, self._sound
        if video is None:
            return None
        if clock is None:
            clock = self._sound = _TrackClock(packet.track, self._offset_ns(packet, video))
        stamps = clock.stamps(packet) if clock.track is packet.track else None
        if stamps is None:
            self.interrupt()
            return None
        return TimedPacket(packet, seq, self.part, *stamps)

    @staticmethod
    def _offset_ns(packet: MediaPacket, video: _TrackClock) -> int:
        """Return what is to be added to the sound's time stamps: 0 where both tracks count from one moment."""
        own_ns = ticks_ns(packet.track, packet.pts if packet.pts is not None else packet.dts)
        wanted_ns = (video.dts_ns or 0) + packet.captured_ns - video.came_ns
        if own_ns is None:
            return wanted_ns - packet.captured_ns
        return 0 if abs(wanted_ns - own_ns) <= _APART_NS else wanted_ns - own_ns


class _Group:
    """A key frame and what follows until the next.

    Attributes:
        is_whole: False if its first packets were dropped once they were written.
    """

    def __init__(self, first: TimedPacket) -> None:
        self.at_ns, self.packets, self.bytes = first.packet.captured_ns, [first], len(first.packet.data)
        self.is_whole = True

    def add(self, packet: TimedPacket) -> None:
        self.packets.append(packet)
        self.bytes += len(packet.packet.data)

    @property
    def last(self) -> TimedPacket:
        return self.packets[-1]

    def covers(self, from_ns: int) -> bool:
        """Return True if it can be decoded and its pictures go on until about then."""
        pictures = [one.packet.captured_ns for one in self.packets if one.is_video]
        step_ns = (pictures[-1] - pictures[0]) // max(1, len(pictures) - 1) if pictures else 0
        return self.is_whole and bool(pictures) and from_ns - pictures[-1] <= max(_GAP_NS, 2 * step_ns)

    def bytes_before(self, seq: int) -> int:
        """Return the bytes of what comes before a packet, or before the last one."""
        seq = min(seq, self.last.seq)
        return sum(len(one.packet.data) for one in self.packets if one.seq < seq)

    def drop_before(self, seq: int) -> int:
        """Drop what comes before a packet, or before the last one; return its bytes."""
        dropped = self.bytes_before(seq)
        if dropped:
            self.packets = [one for one in self.packets if one.seq >= min(seq, self.last.seq)]
            self.bytes -= dropped
            self.is_whole = False
        return dropped


class PacketRing:
    """A ring of whole groups of pictures. Any thread may call every method; one at a time adds packets.

    Attributes:
        bytes: of all packets in it.
        lost: pictures that were held and had to be dropped.
        unusable: pictures without time stamps: those of their track jumped, and no key frame has come since.
        cut: True if pictures that are young enough to be kept were dropped since they take too much memory.
    """

    def __init__(self, seconds: float, max_bytes: int, *, patient: bool = False) -> None:
        """Start empty.

        Args:
            seconds: time before the newest group that is kept, and as much more as the oldest one needs to be
                whole: what happens in a group may be found when it is over.
            max_bytes: bound; the oldest groups are dropped for it, held or not.
            patient: `add` waits for held packets to be written, as a replay can.
        """
        self._kept_ns, self._max_bytes, self._patient = round(seconds * 1e9), max_bytes, patient
        self._groups: deque[_Group] = deque()
        self._clock = PacketTimeline()
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._held: int | None = None
        self._added_s = time.monotonic()
        self._newest_ns, self._next_seq = -1, 0
        self.bytes = self.lost = self.unusable = 0
        self.cut = self._drops_group = False

    def add(self, packet: MediaPacket) -> None:
        """Add a packet; one that cannot be decoded for want of a key frame is ignored."""
        with self._lock:
            if self._patient and self._held is not None:
                self._moved.wait_for(lambda: self._has_room(len(packet.data)), _PATIENCE_S)
            for one in self._clock.ready(packet):
                timed = self._clock.stamp(one, self._next_seq)
                if timed is not None:
                    self._put(timed)
                elif one.track is self._clock.broken:
                    self.unusable += 1

    def _put(self, timed: TimedPacket) -> None:
        if not (self._groups or timed.opens_group):
            self.lost += timed.is_video and self._drops_group
            return
        if timed.opens_group:
            self._groups.append(_Group(timed))
            self._drops_group = False
        else:
            self._groups[-1].add(timed)
        self._next_seq += 1
        self.bytes += len(timed.packet.data)
        if timed.is_video:
            self._newest_ns, self._added_s = timed.packet.captured_ns, time.monotonic()
        self._trim()

    def hold(self, seq: int | None) -> None:
        """Keep packets from that number on, whatever their age; None: no longer."""
        with self._lock:
            self._held = seq
            self._trim()
            self._moved.notify_all()

    def start(self, from_ns: int) -> int:
        """Return the number of the newest key frame captured at `from_ns` or before, else of the next one.

        A group that ended long before, as before an outage, does not count.
        """
        with self._lock:
            begin = next((one for one in reversed(self._groups) if one.at_ns <= from_ns), None)
            if begin is None or not begin.covers(from_ns):
                later = (one for one in self._groups if one.at_ns > from_ns and one.is_whole)
                begin = next(later, None)
            return self._next_seq if begin is None else begin.packets[0].seq

    def between(self, seq: int, until_ns: int) -> list[TimedPacket]:
        """Return the packets from a number on, captured until then, in the order in which they came."""
        with self._lock:
            groups = [one for one in self._groups if one.last.seq >= seq]
        found = [packet for one in groups for packet in one.packets[:] if packet.seq >= seq]
        return [packet for packet in found if packet.packet.captured_ns <= until_ns]

    def age_s(self, seq: int, until_ns: int) -> float:
        """Return the age of the oldest packet from that number on, captured until then, s; 0: there is none."""
        with self._lock:
            group = next((one for one in self._groups if one.last.seq >= seq), None)
            first = None if group is None else next((p for p in group.packets if p.seq >= seq), None)
        if first is None or first.packet.captured_ns > until_ns:
            return 0.0
        return (self.now_ns() - first.packet.captured_ns) / 1e9

    def now_ns(self) -> int:
        """Return the newest capture plus the time since it was added, ns; -1: there was none yet."""
        with self._lock:
            if self._newest_ns < 0:
                return -1
            return self._newest_ns + round((time.monotonic() - self._added_s) * 1e9)

    @property
    def silent_s(self) -> float:
        """Time since the newest picture was added, s."""
        return time.monotonic() - self._added_s

    @property
    def newest_ns(self) -> int:
        """Capture of the newest picture, ns; -1: there was none yet."""
        return self._newest_ns

    @property
    def next_seq(self) -> int:
        """Number of the packet that comes next."""
        return self._next_seq

    def _has_room(self, more: int) -> bool:
        held, groups = self._held, self._groups
        if held is None or not groups or groups[0].last.seq < held or self.bytes + more <= self._max_bytes:
            return True
        return self.bytes - groups[0].bytes_before(held) + more <= self._max_bytes

    def _trim(self) -> None:
        oldest_ns = self._groups[-1].at_ns - self._kept_ns - _LATE_NS if self._groups else 0
        while self._groups:
            first, is_last = self._groups[0], len(self._groups) == 1
            is_held = self._held is not None and first.last.seq >= self._held
            if self.bytes > self._max_bytes:
                self.cut = self.cut or is_last or self._groups[1].at_ns > oldest_ns
                if (is_held or is_last) and (freed := self._drop_written(first)):
                    self.bytes -= freed
                    continue
                self._count_lost(first)
            elif self._held is None and not first.is_whole:
                pass  # nothing goes on in it
            elif is_last or is_held or self._groups[1].at_ns > oldest_ns:
                return
            self._groups.popleft()
            self.bytes -= first.bytes

    def _drop_written(self, group: _Group) -> int:
        """Drop what is written of a group that goes on in an open file; return its bytes."""
        return 0 if self._held is None else group.drop_before(self._held)

    def _count_lost(self, group: _Group) -> None:
        """Count the pictures of a group that was to be written and is dropped."""
        if self._held is not None and (
            lost := sum(one.is_video and one.seq >= self._held for one in group.packets)
        ):
            self.lost += lost
            self._drops_group = len(self._groups) == 1
