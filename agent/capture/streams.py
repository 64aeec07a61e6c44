"""A stream's frames or sound: opens its source, keeps it open, and hands over what it gives."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec.structs import replace

from agent.capture.camera import Camera, Cameras, FrameConsumer, Picture, Timestamps
from agent.capture.source import NO_PRIVACY, DecodeMode, Demand, Privacy
from agent.capture.supervisor import CaptureStats, OnChange, SourceSupervisor, SourceThread
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import BlurError, SourceError
from agent.types import ChannelOrder, Frame, Lease, MediaPacket, Pixels

if TYPE_CHECKING:
    from agent.capture.privacy import MaskPainter

T = TypeVar("T")


class HandoffQueue(Generic[T]):
    """A closable queue between two threads."""

    def __init__(self, lossless: tuple[int, int] | None) -> None:
        """Create an empty queue.

        Args:
            lossless: how many items a lossless queue holds, and at how few a waiting producer continues; None for
                a live queue.
        """
        self._lossless = lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._error: SourceError | None = None

    def _wait_for_room(self) -> None:
        """Let the producer of a lossless queue wait. Called with the lock held."""
        if self._lossless and len(self._items) >= self._lossless[0]:
            while len(self._items) > self._lossless[1] and not self._closed:
                self._changed.wait()

    def _next(self) -> T:
        """Take from `_items`, which is not empty. Called with the lock held."""
        item = self._items.popleft()
        if self._lossless and len(self._items) == self._lossless[1]:
            self._changed.notify()
        return item

    def take(self, timeout_s: float) -> T | None:
        """Return the next item; None if none came in time, or the queue is closed and empty.

        Raises:
            SourceError: the one that the queue was closed with, after the last item.
        """
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout_s)
            if self._items:
                return self._next()
            if self._error is not None:
                raise self._error
            return None

    def close(self, error: SourceError | None = None) -> None:
        """Refuse further items. Items in the queue can still be taken."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def pop(self) -> T | None:
        """Return an item without waiting; None: there is none."""
        with self._changed:
            return self._items.popleft() if self._items else None

    def clear(self) -> None:
        """Drop the items in the queue."""
        with self._changed:
            self._items.clear()

    @property
    def drained(self) -> bool:
        """True if the queue was closed without an error and everything was taken."""
        with self._changed:
            return self._closed and not self._items and self._error is None


_CHUNKS, _FRAMES = (8, 2), (4, 1)
"""Limits of lossless queues: a producer that found one full continues when it is nearly empty, not at every free
place. It then reads several items in a row at less cost each: fewer wake-ups, and its caches stay warm."""
_LATE_MAX, _LATE_S = 1, 2.0
"""Most frames that were decoded late in a live queue, each of which may take 6 MB or more, and longest time that
the producer waits for room, s."""


class LatestFrame(HandoffQueue[Frame]):
    """Frames between two threads, in the order of their capture.

    A live queue holds the newest frame only, and those before it that are to be kept; a lossless one makes the
    producer wait while it is full.
    """

    def __init__(self, *, lossless: bool) -> None:
        super().__init__(_FRAMES if lossless else None)
        self._newest_ns = -1
        self._kept = 0

    def put(self, frame: Frame, *, keep: bool = False) -> Frame | None:
        """Add a frame. Return the frame that is dropped for it, if any.

        The frame itself is dropped if the queue is closed, or if it was captured before an earlier one: a reader
        that hung and came back must not deliver old frames.

        Args:
            frame: to add.
            keep: no later frame replaces it in a live queue, whose producer waits for a while if too many are
                kept; if the consumer takes none of them in this time, they are replaced all the same.
        """
        with self._changed:
            self._wait_for_room()
            if keep and not self._lossless:
                self._wait_for_late()
            if self._closed or frame.captured_ns < self._newest_ns:
                return frame
            self._newest_ns = frame.captured_ns
            replaced = None
            if len(self._items) > self._kept and not self._lossless:
                replaced = self._items.pop()
            self._items.append(frame)
            self._kept += keep
            self._changed.notify()
            return replaced

    def _wait_for_late(self) -> None:
        """Wait until there is room for a frame to keep, or the consumer hangs. Called with the lock held."""
        if not self._changed.wait_for(lambda: self._kept < _LATE_MAX or self._closed, _LATE_S):
            self._kept -= 1  # it is replaced

    def _next(self) -> Frame:
        self._kept = max(0, self._kept - 1)
        if not self._lossless:
            self._changed.notify_all()
        return super()._next()

    def pop(self) -> Frame | None:
        self._kept = 0
        return super().pop()


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


class FrameRateLimiter:
    """Limits pictures per second, evenly on average."""

    def __init__(self, max_fps: float) -> None:
        self._period_s = 1.0 / max_fps if max_fps > 0 else 0.0
        self._due_s = float("-inf")

    def passes(self, now_s: float) -> bool:
        """Return True if the current picture is handed on."""
        if self._period_s == 0.0:
            return True
        if now_s < self._due_s - 1e-6:
            return False
        late = now_s - self._due_s
        self._due_s = now_s + self._period_s if late > self._period_s else self._due_s + self._period_s
        return True


class FrameStream(SourceStream[Frame], FrameConsumer):
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
        self._repainter: MaskPainter | None = None
        self.privacy = privacy
        if privacy.masks:
            from agent.capture.privacy import MaskPainter

            self.painter, self._repainter = MaskPainter(privacy.masks), MaskPainter(privacy.masks)
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
        if opening is None or now.state != "running" or now.frames:
            return now
        return replace(now, state="starting", detail=opening.waits_for)

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
        from agent.capture.privacy import blur

        try:
            blur(frame.image, find(frame.image, frame.order, frame.captured_ns))
            if self._repainter is not None:  # a mosaic that reaches into a mask has brightened it
                self._repainter.paint(frame.image, frame.image)
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


class PacketStream(FrameConsumer):
    """Packets of a camera whose pictures nobody needs: its second source, which is recorded and not decoded."""

    wants_packets, demand = True, Demand(DecodeMode.NOTHING)

    def __init__(
        self,
        stream: str,
        uri: str,
        config: CaptureConfig,
        *,
        on_packet: Callable[[MediaPacket], None],
        on_change: OnChange,
    ) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            stream: its name, for threads.
            uri: of a camera on the network.
            config: of the stream.
            on_packet: called with every packet, from the thread that reads it; must not wait.
            on_change: see `OnChange`.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
        """
        self._camera = Camera(f"{stream}-record", uri, config)
        self._on_packet, self._on_change, self._packets = on_packet, on_change, 0

    def start(self) -> None:
        """Open and read the camera in other threads."""
        self._camera.attach(self)

    def stop(self, *, wait: bool = True) -> None:
        """Close the camera, see `SourceSupervisor.stop`."""
        self._camera.detach(self, wait=wait)

    @property
    def stats(self) -> CaptureStats:
        """Number of packets, and state as of now."""
        return self._camera.supervisor.stats(self._packets, 0)

    def take_packet(self, packet: MediaPacket) -> None:
        self._packets += 1
        self._on_packet(packet)

    def change(self, state: str, reason: str) -> None:
        self._on_change(state, reason)
