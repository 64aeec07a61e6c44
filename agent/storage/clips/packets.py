"""Packets of one stream, in memory: time stamps that can be relied upon, and a ring of whole groups of pictures.

A group (GOP) begins with a key frame, before which nothing can be decoded; sound that comes meanwhile is in it.
All groups of a part belong to the same tracks and to one run of time stamps. A reconnection, another codec or
size, and a jump of the time stamps begin a new part: packets of two parts do not go into one file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from agent.types import MediaPacket, MediaTrack

_PATIENCE_S = 5.0
"""How long a replay waits for the disk before a picture is lost, s."""
_JUMP_NS = 10_000_000_000
"""A time stamp that is so much further ahead than the clock says has jumped, ns."""
_BACK_NS = 500_000_000
"""A time stamp that goes back by less is put right, ns: an order that was mixed up on the way."""
_APART_NS = 2_000_000_000
"""Tracks that differ by more than this from when they came count from different moments, ns."""
_LATE_NS = 1_000_000_000
"""How long after a picture was captured it may still begin a clip, ns."""
_GAP_NS = 2_000_000_000
"""A group whose last picture is so much older than the wanted begin is from before an outage, ns."""
_USUAL_NS = 40_000_000
"""Duration of a packet that says none, before another has come, ns."""
_TICK_NS = 1_000_000
"""Least distance of two packets of a track, ns: one tick of any usual clock."""


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
        self.came_ns, self._step_ns = 0, _USUAL_NS

    def stamps(self, packet: MediaPacket) -> tuple[int, int, int] | None:
        """Return pts, dts and duration of a packet, ns; None: the time stamps have jumped."""
        pts_ns, dts_ns, last_ns = ticks_ns(self.track, packet.pts), self._dts_ns(packet), self.dts_ns
        if dts_ns is None:
            return None
        if last_ns is not None and dts_ns - last_ns < _JUMP_NS:
            self._step_ns = dts_ns - last_ns
        self.dts_ns, self.came_ns = dts_ns, packet.captured_ns
        duration_ns = ticks_ns(self.track, packet.duration) or self._step_ns
        shown_ns = dts_ns if pts_ns is None else pts_ns + self.offset_ns
        return max(shown_ns, dts_ns), dts_ns, duration_ns

    def _dts_ns(self, packet: MediaPacket) -> int | None:
        """Return the decoding time: by the track's own time stamps, or by when the packets came."""
        own_ns, last_ns = ticks_ns(self.track, _ticks(packet)), self.dts_ns
        if last_ns is None:
            return (packet.captured_ns if own_ns is None else own_ns) + self.offset_ns
        passed_ns = packet.captured_ns - self.came_ns
        if own_ns is None:
            return last_ns + max(passed_ns, _TICK_NS)
        step_ns = own_ns + self.offset_ns - last_ns
        if step_ns < -_BACK_NS or step_ns - passed_ns > _JUMP_NS:
            return None
        return last_ns + max(step_ns, _TICK_NS)


def ticks_ns(track: MediaTrack, ticks: int | None) -> int | None:
    """Return ticks of a track as ns; None stays None."""
    numerator, denominator = track.time_base
    return None if ticks is None else ticks * numerator * 1_000_000_000 // denominator


def _ticks(packet: MediaPacket) -> int | None:
    return packet.pts if packet.dts is None else packet.dts


class PacketTimeline:
    """Gives the packets of one stream their part and time stamps. For one thread.

    Where a time stamp is missing, it counts when the packet came. One that goes back a little is put right, and
    any greater jump begins a new part, at the next key frame.

    Attributes:
        part: number of the newest part.
        broken: the video track whose time stamps have jumped, until its next key frame; None: there is none.
    """

    def __init__(self) -> None:
        self.part = -1
        self.broken: MediaTrack | None = None
        self._video: _TrackClock | None = None
        self._sound: _TrackClock | None = None
        self._held: MediaPacket | None = None

    def ready(self, packet: MediaPacket) -> list[MediaPacket]:
        """Return the packets that can be stamped now.

        A key frame that begins a connection without a time stamp, as FFmpeg gives them of RTSP, waits for the
        next picture and gets the time stamp before that. Sound that comes meanwhile is dropped.
        """
        held = self._held
        if packet.track.kind != "video":
            return [] if held else [packet]
        if held is None or packet.track is not held.track:
            begins = self._video is None or self._video.track is not packet.track
            waits = begins and packet.keyframe and _ticks(packet) is None
            self._held = packet if waits else None
            return [] if waits else [packet]
        self._held = None
        if (own := _ticks(packet)) is None:
            return [held, packet]
        numerator, denominator = held.track.time_base
        usual = max(1, _USUAL_NS * denominator // (numerator * 1_000_000_000))
        before = own - (held.duration or packet.duration or usual)
        return [replace(held, pts=before, dts=before), packet]

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
        own_ns = ticks_ns(packet.track, _ticks(packet))
        wanted_ns = (video.dts_ns or 0) + packet.captured_ns - video.came_ns
        if own_ns is None:
            return wanted_ns - packet.captured_ns
        return 0 if abs(wanted_ns - own_ns) <= _APART_NS else wanted_ns - own_ns


class PacketRing:
    """A ring of whole groups of pictures. Any thread may call every method; one at a time adds packets.

    Attributes:
        bytes: of all packets in it.
        lost: pictures that were held and had to be dropped.
        unusable: pictures without time stamps: those of their track jumped, and no key frame has come since.
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
        self._packets: deque[TimedPacket] = deque()
        self._keys: deque[TimedPacket] = deque()
        """Key frames in it: the beginnings of whole groups."""
        self._timeline = PacketTimeline()
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._held: int | None = None
        self._added_s = time.monotonic()
        self._newest_ns, self._next_seq = -1, 0
        self.bytes = self.lost = self.unusable = 0
        self._loses_group = False

    def add(self, packet: MediaPacket) -> None:
        """Add a packet; one that cannot be decoded for want of a key frame is ignored."""
        with self._lock:
            if self._patient and self._held is not None:
                self._moved.wait_for(lambda: self._has_room(len(packet.data)), _PATIENCE_S)
            for ready in self._timeline.ready(packet):
                timed = self._timeline.stamp(ready, self._next_seq)
                if timed is not None:
                    self._put(timed)
                elif ready.track is self._timeline.broken:
                    self.unusable += 1

    def _put(self, timed: TimedPacket) -> None:
        if timed.opens_group:
            self._keys.append(timed)
            self._loses_group = False
        elif not self._packets:
            self.lost += timed.is_video and self._loses_group
            return
        self._packets.append(timed)
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
            later = next((key for key in self._keys if key.packet.captured_ns > from_ns), None)
            end = self._next_seq if later is None else later.seq
            before = [key for key in self._keys if key.seq < end]
            if before:
                group = self._from(before[-1].seq)
                pictures = [one.packet.captured_ns for one in group if one.is_video and one.seq < end]
                if from_ns - pictures[-1] <= _GAP_NS:
                    return before[-1].seq
            return end

    def between(self, seq: int, until_ns: int) -> list[TimedPacket]:
        """Return the packets from a number on, captured until then, in the order in which they came."""
        with self._lock:
            found = list(self._from(seq))
        return [packet for packet in found if packet.packet.captured_ns <= until_ns]

    def _from(self, seq: int) -> Iterator[TimedPacket]:
        first = self._packets[0].seq if self._packets else 0
        return islice(self._packets, max(0, seq - first), None)

    def age_s(self, seq: int, until_ns: int) -> float:
        """Return the age of the oldest packet from that number on, captured until then, s; 0: there is none."""
        found = self.between(seq, until_ns)
        return (self.now_ns() - found[0].packet.captured_ns) / 1e9 if found else 0.0

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
        if self._held is None or self.bytes + more <= self._max_bytes:
            return True
        waiting = sum(len(one.packet.data) for one in self._from(self._held))
        return not waiting or waiting + more <= self._max_bytes

    def _trim(self) -> None:
        """Drop groups that are too old, and what takes too much memory: first what is written of a group."""
        while self._packets:
            first, held = self._packets[0], self._held
            following = next((key for key in self._keys if key is not first), None)
            newest_ns = self._keys[-1].packet.captured_ns if self._keys else self._newest_ns
            oldest_ns = newest_ns - self._kept_ns - _LATE_NS
            if self.bytes > self._max_bytes:
                if held is not None and first.seq < held and len(self._packets) > 1:
                    self._drop_first()
                    continue
            elif held is None and not first.opens_group:
                pass  # the rest of a group, in which nothing goes on
            elif (
                following is None
                or following.packet.captured_ns > oldest_ns
                or (held is not None and following.seq > held)
            ):
                return
            self._drop_group()

    def _drop_first(self) -> TimedPacket:
        first = self._packets.popleft()
        if self._keys and self._keys[0] is first:
            self._keys.popleft()
        self.bytes -= len(first.packet.data)
        return first

    def _drop_group(self) -> None:
        """Drop the first group, and count the pictures that were to be written."""
        lost, is_first = 0, True
        while self._packets and (is_first or not self._packets[0].opens_group):
            dropped, is_first = self._drop_first(), False
            lost += self._held is not None and dropped.is_video and dropped.seq >= self._held
        self.lost += lost
        self._loses_group = bool(lost) and not self._packets
