"""The grabber of one stream: keeps its source open, and hands its frames to whoever takes them."""

from __future__ import annotations

from agent.capture.handoff import AudioQueue, FrameBufferPool, LatestFrame
from agent.capture.reader import AudioReader, FrameReader, Sound, Timestamps
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor
from agent.config.source_uri import parse_picture, parse_sound
from agent.config.stream import CaptureConfig
from agent.types import AudioChunk, ChannelOrder, Frame, Image


class FrameStream:
    """Frames of one source, for one consumer.

    A live source, and a replay at realtime, hands on its newest frame only; a replay at `pace=fast` every one.
    How a source is kept open, see `agent.capture.supervisor.SourceSupervisor`.
    """

    def __init__(self, stream: str, uri: str, config: CaptureConfig, *, on_change: OnChange) -> None:
        """Prepare; nothing is opened yet.

        Args:
            stream: name of the stream, for frames and threads.
            uri: see `agent.capture.source`.
            config: of the stream.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or one of sound.
        """
        address = parse_picture(uri)
        self._stream, self._uri, self._config = stream, uri, config
        self._slot, self._pool = LatestFrame(keeps_all=address.lossless), FrameBufferPool()
        self._seq = self._dropped = 0
        self._taken: set[int] = set()
        self._keeper = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=self._slot.close, on_change=on_change
        )

    def start(self) -> None:
        """Open the source and read it, in threads of their own."""
        self._keeper.start()

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None when none came in time.

        Raises:
            SourceError: a finite source failed; every frame before that was taken.
        """
        frame = self._slot.take(timeout_s)
        if frame is not None:
            self._taken.add(frame.seq)
        return frame

    def give_back(self, frame: Frame) -> None:
        """The frame's memory may be used again; giving it twice does no harm."""
        if frame.seq in self._taken:
            self._taken.discard(frame.seq)
            self._pool.give(frame.image)

    @property
    def ended(self) -> bool:
        """Whether a finite source is over and every frame was taken."""
        return self._slot.over

    @property
    def lost(self) -> bool:
        """Whether the source gives no frames now, although it should."""
        return self._keeper.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals and state as of now."""
        return self._keeper.stats(self._seq, self._dropped)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Any thread may call this, and more than once."""
        self._slot.close()
        self._keeper.stop(wait=wait)
        # What has read may hang for long, and hold this: its pictures must not wait for that.
        self._slot.clear()
        self._pool.close()

    def _reader(self) -> FrameReader:
        return FrameReader(
            self._uri,
            self._pool,
            self._deliver,
            self._keeper.woken,
            config=self._config,
            name=f"read-{self._stream}",
        )

    def _deliver(self, reader: FrameReader, image: Image, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a picture on, from a reader's thread; False when this reader is not wanted any more."""
        if reader is not self._keeper.current:
            return False
        frame = Frame(image, self._stream, self._seq, stamp.captured_ns, stamp.captured_at, order, stamp.read_ns)
        self._seq += 1
        replaced = self._slot.put(frame)
        if replaced is not None:
            self._dropped += 1
            self._pool.give(replaced.image)
        return not self._keeper.stopped


class AudioStream:
    """Sound of one source, for one consumer: int16, one channel, at exactly the rate that was asked for.

    A microphone, and a replay at realtime, goes on by itself: of more than 5 s that nobody took the oldest is
    dropped. A replay at `pace=fast` waits, and hands on every sample. How a source is kept open, see
    `agent.capture.supervisor.SourceSupervisor`.
    """

    def __init__(
        self, stream: str, uri: str, config: CaptureConfig, rate_hz: int, *, on_change: OnChange
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            stream: name of the stream, for chunks and threads.
            uri: see `agent.capture.source`.
            config: of the stream; `max_fps` is of no meaning here.
            rate_hz: samples per second of what is handed on.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or one of pictures.
        """
        address = parse_sound(uri)
        self._stream, self._uri, self._config, self._rate_hz = stream, uri, config, rate_hz
        self._belt = AudioQueue(rate_hz, keeps_all=address.lossless)
        self._handed_on = self._dropped = self._end = self._end_ns = 0
        self._from: AudioReader | None = None
        self._keeper = SourceSupervisor(
            stream, address, config, open_next=self._reader, finish=self._belt.close, on_change=on_change
        )

    def start(self) -> None:
        """Open the source and read it, in threads of their own."""
        self._keeper.start()

    def take(self, timeout_s: float) -> AudioChunk | None:
        """What has come since the last time, 1 s at most; None when nothing came in time.

        Of a replay at `pace=fast` it is about 0.1 s, and the same pieces at every run.

        Raises:
            SourceError: a finite source failed; all sound before that was taken.
        """
        return self._belt.take(timeout_s)

    @property
    def ended(self) -> bool:
        """Whether a finite source is over and all its sound was taken."""
        return self._belt.over

    @property
    def lost(self) -> bool:
        """Whether the source gives no sound now, although it should."""
        return self._keeper.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals, in samples, and state as of now."""
        return self._keeper.stats(self._handed_on, self._dropped)

    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Any thread may call this, and more than once."""
        self._belt.close()
        self._keeper.stop(wait=wait)
        self._belt.clear()

    def _reader(self) -> AudioReader:
        return AudioReader(
            self._uri,
            self._rate_hz,
            self._deliver,
            self._keeper.woken,
            stall_s=self._config.stall_s,
            name=f"read-{self._stream}",
        )

    def _deliver(self, reader: AudioReader, sound: Sound) -> bool:
        """Hand sound on, from a reader's thread; False when this reader is not wanted any more."""
        if reader is not self._keeper.current:
            return False
        samples, lost = sound.samples, sound.lost
        first = self._end + lost
        if reader is not self._from and self._from is not None:
            first = max(first, self._end + self._silence(sound))
        self._from = reader
        self._end, self._end_ns = first + len(samples), sound.captured_ns
        self._handed_on += len(samples)
        self._dropped += lost + self._belt.put(
            AudioChunk(
                samples, self._rate_hz, self._stream, first, sound.captured_ns, sound.captured_at, sound.read_ns
            )
        )
        return not self._keeper.stopped

    def _silence(self, sound: Sound) -> int:
        """Samples that an outage took, by the clock."""
        gone_s = (sound.captured_ns - self._end_ns) / 1e9
        return max(1, round(gone_s * self._rate_hz) - len(sound.samples))
