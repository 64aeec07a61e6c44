"""The sound of a camera on the network: one more consumer of the connection that its pictures come through."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from agent.capture.audio_file import Block
from agent.capture.camera import Cameras, FrameConsumer
from agent.capture.sound_decoder import SoundDecoder
from agent.capture.source import DecodeMode, Demand
from agent.config import CaptureConfig
from agent.config.source_uri import parse_sound
from agent.errors import SourceError
from agent.types import MediaPacket, MediaTrack, Samples

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


class CameraSound(FrameConsumer):
    """A live `agent.capture.sound.SoundSource`: the camera's thread puts packets, another one reads blocks.

    No picture is decoded for it. Its times are on the clock of the pictures. It ends when the camera is lost, or
    gives no sound although the pictures of other streams go on.

    Attributes:
        rate_hz: samples per second of the newest block.
        description: rate, channels and codec, for people.
    """

    live, paced = True, False
    wants_sound, demand = True, Demand(DecodeMode.NOTHING, most=DecodeMode.KEYFRAMES)

    def __init__(self, stream: str, uri: str, config: CaptureConfig, rate_hz: int, cameras: Cameras) -> None:
        """Listen to a camera.

        Args:
            stream: its name, for threads.
            uri: of a camera on the network.
            config: of the stream; `max_fps` is not used.
            rate_hz: samples per second until the first block.
            cameras: that streams share.

        Raises:
            SourceError: the URI is wrong, or names a source without sound.
        """
        self._shown, self._stall_s, self._cameras = parse_sound(uri).masked, config.stall_s, cameras
        self._lock, self._came = threading.Lock(), threading.Event()
        self._packets: deque[MediaPacket] = deque(maxlen=_PACKETS)
        self._track: MediaTrack | None = None
        self._decoder: SoundDecoder | None = None
        self._next: Piece | None = None
        self._due_s: float | None = None
        self._alive_s, self._end_ns, self._lost = time.monotonic(), 0, ""
        self.rate_hz, self.description = rate_hz, ""
        self._camera = cameras.attach(stream, uri, config, self)

    def take_packet(self, packet: MediaPacket) -> None:
        """Add a packet of sound. Never waits."""
        with self._lock:
            self._packets.append(packet)
            waits_ns = packet.captured_ns - self._packets[0].captured_ns
        if waits_ns >= _GATHERED_NS:
            self._came.set()

    def change(self, state: str, reason: str) -> None:
        if state == "lost":
            is_silent = time.monotonic() - self._alive_s > 0.5 * self._stall_s
            self._lost = reason.replace(": no picture for ", ": no sound for ") if is_silent else reason
            self._came.set()

    def read(self) -> Block:
        """Return what has come without a gap; nothing if nothing has come for a moment.

        Raises:
            SourceError: the camera is lost, or gives no sound.
        """
        first, self._next = self._next or self._wait(), None
        if first is None:
            return self._check_silence()
        lost, self._alive_s = round(first.lost_s * self.rate_hz), time.monotonic()
        self.rate_hz = first.rate_hz
        parts, last = [first.samples], first
        while (piece := self._piece()) is not None:
            if piece.lost_s or piece.rate_hz != first.rate_hz:
                self._next = piece
                break
            parts.append(piece.samples)
            last = piece
        return Block(np.concatenate(parts), lost, last.end_ns, last.read_ns)

    def close(self) -> None:
        """Leave the camera."""
        self._cameras.detach(self._camera, self, wait=True)

    def _check_silence(self) -> Block:
        opening = self._camera.supervisor.current
        if self._lost:
            raise SourceError(self._lost)
        if opening is not None and opening.has_sound is False:
            raise SourceError(f"{self._shown}: expected sound; it has none, only pictures: turn its sound on")
        if self._camera.supervisor.stats(0, 0).state != "running":
            self._alive_s = time.monotonic()  # the camera itself tells its outages, with their reasons
        elif time.monotonic() - self._alive_s > self._stall_s:
            raise SourceError(f"{self._shown}: no sound for {self._stall_s:g} s")
        return Block(np.empty(0, np.int16))

    def _wait(self) -> Piece | None:
        self._came.wait(_MOMENT_S)
        self._came.clear()
        return self._piece()

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
        if (decoder := self._decoder) is None or packet.track is not self._track:
            decoder = self._open(packet.track)
        samples = decoder.decode(packet)
        if not len(samples) or decoder.rate_hz <= 0:
            return None
        self.description = decoder.description
        base = packet.track.time_base
        lost_s = self._lost_s(packet, None if packet.pts is None else packet.pts * base[0] / base[1])
        length_s = len(samples) / decoder.rate_hz
        self._due_s = (self._due_s or 0.0) + length_s
        end_ns = packet.began_ns + round(length_s * _S)
        self._end_ns = min(max(end_ns, self._end_ns), time.monotonic_ns())
        return Piece(samples, decoder.rate_hz, lost_s, self._end_ns, packet.captured_ns)

    def _open(self, track: MediaTrack) -> SoundDecoder:
        try:
            self._track, self._decoder, self._due_s = track, SoundDecoder(track), None
        except SourceError as error:
            raise SourceError(f"{self._shown}: {error}") from None
        return self._decoder

    def _lost_s(self, packet: MediaPacket, pts_s: float | None) -> float:
        """Return the length of the gap before a packet, s; 0: there is none, or nothing came before.

        `pts_s`: its time stamp, s; None: it has none. Afterwards `_due_s` is the time of its first sample.
        """
        due_s = self._due_s
        if due_s is not None:
            pts_s = due_s if pts_s is None else pts_s
            off_s = pts_s - due_s
            if -_GAP_S < off_s < _GAP_S:
                self._due_s = due_s + _YIELDING * off_s
                return 0.0
            if -_BACK_S < off_s < _JUMP_S:
                self._due_s = pts_s
                return max(0.0, off_s)
        self._due_s = pts_s
        return max(0.001, (packet.began_ns - self._end_ns) / _S) if self._end_ns else 0.0
