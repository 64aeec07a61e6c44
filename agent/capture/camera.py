"""A camera, opened once, whose frames go to every stream that asks for the same source.

Streams with the same `source` and the same `[capture]`, except `max_fps`, share a camera: it is opened with
the first and closed with the last. A picture is in memory once; that is used again when all have given it back.
"""

from __future__ import annotations

import threading
from typing import Protocol

from msgspec.structs import replace

from agent.capture.decode_policy import DecodeMode, Demand
from agent.capture.handoff import FrameBufferPool
from agent.capture.reader import FrameReader, Timestamps
from agent.capture.supervisor import SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import SourceError
from agent.types import ChannelOrder, Image, MediaPacket


class FrameConsumer(Protocol):
    """Takes the frames of a camera: one stream. The methods are called by the camera's threads.

    Attributes:
        wants_packets: whether it takes the packets of an encoded source, too.
        demand: what it wants to be decoded of one; the highest demand of all consumers counts.
    """

    wants_packets: bool
    demand: Demand

    def passes(self, now_s: float) -> bool:
        """Return True if the stream takes the picture that is captured now."""
        ...

    def deliver(self, image: Image, stamp: Timestamps, order: ChannelOrder, *, shared: bool) -> Image | None:
        """Take a picture, which is to be released, and which others take if it is `shared`.

        Returns:
            the picture that is dropped for it, or itself; None: there is none.
        """
        ...

    def take_packet(self, packet: MediaPacket) -> None:
        """Take a packet of an encoded source, before the picture in it; must not wait."""
        ...

    def change(self, state: str, reason: str) -> None:
        """Take news of an outage, as `agent.capture.supervisor.OnChange` does."""
        ...

    def finish(self, error: SourceError | None) -> None:
        """Take nothing more: a finite source is over, or has failed."""
        ...


class Camera:
    """One source of pictures with its consumers. Any thread may call it."""

    def __init__(self, stream: str, uri: str, config: CaptureConfig) -> None:
        """Prepare it; nothing is opened yet.

        Args:
            stream: that it was made for, for the names of threads.
            uri: see `agent.capture.source`.
            config: of the stream; `max_fps` is each consumer's own.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
        """
        self._stream, self._uri, self._config = stream, uri, config
        self._lock = threading.Lock()
        self._consumers: tuple[FrameConsumer, ...] = ()
        self._wanting: tuple[FrameConsumer, ...] = ()
        self._held: dict[int, tuple[Image, int]] = {}
        self._closed = False
        self._pool = FrameBufferPool()
        self.supervisor = SourceSupervisor(
            stream,
            parse_picture(uri),
            config,
            open_next=self._reader,
            finish=self._finish,
            on_change=self._change,
        )

    def attach(self, consumer: FrameConsumer) -> bool:
        """Hand frames to this consumer, too. Return False if the camera is closed, or at its end."""
        with self._lock:
            if self._closed:
                return False
            is_first, self._consumers = not self._consumers, (*self._consumers, consumer)
        if is_first:
            self.supervisor.start()
        return True

    def detach(self, consumer: FrameConsumer, *, wait: bool) -> bool:
        """Hand nothing more to a consumer. Close the camera after the last; return True if that is now.

        `wait`: as of `SourceSupervisor.stop`.
        """
        with self._lock:
            self._consumers = tuple(one for one in self._consumers if one is not consumer)
            is_last = not self._consumers
            self._closed = self._closed or is_last
        if is_last:
            self.supervisor.stop(wait=wait)
            self._pool.close()
        return is_last

    def release(self, image: Image) -> None:
        """Give a picture back that was delivered to a consumer, once for each."""
        with self._lock:
            _, holders = self._held.get(id(image), (image, 1))
            if holders > 1:
                self._held[id(image)] = image, holders - 1
                return
            self._held.pop(id(image), None)
        self._pool.give(image)

    def _reader(self) -> FrameReader:
        return FrameReader(
            self._uri,
            self._pool,
            self,
            self.supervisor.woken,
            config=self._config,
            name=f"read-{self._stream}",
        )

    @property
    def demand(self) -> Demand:
        """What any consumer wants to be decoded."""
        demands = [one.demand for one in self._consumers]
        if len(demands) == 1:
            return demands[0]
        mode = max((one.mode for one in demands), default=DecodeMode.PACKETS)
        return Demand(mode, any(one.moved for one in demands))

    @property
    def wants_packets(self) -> bool:
        """True if a consumer takes packets."""
        return any(one.wants_packets for one in self._consumers)

    def take_packet(self, reader: FrameReader, packet: MediaPacket) -> None:
        """Hand a packet on, from a reader's thread."""
        if reader is self.supervisor.current:
            for one in self._consumers:
                if one.wants_packets:
                    one.take_packet(packet)

    def passes(self, now_s: float) -> bool:
        """Return True if a consumer takes the picture that is captured now. For the reader's thread."""
        self._wanting = tuple(one for one in self._consumers if one.passes(now_s))
        return bool(self._wanting)

    def deliver(self, reader: FrameReader, image: Image, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a picture on, from a reader's thread. Return False if this reader's are no longer wanted."""
        if reader is not self.supervisor.current:
            return False
        with self._lock:
            wanting = [one for one in self._wanting if one in self._consumers]
            if len(wanting) > 1:
                self._held[id(image)] = image, len(wanting)
        for one in wanting:
            dropped = one.deliver(image, stamp, order, shared=len(wanting) > 1)
            if dropped is not None:
                self.release(dropped)
        if not wanting:
            self._pool.give(image)
        return not self.supervisor.stopped

    def _change(self, state: str, reason: str) -> None:
        for one in self._consumers:
            one.change(state, reason)

    def _finish(self, error: SourceError | None) -> None:
        with self._lock:
            self._closed = True
        for one in self._consumers:
            one.finish(error)


_Key = tuple[str, CaptureConfig]


class Cameras:
    """The open cameras of a daemon, by source. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[_Key, Camera] = {}

    def attach(self, stream: str, uri: str, config: CaptureConfig, consumer: FrameConsumer) -> Camera:
        """Return the camera of a source, which hands its frames to the consumer from now on.

        A replay with `pace=fast` is opened for each stream: each gets every frame, from the beginning.

        Raises:
            SourceError: the URI is wrong, or names a source of sound.
        """
        key = uri, replace(config, max_fps=0.0)
        shared = not parse_picture(uri).lossless
        with self._lock:
            camera = self._open.get(key) if shared else None
            if camera is not None and camera.attach(consumer):
                return camera
            camera = Camera(stream, uri, config)
            if shared:
                self._open[key] = camera
            camera.attach(consumer)
            return camera

    def detach(self, camera: Camera, consumer: FrameConsumer, *, wait: bool) -> None:
        """Hand nothing more to a consumer, and close the camera after its last one."""
        if camera.detach(consumer, wait=wait):
            with self._lock:
                self._open = {key: one for key, one in self._open.items() if one is not camera}
