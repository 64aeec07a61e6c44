"""Threads that read one opening of a source: pace, timestamp and deliver its pictures or its audio."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from agent.capture.audio_file import Resampler
from agent.capture.decode_policy import DecodeChoice, DecodeMode, Demand
from agent.capture.handoff import FrameBufferPool
from agent.capture.hardware.table import SOFTWARE
from agent.capture.source import Block, SoundSource, Source, open_sound, open_source
from agent.config import CaptureConfig
from agent.config.source_uri import mask, opener, parse
from agent.errors import SoundAloneError, SourceError
from agent.types import ChannelOrder, MediaPacket, Pixels, Samples

S = TypeVar("S", Source, SoundSource)


class SourceThread(ABC, Generic[S]):
    """Opens and reads a source in a thread, so that no other thread waits for a device.

    Attributes:
        delivered: number of deliveries.
        goes_on: whether the source has given more than one picture; always true for audio.
        description: what the source gives, once it is open.
        decoding: what is decoded now, see `Source`.
        decoded: number of pictures that the source has given, also those that `max_fps` leaves out.
        undecoded: number of pictures that it has left encoded.
        inter_coded: number of pictures that are no key frames, see `Source`.
        has_sound: whether an open source of pictures has a track of sound, too; None: not known yet.
        waits_for, lacks: why no picture can come yet, or comes no more, although the source sends, see `Source`.
        error: why it ended; None: at its end, or not yet.
        over: whether it will deliver nothing more.
    """

    def __init__(self, uri: str, woken: threading.Event, name: str) -> None:
        """Prepare the thread.

        Args:
            uri: of the source, for messages.
            woken: set at the first delivery, when `goes_on` becomes true, and at the end.
            name: of the thread.
        """
        self._uri, self._woken = uri, woken
        self._abandoned = threading.Event()
        self._asked_ns = time.monotonic_ns()
        self.delivered, self.description, self.finished, self.goes_on = 0, "", False, True
        self.decoding, self.decoded, self.undecoded, self.inter_coded = "", 0, 0, 0
        self.waits_for = self.lacks = ""
        self.error: SourceError | None = None
        self.has_sound: bool | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._asked_ns = time.monotonic_ns()
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of the thread; None: it does not run."""
        return self._thread.native_id if self._thread.is_alive() else None

    def waiting_s(self) -> float:
        """Return for how long the source has not answered, s; 0 while this thread itself is busy."""
        asked_ns = self._asked_ns
        return (time.monotonic_ns() - asked_ns) / 1e9 if asked_ns else 0.0

    def abandon(self) -> None:
        """Close the source as soon as it answers, and deliver nothing more."""
        self._abandoned.set()

    def join(self, timeout_s: float) -> bool:
        """Return True if the thread ended in time with the source closed, or was never started."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _open(self) -> S:
        """Open the source.

        Raises:
            SourceError: it cannot be opened.
        """

    @abstractmethod
    def _read(self, source: S) -> None:
        """Read to the end or until abandoned. `_asked_ns` holds when the pending read began.

        Raises:
            SourceError: the source broke.
        """

    def _count(self) -> None:
        self.delivered += 1
        if self.delivered == 1:
            self._woken.set()

    def _describe_error(self, error: Exception) -> str:
        """Describe a library's error; for a network source without its text, which may quote the address."""
        if mask(self._uri) == self._uri:
            return f"{type(error).__name__}: {error}"
        return getattr(error, "strerror", None) or type(error).__name__

    def _run(self) -> None:
        source: S | None = None
        try:
            source = self._open()
            self.description = source.description
            self._read(source)
        except SourceError as error:
            self.error = error
        except Exception as error:  # map a library's error to SourceError
            self.error = SourceError(f"{mask(self._uri)}: {self._describe_error(error)}")
        self._asked_ns, self.finished = 0, True
        self._woken.set()
        # After the report: closing a camera that is gone takes as long as waiting for its frame.
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()


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


class Timestamps(Struct, frozen=True, gc=False):
    """When a picture was captured and read; see `Frame`. A `late` one must not be replaced by a newer one."""

    captured_ns: int
    captured_at: datetime
    read_ns: int
    late: bool = False


class FrameTaker(Protocol):
    """Takes what readers of a picture source give: a camera. Called by the reader's thread."""

    @property
    def demand(self) -> Demand:
        """What a camera is to decode at least, see `SourceListener`."""
        ...

    @property
    def wants_packets(self) -> bool:
        """Return True if `take_packet` is to be called with every packet of an encoded source."""
        ...

    @property
    def wants_sound(self) -> bool:
        """Return True if `take_packet` is to be called with packets of sound."""
        ...

    def best_decoder(self, codec: str) -> str:
        """Return the best hardware decoder of this board for a codec; empty: there is none. Must not wait."""
        ...

    def take_packet(self, reader: FrameReader, packet: MediaPacket) -> None:
        """Take a packet of an encoded source; must not wait."""
        ...

    def passes(self, now_s: float) -> bool:
        """Return True if the picture that is captured now is handed on."""
        ...

    def deliver(self, reader: FrameReader, image: Pixels, stamp: Timestamps, order: ChannelOrder) -> bool:
        """Take a picture. Return False to stop the reader."""
        ...


class FrameReader(SourceThread[Source]):
    """Reads one opening of a picture source."""

    def __init__(
        self,
        uri: str,
        pool: FrameBufferPool,
        taker: FrameTaker,
        woken: threading.Event,
        *,
        config: CaptureConfig,
        name: str,
    ) -> None:
        super().__init__(uri, woken, name)
        self.goes_on = False
        self._pool, self._taker, self._config = pool, taker, config
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
        from agent.capture.camera_sound.sound_alone import open_sound_alone

        self._asked_ns = time.monotonic_ns()
        return open_sound_alone(self._uri, stall_s=stall_s, login=self._config)

    @property
    def _hears_only(self) -> bool:
        """True if nobody wants pictures."""
        return self.demand.mode is DecodeMode.NOTHING

    @property
    def decode(self) -> DecodeChoice:
        return self._config.decode

    @property
    def demand(self) -> Demand:
        return self._taker.demand

    @property
    def wants_packets(self) -> bool:
        return self._taker.wants_packets

    @property
    def wants_sound(self) -> bool:
        return self._taker.wants_sound

    def decoder(self, codec: str) -> str:
        choice = self._config.decoder
        if choice == "auto":
            return self._taker.best_decoder(codec)
        return "" if choice == SOFTWARE else choice

    def take_packet(self, packet: MediaPacket) -> None:
        if self._abandoned.is_set():
            return
        self._taker.take_packet(self, packet)
        if packet.track.kind == "sound" and self._hears_only:
            self.goes_on = True
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
            self.decoded += source.holds  # before `lacks`: a picture ends that
            self.inter_coded, self.waits_for, self.lacks = source.inter_coded, source.waits_for, source.lacks
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
            if self._taker.passes(stamp.captured_ns / 1e9) and not self._deliver_all(source, stamp):
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
        wanted = self._taker.deliver(self, image, stamp, source.order)
        self._count()
        return wanted


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
        self, uri: str, rate_hz: int, deliver: OnAudio, woken: threading.Event, *, stall_s: float, name: str
    ) -> None:
        super().__init__(uri, woken, name)
        self._rate_hz, self._deliver, self._stall_s = rate_hz, deliver, stall_s
        self._lost = self._went = 0

    def _open(self) -> SoundSource:
        return open_sound(self._uri, self._rate_hz, stall_s=self._stall_s)

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
        self.description = source.description
        lost_s = lost / self._from_hz + self._resampler.behind_s
        self._lost += max(1, round(lost_s * self._rate_hz))
        self._from_hz, self._resampler = source.rate_hz, Resampler(source.rate_hz, self._rate_hz)

    def _deliver_all(self, source: SoundSource, block: Block) -> bool:
        """Deliver a block when it is due, unless it is empty. Return False to stop."""
        if not len(block.samples):
            return True
        self._went += len(block.samples)
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
