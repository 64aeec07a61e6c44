"""A stream's sound: reads a microphone, a camera or a file, and hands over what it gives at the model's rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol, cast

import numpy as np
from msgspec.structs import replace

from agent.capture.audio_file import Block, Resampler
from agent.capture.camera import Cameras
from agent.capture.streams import HandoffQueue, SourceStream
from agent.capture.supervisor import OnChange, SourceSupervisor, SourceThread
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, parse_sound, sound_opener
from agent.errors import SourceError
from agent.types import AudioChunk, Samples


class SoundSource(Protocol):
    """Audio, block by block. Used by one thread at a time.

    Attributes:
        live: whether it continues unread.
        paced: whether it is a recording to be replayed at its own pace.
        rate_hz: samples per second; may change between two blocks.
        description: rate and channels, for people.
    """

    live: bool
    paced: bool
    rate_hz: int
    description: str

    def read(self) -> Block | None:
        """Return the next block within a fraction of a second, or None at the end of a recording.

        Raises:
            SourceError: the source broke.
        """
        ...

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


SoundOpener = Callable[[SourceUri, float, int], SoundSource]


def open_sound(uri: str, rate_hz: int, *, stall_s: float) -> SoundSource:
    """Open a microphone or a file; of a camera on the network see `agent.capture.camera_sound`.

    Args:
        uri: see `agent.capture.source`.
        rate_hz: preferred rate; the source may give another.
        stall_s: a microphone that gives nothing for this long has failed, s.

    Raises:
        SourceError: the URI is wrong or names pictures or a camera, or the source cannot be opened.
    """
    address = parse_sound(uri)
    if address.on_network:
        raise SourceError(f"{address.masked}: expected a microphone or a file; its sound comes with its pictures")
    return cast(SoundOpener, sound_opener(address))(address, stall_s, rate_hz)


_HELD_S, _TAKEN_S = 5.0, 1.0
"""Longest live audio that is kept, and longest that one `take` returns, s."""
_CHUNKS = (8, 2)
"""Limits of a lossless queue, see `agent.capture.streams`."""


class AudioQueue(HandoffQueue[AudioChunk]):
    """Audio chunks between two threads.

    A live queue returns all audio that has come since, up to a gap and up to 1 s, and drops the oldest beyond
    5 s. A lossless queue returns chunk by chunk, and makes the producer wait while it is full.
    """

    def __init__(self, rate_hz: int, *, lossless: bool) -> None:
        super().__init__(_CHUNKS if lossless else None)
        self._held_max, self._taken_max = round(_HELD_S * rate_hz), round(_TAKEN_S * rate_hz)
        self._held = self._end = 0

    def put(self, chunk: AudioChunk) -> int:
        """Add a chunk. Return how many samples, of this chunk or of older ones, were dropped.

        The chunk itself is dropped if the queue is closed, or if it begins before the end of an earlier one.
        """
        with self._changed:
            self._wait_for_room()
            if self._closed or chunk.first < self._end:
                return len(chunk.samples)
            self._end = chunk.end
            self._items.append(chunk)
            self._held += len(chunk.samples)
            self._changed.notify()
            return 0 if self._lossless else self._drop()

    def _drop(self) -> int:
        before = self._held
        while self._held > self._held_max and len(self._items) > 1:
            self._held -= len(self._items.popleft().samples)
        return before - self._held

    def _next(self) -> AudioChunk:
        chunk = super()._next()
        if not self._lossless and self._items and self._items[0].first == chunk.end:
            chunk = self._joined(chunk)
        self._held -= len(chunk.samples)
        return chunk

    def _joined(self, chunk: AudioChunk) -> AudioChunk:
        """Join a chunk with those that follow it without a gap."""
        parts, end = [chunk], chunk.end
        while self._items and self._items[0].first == end and end - chunk.first < self._taken_max:
            parts.append(self._items.popleft())
            end = parts[-1].end
        samples = np.concatenate([part.samples for part in parts])
        return replace(parts[-1], samples=samples, first=chunk.first)


class AudioBlock(NamedTuple):
    """Audio at the wanted rate.

    Attributes:
        samples: N int16, N > 0.
        lost: samples missing right before these.
        captured_ns, captured_at, read_ns: of the last sample, see `AudioChunk`.
    """

    samples: Samples
    lost: int
    captured_ns: int
    captured_at: datetime
    read_ns: int


OnAudio = Callable[["AudioReader", AudioBlock], bool]
"""Receives each piece of audio; returns False to stop."""


class AudioReader(SourceThread[SoundSource]):
    """Reads one opening of an audio source."""

    def __init__(
        self,
        open_source: Callable[[], SoundSource],
        uri: str,
        rate_hz: int,
        deliver: OnAudio,
        woken: threading.Event,
        name: str,
    ) -> None:
        super().__init__(uri, woken, name)
        self._open_source, self._rate_hz, self._deliver = open_source, rate_hz, deliver
        self._lost = self._went = 0

    def _open(self) -> SoundSource:
        return self._open_source()

    def _read(self, source: SoundSource) -> None:
        self._began_ns, self._began_at = time.monotonic_ns(), datetime.now(UTC)
        self._from_hz, self._resampler = source.rate_hz, Resampler(source.rate_hz, self._rate_hz)
        while not self._abandoned.is_set():
            block = source.read()
            if block is None:
                rest = self._resampler.rest()
                self._deliver_all(source, Block(rest))
                return
            if block.lost or source.rate_hz != self._from_hz:
                self._restart(source, block.lost)
            if len(block.samples) and not self._deliver_all(source, self._resampled(block)):
                return

    def _resampled(self, block: Block) -> Block:
        """Resample a block, and move its timestamps by the resampler's delay."""
        samples = self._resampler.change(block.samples)
        behind_ns = round(self._resampler.behind_s * 1e9)
        return Block(samples, 0, block.captured_ns - behind_ns, block.read_ns)

    def _restart(self, source: SoundSource, lost: int) -> None:
        """Reset the resampler after a gap; what it held back is lost as well."""
        if self._went:
            lost_s = lost / self._from_hz + self._resampler.behind_s
            self._lost += max(1, round(lost_s * self._rate_hz))
        self._from_hz, self._resampler = source.rate_hz, Resampler(source.rate_hz, self._rate_hz)

    def _deliver_all(self, source: SoundSource, block: Block) -> bool:
        """Deliver a block when it is due, unless it is empty. Return False to stop."""
        if not len(block.samples):
            return True
        self._went += len(block.samples)
        self.description = source.description
        stamped = self._live(block) if source.live else self._replayed(block, paced=source.paced)
        self._asked_ns, self._lost = 0, 0
        wanted = self._deliver(self, stamped)
        self._count()
        self._asked_ns = time.monotonic_ns()
        return wanted

    def _live(self, block: Block) -> AudioBlock:
        age_s = max(0, time.monotonic_ns() - block.captured_ns) / 1e9
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        return AudioBlock(block.samples, self._lost, block.captured_ns, at, block.read_ns)

    def _replayed(self, block: Block, *, paced: bool) -> AudioBlock:
        """Stamp a replayed block with recorded time; with `pace=realtime`, wait until that time."""
        recorded_s = self._went / self._rate_hz
        captured_ns = self._began_ns + round(recorded_s * 1e9)
        if paced:
            self._asked_ns = 0
            self._abandoned.wait(max(0.0, (captured_ns - time.monotonic_ns()) / 1e9))
        at = self._began_at + timedelta(seconds=recorded_s)
        return AudioBlock(block.samples, 0, captured_ns, at, time.monotonic_ns())


class AudioStream(SourceStream[AudioChunk]):
    """Audio of a microphone, a camera or a file: int16, one channel, at exactly the rate that was asked for.

    A live source, and a replay with `pace=realtime`, does not wait: if more than 5 s were not taken, the oldest
    is dropped. A replay with `pace=fast` waits, and hands on every sample in chunks of about 0.1 s, the same ones
    in every run. Other sources give the audio since the last `take`, up to 1 s.
    """

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
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: name of the stream, for chunks and threads.
            uri: see `agent.capture.source`.
            config: of the stream; `max_fps` is not used.
            rate_hz: samples per second to hand on.
            on_change: see `OnChange`.
            cameras: that other streams use; None: a camera is this stream's alone.

        Raises:
            SourceError: the URI is wrong, or names a source without sound.
        """
        address = parse_sound(uri)
        self._chunks = AudioQueue(rate_hz, lossless=address.lossless)
        super().__init__(self._chunks)
        self._stream, self._rate_hz, self._config, self._uri = stream, rate_hz, config, uri
        self._cameras = (cameras or Cameras()) if address.on_network else None
        self._end = self._end_ns = 0
        self._newest_reader: AudioReader | None = None
        self._source = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=self._queue.close, on_change=on_change
        )

    @property
    def _supervisor(self) -> SourceSupervisor:
        return self._source

    def start(self) -> None:
        self._source.start()

    def stop(self, *, wait: bool = True) -> None:
        self._queue.close()
        self._source.stop(wait=wait)
        # A reader that hangs may hold a reference to this object; free the memory now.
        self._queue.clear()

    def _reader(self) -> AudioReader:
        woken, name = self._supervisor.woken, f"read-{self._stream}"
        return AudioReader(self._open, self._uri, self._rate_hz, self._deliver, woken, name)

    def _open(self) -> SoundSource:
        if self._cameras is None:
            return open_sound(self._uri, self._rate_hz, stall_s=self._config.stall_s)
        from agent.capture.camera_sound import CameraSound

        return CameraSound(self._stream, self._uri, self._config, self._rate_hz, self._cameras)

    def _deliver(self, reader: AudioReader, sound: AudioBlock) -> bool:
        """Hand audio on, from a reader's thread. Return False if this reader's audio is no longer wanted."""
        if reader is not self._supervisor.current:
            return False
        lost = sound.lost
        if reader is not self._newest_reader and self._newest_reader is not None:
            lost = max(lost, self._silence(sound))
        self._newest_reader, self._end_ns = reader, sound.captured_ns
        first = self._end + lost
        self._end = first + len(sound.samples)
        self._delivered += len(sound.samples)
        stamps = sound.captured_ns, sound.captured_at, sound.read_ns
        chunk = AudioChunk(sound.samples, self._rate_hz, self._stream, first, *stamps)
        self._dropped += sound.lost + self._chunks.put(chunk)
        return not self._supervisor.stopped

    def _silence(self, sound: AudioBlock) -> int:
        """Estimate by the clock how many samples an outage lost."""
        gone_s = (sound.captured_ns - self._end_ns) / 1e9
        return max(1, round(gone_s * self._rate_hz) - len(sound.samples))
