"""A stream's frames or sound: opens its source, keeps it open, and hands over what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Generic

from msgspec.structs import replace

from agent.capture.camera import Camera, Cameras, Picture
from agent.capture.decode_policy import Demand
from agent.capture.handoff import AudioQueue, HandoffQueue, LatestFrame, T
from agent.capture.privacy import NO_PRIVACY, MaskPainter, Privacy, blur
from agent.capture.reader import AudioBlock, AudioReader, FrameRateLimiter, SourceThread, Timestamps
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture, parse_sound
from agent.errors import BlurError, SourceError
from agent.types import AudioChunk, ChannelOrder, Frame, Lease, MediaPacket, Pixels


class SourceStream(ABC, Generic[T]):
    """Frames or audio chunks of one source, for one consumer.

    `agent.capture.supervisor.SourceSupervisor` reopens the source.
    """

    def __init__(self, queue: HandoffQueue[T]) -> None:
        self._queue = queue
        self._delivered = self._dropped = 0

    @property
    @abstractmethod
    def _supervisor(self) -> SourceSupervisor | None:
        """Supervisor of the source; None before the start."""

    @abstractmethod
    def start(self) -> None:
        """Open and read the source in other threads."""

    @abstractmethod
    def stop(self, *, wait: bool = True) -> None:
        """Close the source, see `SourceSupervisor.stop`. Safe from any thread, and to call twice."""

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
        return (supervisor := self._supervisor) is not None and supervisor.lost

    @property
    def stats(self) -> CaptureStats:
        """Totals, in frames or samples, and state as of now."""
        if (supervisor := self._supervisor) is None:
            return CaptureStats(0, 0, 0, "starting", "")
        return supervisor.stats(self._delivered, self._dropped)


class FrameStream(SourceStream[Frame]):
    """Frames of one source, which other streams may share, see `agent.capture.camera`.

    A live source, and a replay with `pace=realtime`, hands on its newest frame only, and frames that were decoded
    late; a replay with `pace=fast` hands on every frame.

    Attributes:
        demand: what of an encoded camera is to be decoded; everything, until the consumer sets it.
    """

    def __init__(
        self,
        stream: str,
        uri: str,
        config: CaptureConfig,
        *,
        on_change: OnChange,
        cameras: Cameras | None = None,
        privacy: Privacy = NO_PRIVACY,
        on_packet: Callable[[MediaPacket], None] | None = None,
    ) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: name of the stream, for frames and threads.
            uri: see `agent.capture.source`.
            config: of the stream.
            on_change: see `OnChange`.
            cameras: that other streams use; None: the source is this stream's alone.
            privacy: what is hidden in every frame.
            on_packet: called with every packet of an encoded source, decoded or not, from the thread that reads
                it; must not wait. None: nobody takes packets.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
            ConfigError: a mask cannot be used.
        """
        address = parse_picture(uri)
        self._frames = LatestFrame(lossless=address.lossless)
        super().__init__(self._frames)
        self._stream, self._uri, self._config, self._on_change = stream, uri, config, on_change
        self._cameras = cameras or Cameras()
        self._camera: Camera | None = None
        self._joined: SourceThread[Any] | None = None
        self._before = CaptureStats(0, 0, 0, "starting", "")
        """Opening of the camera that was there before this stream, and the pictures that it had given by then."""
        self._limiter = FrameRateLimiter(config.max_fps)
        self._taken: set[int] = set()
        self.privacy = privacy
        self.painter = MaskPainter(privacy.masks) if privacy.masks else None
        self._repainter = MaskPainter(privacy.masks if privacy.find else ())
        self._on_packet = None if privacy.hides else on_packet
        self.wants_packets, self.wants_sound = self._on_packet is not None, False
        self.demand = Demand()

    @property
    def stats(self) -> CaptureStats:
        """Totals in frames, and state of the pictures as of now: the source may give sound before them."""
        opening, now, before = self._opening, super().stats, self._before
        if opening is not None and opening is self._joined:
            now = replace(
                now,
                decoded=max(0, now.decoded - before.decoded),
                undecoded=max(0, now.undecoded - before.undecoded),
                inter_coded=max(0, now.inter_coded - before.inter_coded),
            )
        if opening is not None and opening.lacks and now.state != "lost":
            return replace(now, state="lost", detail=opening.lacks)
        if opening is None or now.state != "running" or now.frames:
            return now
        return replace(now, state="starting", detail=opening.waits_for)

    @property
    def lost(self) -> bool:
        return super().lost or ((opening := self._opening) is not None and bool(opening.lacks))

    @property
    def decoder_thread_id(self) -> int | None:
        """The kernel's id of the thread that reads and decodes the source; None: there is none."""
        return opening.thread_id if (opening := self._opening) is not None else None

    @property
    def _opening(self) -> SourceThread[Any] | None:
        return supervisor.current if (supervisor := self._supervisor) is not None else None

    def start(self) -> None:
        self._camera = self._cameras.attach(self._stream, self._uri, self._config, self)
        self._joined, self._before = self._opening, super().stats

    def take(self, timeout_s: float) -> Frame | None:
        """Return the next frame, with everything hidden, or None if none came in time.

        Raises:
            SourceError: a finite source failed, or what is to be hidden cannot be: the stream gets nothing more.
        """
        frame = super().take(timeout_s)
        if frame is not None:
            self._taken.add(frame.seq)
            self._blur(frame)
            return replace(frame, lease=Lease(partial(self.give_back, frame)))
        return None

    def _blur(self, frame: Frame) -> None:
        if (find := self.privacy.find) is None:
            return
        try:
            blur(frame.image, find(frame.image, frame.order, frame.captured_ns))
            self._repainter.paint(frame.image, frame.image)  # a mosaic that reaches into a mask has brightened it
        except Exception as error:  # whatever it is: nobody may see this picture
            self.give_back(frame)
            self._queue.close()
            raise BlurError(f"its pictures cannot be blurred, so it shows nothing: {error}") from error

    def give_back(self, frame: Frame) -> None:
        """Allow the frame's memory to be used again. Calling this twice does no harm."""
        if frame.seq in self._taken and (camera := self._camera) is not None:
            self._taken.discard(frame.seq)
            camera.release(frame.pixels)

    def stop(self, *, wait: bool = True) -> None:
        """Hand nothing more on, and close the source unless others use it; see `SourceStream.stop`."""
        self._queue.close()
        self._on_packet = None  # who takes packets may hold this stream
        if (camera := self._camera) is not None:
            self._cameras.detach(camera, self, wait=wait)
            while (left := self._queue.pop()) is not None:
                camera.release(left.pixels)

    def set_demand(self, demand: Demand) -> None:
        """Have so much of an encoded camera decoded from its next packet on. Any thread may call this."""
        self.demand = demand

    def passes(self, now_s: float) -> bool:
        return self._limiter.passes(now_s)

    def deliver(self, picture: Picture, stamp: Timestamps, order: ChannelOrder, *, shared: bool) -> Pixels | None:
        """Hand a picture on, from a reader's thread; return the image that is dropped."""
        seq, self._delivered = self._delivered, self._delivered + 1
        stamps = stamp.captured_ns, stamp.captured_at, order, stamp.read_ns
        frame = Frame(picture.image, self._stream, seq, *stamps, shared, picture.unmasked, stamp.late)
        replaced = self._frames.put(frame, keep=stamp.late)
        if replaced is None:
            return None
        self._dropped += 1
        return replaced.pixels

    def take_packet(self, packet: MediaPacket) -> None:
        if (on_packet := self._on_packet) is not None:
            on_packet(packet)

    def change(self, state: str, reason: str) -> None:
        self._on_change(state, reason)

    def finish(self, error: SourceError | None) -> None:
        self._queue.close(error)

    @property
    def _supervisor(self) -> SourceSupervisor | None:
        return self._camera.supervisor if self._camera is not None else None


class SoundStream(SourceStream[AudioChunk]):
    """Audio: int16, one channel, at exactly the rate that was asked for."""

    def __init__(self, stream: str, rate_hz: int, *, lossless: bool) -> None:
        """Prepare the stream, whose `rate_hz` is in samples per second."""
        self._stream, self._rate_hz = stream, rate_hz
        self._chunks = AudioQueue(rate_hz, lossless=lossless)
        super().__init__(self._chunks)
        self._end = 0

    def _hand_on(self, sound: AudioBlock, lost: int) -> None:
        """Hand audio on, before which so many samples are missing."""
        first = self._end + lost
        self._end = first + len(sound.samples)
        self._delivered += len(sound.samples)
        stamps = sound.captured_ns, sound.captured_at, sound.read_ns
        chunk = AudioChunk(sound.samples, self._rate_hz, self._stream, first, *stamps)
        self._dropped += sound.lost + self._chunks.put(chunk)


class AudioStream(SoundStream):
    """Audio of a microphone or a file.

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
        super().__init__(stream, rate_hz, lossless=address.lossless)
        self._config, self._uri, self._end_ns = config, uri, 0
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
        stall_s = self._config.stall_s
        return AudioReader(self._uri, self._rate_hz, self._deliver, woken, stall_s=stall_s, name=name)

    def _deliver(self, reader: AudioReader, sound: AudioBlock) -> bool:
        """Hand audio on, from a reader's thread. Return False if this reader's audio is no longer wanted."""
        if reader is not self._supervisor.current:
            return False
        lost = sound.lost
        if reader is not self._newest_reader and self._newest_reader is not None:
            lost = max(lost, self._silence(sound))
        self._newest_reader, self._end_ns = reader, sound.captured_ns
        self._hand_on(sound, lost)
        return not self._supervisor.stopped

    def _silence(self, sound: AudioBlock) -> int:
        """Estimate by the clock how many samples an outage lost."""
        gone_s = (sound.captured_ns - self._end_ns) / 1e9
        return max(1, round(gone_s * self._rate_hz) - len(sound.samples))
