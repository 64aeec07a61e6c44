"""The sound of a camera on the network: one more consumer of the connection that its pictures come through."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agent.capture.audio_file import Block
from agent.capture.camera import Camera, Cameras, FrameConsumer
from agent.capture.sound import AudioBlock, AudioReader, AudioStream, SoundSource, SoundStream
from agent.capture.source import DecodeMode, Demand
from agent.capture.supervisor import CaptureStats, OnChange, SourceState, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse, parse_sound
from agent.errors import SoundAloneError, SourceError
from agent.types import MediaPacket, MediaTrack, Samples

if TYPE_CHECKING:
    from agent.capture.sound_decoder import SoundDecoder


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
    """A live `agent.capture.sound.SoundSource`: one thread puts packets, another one reads blocks.

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
        from agent.capture.sound_decoder import SoundDecoder

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


_STOP_S = 0.3


class PacketAudioReader(AudioReader):
    """Decodes, resamples and stamps the sound of a camera, over all of its connections."""

    def __init__(
        self,
        uri: str,
        rate_hz: int,
        sound: PacketSound,
        deliver: Callable[[AudioReader, AudioBlock], bool],
        on_end: Callable[[SourceError | None], None],
        name: str,
    ) -> None:
        super().__init__(uri, rate_hz, deliver, threading.Event(), stall_s=0.0, name=name)
        self._sound, self._on_end = sound, on_end

    def _open(self) -> SoundSource:
        while not self._abandoned.is_set() and not self._sound.wait_for_rate():
            pass
        self._sound.rate_hz = self._sound.rate_hz or self._rate_hz
        return self._sound

    def _run(self) -> None:
        super()._run()
        self._on_end(self.error)


class CameraSoundStream(SoundStream, FrameConsumer):
    """Sound of a camera on the network, which other streams may share, see `agent.capture.camera`.

    No picture is decoded for it. If more than 5 s were not taken, the oldest sound is dropped. Its times are on
    the clock of the pictures. A camera without sound, or whose sound stalls, is told as `lost`, although the
    pictures of other streams go on; a camera that only this stream uses is opened again then. Of a source that
    has sound alone, and that another stream wants pictures of, it opens a connection of its own.
    """

    wants_sound, demand = True, Demand(DecodeMode.NOTHING, most=DecodeMode.KEYFRAMES)

    def __init__(
        self,
        stream: str,
        uri: str,
        config: CaptureConfig,
        rate_hz: int,
        *,
        on_change: OnChange,
        cameras: Cameras | None = None,
    ) -> None:
        """Prepare the stream; nothing is opened yet. The arguments are those of `AudioStream`.

        Args:
            stream: name of the stream, for chunks and threads.
            uri: of a camera on the network.
            config: of the stream; `max_fps` is not used.
            rate_hz: samples per second to hand on.
            on_change: see `OnChange`.
            cameras: that other streams use; None: the camera is this stream's alone.

        Raises:
            SourceError: the URI is wrong, or names a source without sound.
        """
        super().__init__(stream, rate_hz, lossless=False)
        self._uri, self._config, self._on_change = uri, config, on_change
        self._cameras = cameras or Cameras()
        self._camera: Camera | None = None
        self._stopped = False
        self._shown = parse_sound(uri).masked
        self._lock, self._state = threading.Lock(), SourceState()
        self._alive_s, self._heard_s, self._lost_ns = 0.0, float("-inf"), 0
        self._sound = PacketSound(on_idle=self._watch, on_trouble=self._refuse)
        self._reader = PacketAudioReader(
            uri, rate_hz, self._sound, self._deliver, self._end_with, f"hear-{stream}"
        )

    @property
    def _supervisor(self) -> SourceSupervisor | None:
        return self._camera.supervisor if self._camera is not None else None

    @property
    def lost(self) -> bool:
        return self._state.state == "lost"

    @property
    def stats(self) -> CaptureStats:
        """Totals in samples, and state of the sound as of now."""
        reopened = supervisor.stats(0, 0).reopened if (supervisor := self._supervisor) is not None else 0
        with self._lock:
            now = self._state.state, self._state.detail
        return CaptureStats(self._delivered, self._dropped, reopened, *now)

    def start(self) -> None:
        self._alive_s = time.monotonic()
        self._camera = self._cameras.attach(self._stream, self._uri, self._config, self)
        self._reader.start()

    def stop(self, *, wait: bool = True) -> None:
        self._queue.close()
        self._reader.abandon()
        with self._lock:
            self._stopped, camera = True, self._camera
        if camera is not None:
            self._cameras.detach(camera, self, wait=wait)
        if wait:
            self._reader.join(_STOP_S)
        self._queue.clear()

    def take_packet(self, packet: MediaPacket) -> None:
        self._sound.put(packet)

    def change(self, state: str, reason: str) -> None:
        """Tell of an outage of the camera; that it is over is told with the first sound."""
        if state == "lost":
            self._lost_ns = time.monotonic_ns()
        if state == "lost" and not self._is_refused_pictures:
            is_silent = time.monotonic() - self._heard_s > 0.5 * self._config.stall_s
            self._mark_lost(reason.replace(": no picture for ", ": no sound for ") if is_silent else reason)

    def finish(self, error: SourceError | None) -> None:
        self._queue.close(error)

    def _deliver(self, reader: AudioReader, sound: AudioBlock) -> bool:
        """Hand sound on, from the reader's thread."""
        now_s = self._alive_s = self._heard_s = time.monotonic()
        news: str | None = None
        if sound.read_ns > self._lost_ns:  # not what was left when the camera was lost
            with self._lock:
                news = self._state.mark_running(now_s, self._sound.description)
        if news:
            self._on_change("running", news)
        self._hand_on(sound, sound.lost)
        return True

    def _watch(self) -> None:
        """Tell if the camera runs without sound. Called by the reader's thread while nothing comes."""
        if self._is_refused_pictures:
            self._leave()
        now_s, supervisor = time.monotonic(), self._supervisor
        opening = supervisor.current if supervisor is not None else None
        is_away = supervisor is None or opening is None or supervisor.stats(0, 0).state != "running"
        if opening is None or (is_away and self._state.state != "running"):
            self._alive_s = now_s  # the camera tells its own outages
        elif opening.has_sound is False:
            self._refuse("expected sound; it has none, only pictures: turn its sound on")
        elif now_s - self._alive_s > self._config.stall_s:
            self._mark_lost(f"{self._shown}: no sound for {self._config.stall_s:g} s")

    @property
    def _is_refused_pictures(self) -> bool:
        """True if the source has sound alone, and another stream has asked for pictures."""
        opening = supervisor.current if (supervisor := self._supervisor) is not None else None
        return opening is not None and isinstance(opening.error, SoundAloneError)

    def _leave(self) -> None:
        """Open the source for this stream alone."""
        with self._lock:
            if self._stopped or (shared := self._camera) is None:
                return
            self._camera = self._cameras.attach(self._stream, self._uri, self._config, self, alone=True)
        self._cameras.detach(shared, self, wait=False)

    def _refuse(self, why: str) -> None:
        self._mark_lost(f"{self._shown}: {why}")

    def _mark_lost(self, reason: str) -> None:
        with self._lock:
            # A reason that only says that nothing came is told once more with the first exact one.
            is_news = self._state.mark_lost(time.monotonic(), reason, explains=": no sound for " not in reason)
        if is_news:
            self._on_change("lost", reason)

    def _end_with(self, error: SourceError | None) -> None:
        """Fail if the reader has ended by itself: what it needs is missing."""
        if error is not None:
            self._queue.close(error)


def open_sound_stream(
    stream: str,
    uri: str,
    config: CaptureConfig,
    rate_hz: int,
    *,
    on_change: OnChange,
    cameras: Cameras | None = None,
) -> SoundStream:
    """Return the sound of any source, not yet started. The arguments are those of `CameraSoundStream`.

    Raises:
        SourceError: the URI is wrong, or names a source without sound.
    """
    if parse(uri).on_network:
        return CameraSoundStream(stream, uri, config, rate_hz, on_change=on_change, cameras=cameras)
    return AudioStream(stream, uri, config, rate_hz, on_change=on_change)
