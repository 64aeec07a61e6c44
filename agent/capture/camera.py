"""A camera, opened once, whose frames go to every stream that asks for the same source.

Streams with the same `source` and the same `[capture]`, except `max_fps`, share a camera: it is opened with
the first and closed with the last. A picture is in memory once for all streams that hide the same of it; that is
used again when all have given it back. Masks are painted here, by the thread that has read the picture, before a
stream gets it. Where that fails, the stream fails, and gets nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.capture.source import (
    NO_PRIVACY,
    DecodeChoice,
    DecodeMode,
    Demand,
    FrameBufferPool,
    Source,
    open_source,
)
from agent.capture.supervisor import SourceSupervisor, SourceThread
from agent.config import CaptureConfig
from agent.config.source_uri import opener, parse, parse_picture
from agent.errors import SoundAloneError, SourceError
from agent.types import ChannelOrder, Image, MediaPacket, Pixels

if TYPE_CHECKING:
    from agent.capture.privacy import MaskPainter


class Timestamps(Struct, frozen=True, gc=False):
    """When a picture was captured and read; see `Frame`. A `late` one must not be replaced by a newer one."""

    captured_ns: int
    captured_at: datetime
    read_ns: int
    late: bool = False


class Picture(Struct, frozen=True):
    """A picture for one stream or several; `unmasked` is its copy without masks, for their models alone."""

    image: Pixels
    unmasked: Image | None = None


class FrameConsumer:
    """Takes the frames of a camera: one stream. The methods are called by the camera's threads.

    Attributes:
        wants_packets: whether it takes all packets of an encoded source, too.
        wants_sound: whether it takes its packets of sound.
        demand: what it wants to be decoded of one; the highest demand of all consumers counts.
        privacy: what it hides.
        painter: of its masks; None: it has none.
    """

    wants_packets = wants_sound = False
    demand = Demand()
    privacy = NO_PRIVACY
    painter: MaskPainter | None = None

    def passes(self, now_s: float) -> bool:
        """Return True if the stream takes the picture that is captured now."""
        return False

    def deliver(self, picture: Picture, stamp: Timestamps, order: ChannelOrder, *, shared: bool) -> Pixels | None:
        """Take a picture, whose image is to be released, and which others take if it is `shared`.

        Returns:
            the image that is dropped for it, or its own; None: there is none.
        """
        return picture.image

    def take_packet(self, packet: MediaPacket) -> None:
        """Take a packet of an encoded source, before the picture in it; must not wait."""

    def change(self, state: str, reason: str) -> None:
        """Take news of an outage, as `agent.capture.supervisor.OnChange` does."""

    def finish(self, error: SourceError | None) -> None:
        """Take nothing more: a finite source is over, or has failed."""


class _Held(NamedTuple):
    """A picture that streams have: so many of them, where its memory goes, and whether it is wiped before."""

    picture: Picture
    holders: int
    home: FrameBufferPool
    wiped: bool


class Camera:
    """One source of pictures with its consumers. Any thread may call it."""

    def __init__(self, stream: str, uri: str, config: CaptureConfig) -> None:
        """Prepare it; nothing is opened yet. `stream` names its threads; `max_fps` is each consumer's own.

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
        self._pools: dict[object, FrameBufferPool] = {}
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
            used = {_kind(one) for one in self._consumers}
            self._pools = {kind: pool for kind, pool in self._pools.items() if kind in used}
            is_last = not self._consumers
            self._closed = self._closed or is_last
        if is_last:
            self.supervisor.stop(wait=wait)
            for pool in (self._pool, *self._pools.values()):
                pool.close()
        return is_last

    def release(self, image: Pixels) -> None:
        """Give a picture back that was delivered to a consumer, once for each."""
        with self._lock:
            held = self._held.pop(id(image), None)
            if held is not None and held.holders > 1:
                self._held[id(image)] = held._replace(holders=held.holders - 1)
                return
        if held is None:
            _give(self._pool, image, wiped=False)
            return
        _give(held.home, image, wiped=held.wiped)
        if held.picture.unmasked is not None:
            _give(self._pool, held.picture.unmasked, wiped=True)

    def _reader(self) -> FrameReader:
        return FrameReader(self, self._uri, self._config, self._pool, f"read-{self._stream}")

    @property
    def demand(self) -> Demand:
        """The highest demand of its consumers."""
        consumers = self._consumers
        if len(consumers) == 1:
            return consumers[0].demand
        demands = [one.demand for one in consumers] or [Demand(DecodeMode.PACKETS)]
        mode, most = max(one.mode for one in demands), max(one.most for one in demands)
        return Demand(mode, any(one.moved for one in demands), most, any(one.exact for one in demands))

    @property
    def wants_packets(self) -> bool:
        """True if a consumer takes all packets."""
        return any(one.wants_packets for one in self._consumers)

    @property
    def wants_sound(self) -> bool:
        """True if a consumer takes packets of sound."""
        return any(one.wants_sound for one in self._consumers)

    def take_packet(self, reader: FrameReader, packet: MediaPacket) -> None:
        """Hand a packet on, from a reader's thread."""
        if reader is self.supervisor.current:
            is_sound = packet.track.kind == "sound"
            for one in self._consumers:
                if one.wants_packets or (is_sound and one.wants_sound):
                    one.take_packet(packet)

    def passes(self, now_s: float) -> bool:
        """Return True if a consumer takes the picture that is captured now. For the reader's thread."""
        self._wanting = tuple(one for one in self._consumers if one.passes(now_s))
        return bool(self._wanting)

    def deliver(self, reader: FrameReader, image: Pixels, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Hand a picture on, from a reader's thread. Return False if this reader's are no longer wanted."""
        with self._lock:
            wanting = [one for one in self._wanting if one in self._consumers]
        is_current = reader is self.supervisor.current
        if not is_current or not wanting:
            _give(self._pool, image, wiped=self._private)
            return is_current and not self.supervisor.stopped
        kinds = _by_kind(wanting)
        bare = kinds.pop(None, ())
        for kind, streams in kinds.items():
            raw = image = image if isinstance(image, np.ndarray) else image.image()
            self._deliver_masked(kind, streams, raw, stamp, order)
        if bare:
            self._hand_on(bare, Picture(image), self._pool, stamp, order)
        else:
            _give(self._pool, image, wiped=True)
        return not self.supervisor.stopped

    def _deliver_masked(
        self, kind: object, streams: Sequence[FrameConsumer], raw: Image, stamp: Timestamps, order: ChannelOrder
    ) -> None:
        """Hand a masked copy of a picture to streams that hide the same of it.

        Memory that streams get only ever holds what they may show: who uses it longer than he may, while the next
        picture is read, sees nothing of what is hidden.
        """
        privacy, painter = streams[0].privacy, streams[0].painter
        home = self._pools.setdefault(kind, FrameBufferPool())
        try:
            image = _memory(raw, home)
            if painter is not None:
                painter.paint(raw, image)
            else:
                np.copyto(image, raw)
        except Exception as error:  # whatever it is: nobody may see this picture
            self._refuse(streams, f"its privacy masks cannot be applied, so it shows nothing: {error}")
            return
        unmasked = None
        if not privacy.mask_model:
            unmasked = _memory(raw, self._pool)
            np.copyto(unmasked, raw)
        self._hand_on(streams, Picture(image, unmasked), home, stamp, order)

    def _hand_on(
        self,
        streams: Sequence[FrameConsumer],
        picture: Picture,
        home: FrameBufferPool,
        stamp: Timestamps,
        order: ChannelOrder,
    ) -> None:
        shared, hides = len(streams) > 1, streams[0].privacy.hides
        if shared or hides:
            with self._lock:
                # What is still to be blurred is wiped, if its stream has not come to it.
                wiped = streams[0].privacy.find is not None
                self._held[id(picture.image)] = _Held(picture, len(streams), home, wiped)
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


def _memory(image: Image, pool: FrameBufferPool) -> Image:
    """Return memory for a copy of a picture."""
    into = pool.take()
    return into if into is not None and into.shape == image.shape else np.empty_like(image)


def _give(pool: FrameBufferPool, image: Pixels, *, wiped: bool) -> None:
    """Use memory again; what cannot be wiped, or is the decoder's, is freed."""
    if not isinstance(image, np.ndarray):
        return
    if wiped and not image.flags.writeable:
        return
    if wiped:
        image.fill(0)
    pool.give(image)


def _kind(stream: FrameConsumer) -> object:
    """Return what is equal for streams that hide the same; None: it hides nothing. A blur is its stream's own."""
    privacy = stream.privacy
    if privacy.find is not None:
        return id(stream)
    return (tuple(mask.polygon for mask in privacy.masks), privacy.mask_model) if privacy.masks else None


def _by_kind(streams: Sequence[FrameConsumer]) -> dict[object, list[FrameConsumer]]:
    """Group streams that hide the same, and so share memory."""
    found: dict[object, list[FrameConsumer]] = {}
    for one in streams:
        found.setdefault(_kind(one), []).append(one)
    return found


_STEADY_S = 5.0
"""An outage of a recorded camera ends when packets have come for so long, s: one that drops each connection is
still lost."""


class FrameReader(SourceThread[Source]):
    """Reads one opening of a picture source."""

    def __init__(self, camera: Camera, uri: str, config: CaptureConfig, pool: FrameBufferPool, name: str) -> None:
        super().__init__(uri, camera.supervisor.woken, name)
        self.goes_on, self._key_s = False, 0.0
        self._camera, self._config, self._pool = camera, config, pool
        self._fast = parse(uri).lossless

    def _open(self) -> Source:
        self._asked_ns = 0  # the time to load a library is not the source's
        opener(parse(self._uri))
        self._asked_ns = time.monotonic_ns()
        stall_s = self._config.stall_s
        try:
            return open_source(self._uri, stall_s=stall_s, login=self._config)
        except SoundAloneError:
            if not self._hears_only:
                raise
        from agent.capture.sound_decoder import open_sound_alone

        self._asked_ns = time.monotonic_ns()
        return open_sound_alone(self._uri, stall_s=stall_s, login=self._config)

    @property
    def _hears_only(self) -> bool:
        """True if nobody wants pictures, encoded or not."""
        return self.demand.mode is DecodeMode.NOTHING and not self.wants_packets

    @property
    def decode(self) -> DecodeChoice:
        return self._config.decode

    @property
    def demand(self) -> Demand:
        return self._camera.demand

    @property
    def wants_packets(self) -> bool:
        return self._camera.wants_packets

    @property
    def wants_sound(self) -> bool:
        return self._camera.wants_sound

    @property
    def decoder(self) -> str:
        return self._config.decoder

    def take_packet(self, packet: MediaPacket) -> None:
        if self._abandoned.is_set():
            return
        self._camera.take_packet(self, packet)
        if self.demand.mode is DecodeMode.NOTHING:
            self._count_packet(packet)

    def _count_packet(self, packet: MediaPacket) -> None:
        """Count a packet where no picture is decoded: sound that is heard, or video from a key frame on."""
        now_s, is_video = time.monotonic(), packet.track.kind == "video"
        if is_video and packet.keyframe and not self._key_s:
            self._key_s = now_s
        if self._hears_only and not is_video:
            self.goes_on = True
            self._count()
        elif is_video and self._key_s and not self._hears_only:
            self.goes_on = self.goes_on or now_s - self._key_s >= _STEADY_S
            self._count()

    def _read(self, source: Source) -> None:
        source.follow(self)
        self.has_sound = source.has_sound
        due_s, number, paced = time.monotonic(), 0, source.pace_s > 0
        while not self._abandoned.is_set():
            if paced:
                due_s = self._pace(due_s, source.pace_s)
            self._asked_ns = time.monotonic_ns()
            if not source.grab():
                return
            self.decoding, self.undecoded = source.decoding, source.undecoded
            self.decoded += source.holds
            self.inter_coded, self.waits_for = source.inter_coded, source.waits_for
            if not source.holds:
                continue
            self.description = source.description
            now_ns = time.monotonic_ns()
            recorded_s = number * source.period_s if self._fast else 0.0
            number += 1
            if number == 2:  # also where `max_fps` leaves it out
                self.goes_on = True
                self._woken.set()
            stamp = self._stamp(source, now_ns, recorded_s)
            if self._camera.passes(stamp.captured_ns / 1e9) and not self._deliver_all(source, stamp):
                return

    def _pace(self, due_s: float, pace_s: float) -> float:
        """Wait until a picture is due. Return when the next one is."""
        now_s = time.monotonic()
        if due_s > now_s:
            self._asked_ns = 0
            self._abandoned.wait(due_s - now_s)
        return max(due_s, now_s - 1.0) + pace_s

    def _stamp(self, source: Source, read_ns: int, recorded_s: float) -> Timestamps:
        """Return the source's times, or the present; of a fast replay, its start plus recorded time."""
        now = datetime.now(UTC)
        if source.captured_ns:
            at = now - timedelta(microseconds=max(0, read_ns - source.captured_ns) // 1000)
            return Timestamps(source.captured_ns, at, source.read_ns, source.late)
        if recorded_s <= 0.0:
            self._origin = Timestamps(read_ns, now, read_ns)
            return self._origin
        captured_ns = self._origin.captured_ns + round(recorded_s * 1e9)
        return Timestamps(captured_ns, self._origin.captured_at + timedelta(seconds=recorded_s), read_ns)

    def _deliver_all(self, source: Source, stamp: Timestamps) -> bool:
        image: Pixels = source.deferred() or source.picture(self._pool.take())
        self._asked_ns = 0
        wanted = self._camera.deliver(self, image, stamp, source.order)
        self._count()
        return wanted


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
