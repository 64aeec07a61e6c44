"""One clip that is being recorded: which packets of its stream's ring go into which file, and when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.storage.clips.file import ClipFile
from agent.storage.clips.packets import PacketRing, TimedPacket
from agent.types import ClipReason

FOREVER_NS = 1 << 62
"""End of a recording that goes on until it is ended, ns."""
_PIECE = 1024 * 1024
"""Bytes that are worth a write; fewer wait up to `_WAIT_S`."""
_SYNC_S = 5.0
"""A power cut costs no more than this of a clip, s."""
_GRACE_NS = 2_000_000_000
"""How late a picture may come, ns."""
_IDLE_S, _SLACK = 10.0, 1.25
"""A camera has stopped after so long without a picture, s, and after so many times its `stall_s`."""
_RETRY_S = 10.0
"""After a failure a continuous recording begins anew so much later, s."""
_WAIT_S = 2.0
"""Longest wait for more pictures, s: what is not written is lost in a crash."""


class ClipJob:
    """A clip that is being recorded. The thread of its stream moves its end; the recorder does the rest.

    Attributes:
        path: of its first file.
        reason: what it is made for.
        ring: packets of its stream.
        tracks: ids of the tracks that it was made for.
        at, at_ns: UTC of its event or command, and the same by the clock of the captures, ns.
        until_ns: end as far as known, ns.
        next_seq: number of the first packet in the ring that is not written yet.
        file: that is being written; None: nothing is written yet.
        files: number of its files that are complete.
        finished: True if nothing more is added.
        segment_ns: longest file, ns; 0: the clip is one file.
        piece_bytes: size after which a recording without an end goes on in another file.
        awaits_more: True while too little has come for a file to begin: whether there is sound is not known yet.
        paused_until_s: nothing is written before that time of CLOCK_MONOTONIC, s.
    """

    def __init__(
        self,
        path: Path,
        occasion: ClipReason,
        ring: PacketRing,
        next_seq: int,
        until_ns: int,
        segment_ns: int = 0,
        stall_s: float = 0.0,
    ) -> None:
        self.path, self.reason, self.ring = path, occasion, ring
        self.tracks: tuple[str, ...] = ()
        self.next_seq, self.until_ns, self.segment_ns = next_seq, until_ns, segment_ns
        self.piece_bytes, self._stall_s = 1 << 62, stall_s
        self.at, self.at_ns = datetime.now(UTC), ring.now_ns()
        self.file: ClipFile | None = None
        self.finished = self._ended = self._failing = self.awaits_more = False
        self.files, self.paused_until_s = 0, 0.0
        self._lock = threading.Lock()
        self._skipped = self._in_file = 0
        self._missed_before = ring.lost + ring.unusable
        self._wrote_s = self._synced_s = self._over_s = self._shown_s = time.monotonic()

    @property
    def is_continuous(self) -> bool:
        """True if it goes on until it is ended."""
        return self.segment_ns > 0

    def end(self, until_ns: int = FOREVER_NS) -> None:
        """End the clip with the packets that there are now, and were captured until then."""
        with self._lock:
            self.until_ns, self._ended = min(self.until_ns, until_ns), True

    def move_end(self, until_ns: int) -> bool:
        """Move the clip's end to `until_ns`. Return False if it is already over."""
        with self._lock:
            self.until_ns = until_ns
            return not self.finished

    def check_over(self) -> bool:
        """Return True if the clip is over: by its pictures, or by the clock when none come any more."""
        ring, now_s = self.ring, time.monotonic()
        with self._lock:
            if not self.finished:
                is_stale = now_s - self._wrote_s > (self.until_ns - self.at_ns + _GRACE_NS) / 1e9
                late = ring.now_ns() > self.until_ns + _GRACE_NS or (ring.newest_ns < 0 and is_stale)
                self.finished = self._ended or ring.newest_ns > self.until_ns or late
                self._over_s = now_s
            return self.finished

    @property
    def is_idle(self) -> bool:
        """True if it has an open file, and its live camera has given no picture for too long.

        Sound may go on. What came later would not go into that file, and could not be decoded in another one
        before a key frame.
        """
        is_open = self.file is not None and (self.is_continuous or self._stall_s > 0.0)
        return is_open and time.monotonic() - self._shown_s > max(_IDLE_S, _SLACK * self._stall_s)

    @property
    def is_silent(self) -> bool:
        """True if its camera has given no picture for a while: no more is worth waiting for."""
        return self.ring.silent_s > _WAIT_S

    @property
    def behind_s(self) -> float:
        """How much longer than usual packets have waited to be written, s."""
        now_s = time.monotonic()
        if self.finished:
            waited_s = now_s - self._over_s
        elif self.awaits_more:
            return 0.0
        else:
            waited_s = min(now_s - self._wrote_s, self.ring.age_s(self.next_seq, self.until_ns))
        return max(0.0, waited_s - _WAIT_S)

    @property
    def bytes(self) -> int:
        return self.file.bytes if self.file else 0

    @property
    def shown(self) -> str:
        """The file that it is about now: the open one, or where the next one goes."""
        if (file := self.file) is not None:  # the recorder's thread may complete it now
            return str(file.path)
        return str(self.path.parent if self.files or self.is_continuous else self.path)

    def take_missing(self) -> int:
        """Return how many pictures are in no file since the last time."""
        missed = self.ring.lost + self.ring.unusable
        missing = missed - self._missed_before + self._skipped
        self._missed_before, self._skipped = missed, 0
        return missing

    def utc_of(self, captured_ns: int) -> datetime:
        """Return the UTC of a capture; of a long recording by the clock as it is now, which may have been set."""
        at, at_ns = self.at, self.at_ns
        if self.is_continuous:
            at, at_ns = datetime.now(UTC), self.ring.now_ns()
        return at + timedelta(microseconds=(captured_ns - at_ns) // 1000)

    def packets(self) -> list[TimedPacket]:
        return self.ring.between(self.next_seq, self.until_ns)

    def is_due(self, packets: Sequence[TimedPacket]) -> bool:
        """Return True if it is time to write these packets."""
        waited_s = time.monotonic() - self._wrote_s
        return waited_s >= _WAIT_S or sum(len(one.packet.data) for one in packets) >= _PIECE

    def runs(self, packets: Sequence[TimedPacket]) -> Iterator[Sequence[TimedPacket]]:
        """Yield these packets by the file that they go into, and an empty run where the open one takes none."""
        begin, size = 0, self.bytes
        begins = (one for one in packets if one.opens_group)
        first = next(begins, packets[0]) if self.file is None else self.file.first
        for end, packet in enumerate(packets):
            is_full = packet.dts_ns - first.dts_ns >= self.segment_ns or size >= self.piece_bytes
            if packet.part != first.part or (packet.opens_group and self.is_continuous and is_full):
                yield packets[begin:end]
                begin, first, size = end, packet, 0
            size += len(packet.packet.data)
        yield packets[begin:]

    def from_key_frame(self, packets: Sequence[TimedPacket]) -> Sequence[TimedPacket]:
        """Return the packets from the first key frame on, with which a file begins; count pictures before it."""
        begin = next((number for number, one in enumerate(packets) if one.opens_group), len(packets))
        if self.files or self._failing:
            self._skipped += sum(one.is_video for one in packets[:begin])
        if begin:
            self.next_seq = packets[begin - 1].seq + 1  # a failure of what comes next counts them no second time
        return packets[begin:]

    def complete(self) -> None:
        """Forget the open file, which is complete: what comes goes into another one."""
        self.file, self.files, self._in_file = None, self.files + 1, 0

    def write(self, file: ClipFile, packets: Sequence[TimedPacket]) -> None:
        """Write packets."""
        now = self._wrote_s = time.monotonic()
        file.append(packets)
        self.next_seq, self._failing = packets[-1].seq + 1, False
        pictures = sum(one.is_video for one in packets)
        self._in_file += pictures
        self._shown_s = now if pictures else self._shown_s
        if now - self._synced_s >= _SYNC_S:
            file.sync()
            self._synced_s = time.monotonic()

    def pause(self) -> None:
        """Begin anew with what comes, in a while; what comes meanwhile is dropped."""
        self.file, self.finished = None, False
        self.skip()
        self._failing, self.paused_until_s = True, time.monotonic() + _RETRY_S

    def skip(self, kept: int = 0) -> None:
        """Drop and count what is not written, and what was written of the open file but for `kept` pictures."""
        newest = self.ring.next_seq
        left = [one for one in self.ring.between(self.next_seq, FOREVER_NS) if one.seq < newest]
        self._skipped += max(0, self._in_file + sum(one.is_video for one in left) - kept)
        self.next_seq, self._in_file = newest, 0
