"""A stream's frames or sound: opens its source, keeps it open, and hands over what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic

from agent.capture.handoff import AudioQueue, FrameBufferPool, HandoffQueue, LatestFrame, T
from agent.capture.reader import AudioBlock, AudioReader, FrameReader, SourceThread, Timestamps
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, parse_picture, parse_sound
from agent.types import AudioChunk, ChannelOrder, Frame, Image


class SourceStream(ABC, Generic[T]):
    """Frames or audio chunks of one source, for one consumer.

    `agent.capture.supervisor.SourceSupervisor` reopens the source.
    """

    def __init__(
        self, stream: str, address: SourceUri, config: CaptureConfig, queue: HandoffQueue[T], on_change: OnChange
    ) -> None:
        self._stream, self._config, self._queue = stream, config, queue
        self._delivered = self._dropped = 0
        self._supervisor = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=queue.close, on_change=on_change
        )

    @abstractmethod
    def _reader(self) -> SourceThread[Any]:
        """Return a reader of the source that has not been started."""

    def start(self) -> None:
        """Open and read the source in other threads."""
        self._supervisor.start()

    def take(self, timeout_s: float) -> T | None:
        """Return the next item, or None if none came in time.

        Raises:
            SourceError: a finite source failed; everything before that was taken.
        """
        return self._queue.take(timeout_s)

    @property
    def ended(self) -> bool:
        """True if a finite source is over and everything was taken."""
        return self._queue.drained

    @property
    def lost(self) -> bool:
        """True if the source should give something and does not."""
        return self._supervisor.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals, in frames or samples, and state as of now."""
        return self._supervisor.stats(self._delivered, self._dropped)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Safe from any thread, and to call twice."""
        self._queue.close()
        self._supervisor.stop(wait=wait)
        # A reader that hangs may hold a reference to this object; free the memory now.
        self._queue.clear()


class FrameStream(SourceStream[Frame]):
    """Frames of one source.

    A live source, and a replay with `pace=realtime`, hands on its newest frame only; a replay with `pace=fast`
    hands on every frame.
    """

    def __init__(self, stream: str, uri: str, config: CaptureConfig, *, on_change: OnChange) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: name of the stream, for frames and threads.
            uri: see `agent.capture.source`.
            config: of the stream.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
        """
        address = parse_picture(uri)
        self._uri, self._pool = uri, FrameBufferPool()
        self._frames = LatestFrame(lossless=address.lossless)
        self._taken: set[int] = set()
        super().__init__(stream, address, config, self._frames, on_change)

    def take(self, timeout_s: float) -> Frame | None:
        frame = super().take(timeout_s)
        if frame is not None:
            self._taken.add(frame.seq)
        return frame

    def give_back(self, frame: Frame) -> None:
        """Allow the frame's memory to be used again. Calling this twice does no harm."""
        if frame.seq in self._taken:
            self._taken.discard(frame.seq)
            self._pool.give(frame.image)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source and free the frames; see `SourceStream.stop`."""
        super().stop(wait=wait)
        self._pool.close()

    def _reader(self) -> FrameReader:
        woken, name = self._supervisor.woken, f"read-{self._stream}"
        return FrameReader(self._uri, self._pool, self._deliver, woken, config=self._config, name=name)

    def _deliver(self, reader: FrameReader, image: Image, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a frame on, from a reader's thread. Return False if this reader's frames are no longer wanted."""
        if reader is not self._supervisor.current:
            return False
        seq, self._delivered = self._delivered, self._delivered + 1
        replaced = self._frames.put(
            Frame(image, self._stream, seq, stamp.captured_ns, stamp.captured_at, order, stamp.read_ns)
        )
        if replaced is not None:
            self._dropped += 1
            self._pool.give(replaced.image)
        return not self._supervisor.stopped


class AudioStream(SourceStream[AudioChunk]):
    """Audio of one source: int16, one channel, at exactly the rate that was asked for.

    A microphone, and a replay with `pace=realtime`, does not wait: if more than 5 s were not taken, the oldest
    is dropped. A replay with `pace=fast` waits, and hands on every sample in chunks of about 0.1 s, the same ones
    in every run. Other sources give the audio since the last `take`, up to 1 s.
    """

    def __init__(
        self, stream: str, uri: str, config: CaptureConfig, rate_hz: int, *, on_change: OnChange
    ) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: name of the stream, for chunks and threads.
            uri: see `agent.capture.source`.
            config: of the stream; `max_fps` is not used.
            rate_hz: samples per second to hand on.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or names a source of pictures.
        """
        address = parse_sound(uri)
        self._uri, self._rate_hz = uri, rate_hz
        self._chunks = AudioQueue(rate_hz, lossless=address.lossless)
        self._end = self._end_ns = 0
        self._newest_reader: AudioReader | None = None
        super().__init__(stream, address, config, self._chunks, on_change)

    def _reader(self) -> AudioReader:
        woken, name = self._supervisor.woken, f"read-{self._stream}"
        stall_s = self._config.stall_s
        return AudioReader(self._uri, self._rate_hz, self._deliver, woken, stall_s=stall_s, name=name)

    def _deliver(self, reader: AudioReader, sound: AudioBlock) -> bool:
        """Hand audio on, from a reader's thread. Return False if this reader's audio is no longer wanted."""
        if reader is not self._supervisor.current:
            return False
        samples, lost = sound.samples, sound.lost
        first = self._end + lost
        if reader is not self._newest_reader and self._newest_reader is not None:
            first = max(first, self._end + self._silence(sound))
        self._newest_reader = reader
        self._end, self._end_ns = first + len(samples), sound.captured_ns
        self._delivered += len(samples)
        stamps = sound.captured_ns, sound.captured_at, sound.read_ns
        self._dropped += lost + self._chunks.put(AudioChunk(samples, self._rate_hz, self._stream, first, *stamps))
        return not self._supervisor.stopped

    def _silence(self, sound: AudioBlock) -> int:
        """Estimate by the clock how many samples an outage lost."""
        gone_s = (sound.captured_ns - self._end_ns) / 1e9
        return max(1, round(gone_s * self._rate_hz) - len(sound.samples))
