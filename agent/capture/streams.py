"""A stream's frames or sound: opens its source, keeps it open, and hands over what it gives."""

from __future__ import annotations

from agent.capture.handoff import AudioQueue, FrameBufferPool, LatestFrame
from agent.capture.reader import AudioReader, FrameReader, Sound, Timestamps
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor
from agent.config.source_uri import parse_picture, parse_sound
from agent.config.stream import CaptureConfig
from agent.types import AudioChunk, ChannelOrder, Frame, Image


class FrameStream:
    """Frames of one source, for one consumer.

    A live source, and a replay with `pace=realtime`, hands on its newest frame only; a replay with `pace=fast`
    hands on every frame. `agent.capture.supervisor.SourceSupervisor` reopens the source.
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
        self._stream, self._uri, self._config = stream, uri, config
        self._queue, self._pool = LatestFrame(keeps_all=address.lossless), FrameBufferPool()
        self._seq = self._dropped = 0
        self._taken: set[int] = set()
        self._supervisor = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=self._queue.close, on_change=on_change
        )

    def start(self) -> None:
        """Open and read the source in other threads."""
        self._supervisor.start()

    def take(self, timeout_s: float) -> Frame | None:
        """Return the next frame, or None if none came in time.

        Raises:
            SourceError: a finite source failed; every frame before that was taken.
        """
        frame = self._queue.take(timeout_s)
        if frame is not None:
            self._taken.add(frame.seq)
        return frame

    def give_back(self, frame: Frame) -> None:
        """Allow the frame's memory to be used again. Calling this twice does no harm."""
        if frame.seq in self._taken:
            self._taken.discard(frame.seq)
            self._pool.give(frame.image)

    @property
    def ended(self) -> bool:
        """True if a finite source is over and every frame was taken."""
        return self._queue.over

    @property
    def lost(self) -> bool:
        """True if the source should give frames and does not."""
        return self._supervisor.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals and state as of now."""
        return self._supervisor.stats(self._seq, self._dropped)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Safe from any thread, and to call twice."""
        self._queue.close()
        self._supervisor.stop(wait=wait)
        # A reader that hangs may hold a reference to this object; free the frames now.
        self._queue.clear()
        self._pool.close()

    def _reader(self) -> FrameReader:
        return FrameReader(
            self._uri,
            self._pool,
            self._deliver,
            self._supervisor.woken,
            config=self._config,
            name=f"read-{self._stream}",
        )

    def _deliver(self, reader: FrameReader, image: Image, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a frame on, from a reader's thread. Return False if this reader's frames are no longer wanted."""
        if reader is not self._supervisor.current:
            return False
        frame = Frame(image, self._stream, self._seq, stamp.captured_ns, stamp.captured_at, order, stamp.read_ns)
        self._seq += 1
        replaced = self._queue.put(frame)
        if replaced is not None:
            self._dropped += 1
            self._pool.give(replaced.image)
        return not self._supervisor.stopped


class AudioStream:
    """Audio of one source, for one consumer: int16, one channel, at exactly the rate that was asked for.

    A microphone, and a replay with `pace=realtime`, does not wait: if more than 5 s were not taken, the oldest
    is dropped. A replay with `pace=fast` waits, and hands on every sample.
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
        self._stream, self._uri, self._config, self._rate_hz = stream, uri, config, rate_hz
        self._queue = AudioQueue(rate_hz, keeps_all=address.lossless)
        self._delivered = self._dropped = self._end = self._end_ns = 0
        self._newest_reader: AudioReader | None = None
        self._supervisor = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=self._queue.close, on_change=on_change
        )

    def start(self) -> None:
        """Open and read the source in other threads."""
        self._supervisor.start()

    def take(self, timeout_s: float) -> AudioChunk | None:
        """Return the audio since the last call, up to 1 s, or None if none came in time.

        A replay with `pace=fast` gives chunks of about 0.1 s, the same ones in every run.

        Raises:
            SourceError: a finite source failed; all audio before that was taken.
        """
        return self._queue.take(timeout_s)

    @property
    def ended(self) -> bool:
        """True if a finite source is over and all its audio was taken."""
        return self._queue.over

    @property
    def lost(self) -> bool:
        """True if the source should give audio and does not."""
        return self._supervisor.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals, in samples, and state as of now."""
        return self._supervisor.stats(self._delivered, self._dropped)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Safe from any thread, and to call twice."""
        self._queue.close()
        self._supervisor.stop(wait=wait)
        self._queue.clear()

    def _reader(self) -> AudioReader:
        return AudioReader(
            self._uri,
            self._rate_hz,
            self._deliver,
            self._supervisor.woken,
            stall_s=self._config.stall_s,
            name=f"read-{self._stream}",
        )

    def _deliver(self, reader: AudioReader, sound: Sound) -> bool:
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
        self._dropped += lost + self._queue.put(
            AudioChunk(
                samples, self._rate_hz, self._stream, first, sound.captured_ns, sound.captured_at, sound.read_ns
            )
        )
        return not self._supervisor.stopped

    def _silence(self, sound: Sound) -> int:
        """Estimate by the clock how many samples an outage lost."""
        gone_s = (sound.captured_ns - self._end_ns) / 1e9
        return max(1, round(gone_s * self._rate_hz) - len(sound.samples))
