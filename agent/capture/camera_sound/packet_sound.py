"""Sound as blocks of samples, from the packets that a camera's thread hands over."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.capture.source import Block
from agent.errors import SourceError
from agent.types import MediaPacket, MediaTrack, Samples

if TYPE_CHECKING:
    from agent.capture.camera_sound.decoder import SoundDecoder

_S = 1_000_000_000
_MOMENT_S = 0.2
_GATHERED_NS = 100_000_000
"""Sound is decoded so much at a time, ns: waking a thread for each packet costs more than decoding it."""
_PACKETS = 1000
"""Most packets that wait: 5 s of the shortest. The oldest are dropped."""
_GAP_S, _BACK_S, _JUMP_S = 0.06, 0.5, 5.0
"""Time stamps so far ahead of the samples, or so far behind them, mean a gap, s; beyond the last they count
another time, and the clock tells how long the gap is."""
_YIELDING = 0.05
"""Share of a smaller difference that is forgotten at each packet: a camera's sampling rate is not exact."""
_NOTHING = np.empty(0, np.int16)


class Piece(NamedTuple):
    """The samples of one packet.

    Attributes:
        samples: N int16, N > 0.
        rate_hz: samples per second.
        lost_s: length of the gap before them, s.
        end_ns, read_ns: CLOCK_MONOTONIC when the last sample was captured, and when the packet was read, ns.
    """

    samples: Samples
    rate_hz: int
    lost_s: float
    end_ns: int
    read_ns: int


class PacketSound:
    """A live `agent.capture.source.SoundSource`: one thread puts packets, another one reads blocks.

    Attributes:
        rate_hz: samples per second of the newest block.
        description: rate, channels and codec, for people.
    """

    live, paced = True, False

    def __init__(self, *, on_idle: Callable[[], None], on_trouble: Callable[[str], None]) -> None:
        """Prepare it for packets.

        Args:
            on_idle: called by the reading thread several times a second while nothing comes.
            on_trouble: called by the reading thread with the reason why a track cannot be decoded, once for each.
        """
        self._on_idle, self._on_trouble = on_idle, on_trouble
        self._lock, self._came = threading.Lock(), threading.Event()
        self._packets: deque[MediaPacket] = deque(maxlen=_PACKETS)
        self._track: MediaTrack | None = None
        self._decoder: SoundDecoder | None = None
        self._next: Piece | None = None
        self._due_s, self._end_ns = 0.0, 0
        self.rate_hz, self.description = 0, ""

    def put(self, packet: MediaPacket) -> None:
        """Add a packet of sound. Never waits."""
        with self._lock:
            self._packets.append(packet)
            waits_ns = packet.captured_ns - self._packets[0].captured_ns
        if waits_ns >= _GATHERED_NS:
            self._came.set()

    def wait_for_rate(self) -> bool:
        """Wait a moment for the first sound. Return True if its rate is known."""
        if self._next is None:
            self._next = self._wait()
        if self._next is not None:
            self._announce(self._next)
        return self._next is not None

    def read(self) -> Block:
        """Return what has come without a gap; nothing if nothing has come for a moment."""
        first, self._next = self._next or self._wait(), None
        if first is None:
            return Block(_NOTHING)
        lost = round(first.lost_s * (self.rate_hz or first.rate_hz))
        self._announce(first)
        parts, last = [first.samples], first
        while (piece := self._piece()) is not None:
            if piece.lost_s or piece.rate_hz != first.rate_hz:
                self._next = piece
                break
            parts.append(piece.samples)
            last = piece
        return Block(np.concatenate(parts), lost, last.end_ns, last.read_ns)

    def close(self) -> None:
        """Forget the packets that wait."""
        with self._lock:
            self._packets.clear()

    def _announce(self, piece: Piece) -> None:
        self.rate_hz = piece.rate_hz
        if self._decoder is not None:
            self.description = self._decoder.description

    def _wait(self) -> Piece | None:
        self._came.wait(_MOMENT_S)
        self._came.clear()
        if (piece := self._piece()) is None:
            self._on_idle()
        return piece

    def _piece(self) -> Piece | None:
        """Return the next samples; None: no packet waits."""
        while True:
            with self._lock:
                packet = self._packets.popleft() if self._packets else None
            if packet is None:
                return None
            if (piece := self._decode(packet)) is not None:
                return piece

    def _decode(self, packet: MediaPacket) -> Piece | None:
        if is_new := packet.track is not self._track:
            self._open(packet.track)
        if (decoder := self._decoder) is None:
            return None
        samples = decoder.decode(packet)
        if not len(samples) or decoder.rate_hz <= 0:
            return None
        lost_s = self._lost_s(packet, is_new=is_new or self._due_s == 0.0)
        length_s = len(samples) / decoder.rate_hz
        self._due_s += length_s
        end_ns = packet.began_ns + round(length_s * _S)
        self._end_ns = min(max(end_ns, self._end_ns), time.monotonic_ns())
        return Piece(samples, decoder.rate_hz, lost_s, self._end_ns, packet.captured_ns)

    def _open(self, track: MediaTrack) -> None:
        from agent.capture.camera_sound.decoder import SoundDecoder

        self._track, self._decoder, self._due_s = track, None, 0.0
        try:
            self._decoder = SoundDecoder(track)
        except SourceError as error:
            self._on_trouble(str(error))

    def _lost_s(self, packet: MediaPacket, *, is_new: bool) -> float:
        """Return the length of the gap before a packet, s; 0: there is none, or nothing came before."""
        base = packet.track.time_base
        pts_s = self._due_s if packet.pts is None else packet.pts * base[0] / base[1]
        off_s = 0.0 if is_new else pts_s - self._due_s
        if not is_new and -_GAP_S < off_s < _GAP_S:
            self._due_s += _YIELDING * off_s
            return 0.0
        self._due_s = pts_s
        if not is_new and -_BACK_S < off_s <= 0.0:
            return 0.0
        if not is_new and 0.0 < off_s < _JUMP_S:
            return off_s
        gone_s = (packet.began_ns - self._end_ns) / _S if self._end_ns else 0.0
        return max(0.001, gone_s) if self._end_ns else 0.0
