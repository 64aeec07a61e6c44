"""A camera, opened once, whose frames go to every stream that asks for the same source.

Streams with the same `source` and the same `[capture]`, except `max_fps`, share a camera: it is opened with
the first and closed with the last. A picture is in memory once for all streams that hide the same of it; that is
used again when all have given it back. Masks are painted here, by the thread that has read the picture, before a
stream gets it. Where that fails, the stream fails, and gets nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from msgspec.structs import replace

from agent.capture.handoff import FrameBufferPool
from agent.capture.privacy import MaskPainter, Privacy
from agent.capture.reader import FrameReader, Timestamps
from agent.capture.supervisor import SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import SourceError
from agent.types import ChannelOrder, Image


class FrameConsumer(Protocol):
    """Takes the frames of a camera: one stream. The methods are called by the camera's threads.

    Attributes:
        privacy: what it hides.
        painter: of its masks; None: it has none.
    """

    privacy: Privacy
    painter: MaskPainter | None

    def passes(self, now_s: float) -> bool:
        """Return True if the stream takes the picture that is captured now."""
        ...

    def deliver(self, picture: Picture, stamp: Timestamps, order: ChannelOrder, *, shared: bool) -> Image | None:
        """Take a picture, whose image is to be released, and which others take if it is `shared`.

        Returns:
            the image that is dropped for it, or its own; None: there is none.
        """
        ...

    def change(self, state: str, reason: str) -> None:
        """Take news of an outage, as `agent.capture.supervisor.OnChange` does."""
        ...

    def finish(self, error: SourceError | None) -> None:
        """Take nothing more: a finite source is over, or has failed."""
        ...


class Picture(NamedTuple):
    """A picture for one stream or several; `unmasked` is its copy without masks, for their models alone."""

    image: Image
    unmasked: Image | None = None


class _Held(NamedTuple):
    """A picture that streams have: so many of them, and whether its memory is wiped before it is used again."""

    picture: Picture
    holders: int
    private: bool


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
        self._held: dict[int, _Held] = {}
        self._started = self._closed = self._private = False
        self._pool, self._address = FrameBufferPool(), parse_picture(uri)
        self.supervisor = SourceSupervisor(
            stream,
            self._address,
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
            is_first, self._started = not self._started, True
            self._consumers = (*self._consumers, consumer)
            self._private = self._private or consumer.privacy.hides
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
            held = self._held.get(id(image)) or _Held(Picture(image), 1, False)
            if held.holders > 1:
                self._held[id(image)] = held._replace(holders=held.holders - 1)
                return
            self._held.pop(id(image), None)
        self._reuse(*held.picture, private=held.private)

    def _reuse(self, image: Image, unmasked: Image | None = None, *, private: bool) -> None:
        """Use memory again, wiped of what must not be seen; memory that cannot be wiped is freed."""
        for one, is_private in ((image, private), (unmasked, True)):
            if one is None or not (one.flags.writeable or not is_private):
                continue
            if is_private:
                one.fill(0)
            self._pool.give(one)

    def _reader(self) -> FrameReader:
        return FrameReader(
            self._uri,
            self._pool,
            self._deliver,
            self.supervisor.woken,
            config=self._config,
            name=f"read-{self._stream}",
            passes=self._passes,
        )

    def _passes(self, now_s: float) -> bool:
        self._wanting = tuple(one for one in self._consumers if one.passes(now_s))
        return bool(self._wanting)

    def _deliver(self, reader: FrameReader, image: Image, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a picture on, from a reader's thread. Return False if this reader's are no longer wanted."""
        with self._lock:
            wanting = [one for one in self._wanting if one in self._consumers]
        is_current = reader is self.supervisor.current
        if not is_current or not wanting:
            self._reuse(image, private=self._private)
            return is_current and not self.supervisor.stopped
        alike = _alike(wanting)
        # The last ones get the memory that was read; every copy is made before that is masked.
        copies = [self._copy(image) for _ in alike[1:]]
        for copy, streams in zip((*copies, image), alike, strict=True):
            self._deliver_to(streams, copy, stamp, order)
        return not self.supervisor.stopped

    def _copy(self, image: Image) -> Image:
        into = self._pool.take()
        if into is None or into.shape != image.shape:
            into = np.empty_like(image)
        np.copyto(into, image)
        return into

    def _deliver_to(
        self, streams: Sequence[FrameConsumer], image: Image, stamp: Timestamps, order: ChannelOrder
    ) -> None:
        """Mask a picture, and hand it to streams that hide the same of it."""
        first = streams[0]
        unmasked = None if first.privacy.mask_model or not first.privacy.hides else self._copy(image)
        if first.painter is not None:
            try:
                first.painter.paint(image)
            except Exception as error:  # whatever it is: nobody may see this picture
                self._reuse(image, unmasked, private=True)
                self._refuse(streams, f"its privacy masks cannot be applied, so it shows nothing: {error}")
                return
        picture, shared = Picture(image, unmasked), len(streams) > 1
        # What is still to be blurred is wiped, if the stream has not come to it.
        private = first.privacy.find is not None
        if shared or unmasked is not None or private:
            with self._lock:
                self._held[id(image)] = _Held(picture, len(streams), private)
        for one in streams:
            dropped = one.deliver(picture, stamp, order, shared=shared)
            if dropped is not None:
                self.release(dropped)

    def _refuse(self, streams: Sequence[FrameConsumer], why: str) -> None:
        """Hand nothing more to streams, which fail."""
        with self._lock:
            self._consumers = tuple(one for one in self._consumers if one not in streams)
        for one in streams:
            one.finish(SourceError(f"{self._address.masked}: {why}"))

    def _change(self, state: str, reason: str) -> None:
        for one in self._consumers:
            one.change(state, reason)

    def _finish(self, error: SourceError | None) -> None:
        with self._lock:
            self._closed = True
        for one in self._consumers:
            one.finish(error)


def _alike(streams: Sequence[FrameConsumer]) -> list[list[FrameConsumer]]:
    """Group streams that hide the same, and so may share memory; what is blurred is each stream's own."""
    found: dict[object, list[FrameConsumer]] = {}
    for one in streams:
        polygons = tuple(mask.polygon for mask in one.privacy.masks)
        key = id(one) if one.privacy.find else (polygons, one.privacy.mask_model or not polygons)
        found.setdefault(key, []).append(one)
    return list(found.values())


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
