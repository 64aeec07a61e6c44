"""Decodes a camera with a hardware decoder, and goes on in software from the newest key frame where that fails.

A hardware decoder has failed when it reports an error, does not answer, keeps giving no picture, or gives
another picture of a key frame than the software decoder. It runs in a thread of its own, which is left behind if
it hangs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from msgspec import Struct

from agent.capture.hardware.decoders import TIME_BASE, DecoderError, PictureDecoder, open_decoder
from agent.capture.pictures.loop_filter import FilteredPictures
from agent.capture.pictures.software import SoftwareDecoder
from agent.types import Array

log = logging.getLogger(__name__)
OpenDecoder = Callable[[str, VideoStream], PictureDecoder]


class FailoverLimits(Struct, frozen=True):
    """When a hardware decoder has failed.

    Attributes:
        answer_s: longest time until it has taken a packet, s; three times that for its opening and first one.
        silent_packets, silent_s: as many packets without a picture, in at least this time, s.
        check_s: time between two comparisons of a key frame, s.
        difference: mean difference of a picture to the software decoder's, of 255.
        kept_bytes, kept_packets: most that is kept since the newest key frame.
        failures: of one decoder, in this process, after which it is not opened again.
        hanging: likewise threads that hang.
    """

    answer_s: float = 2.0
    silent_packets: int = 40
    silent_s: float = 1.0
    check_s: float = 30.0
    difference: float = 10.0
    kept_bytes: int = 8 * 1024 * 1024
    kept_packets: int = 1500
    failures: int = 3
    hanging: int = 2


class DecoderRecord:
    """Counts the failures of hardware decoders in this process. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, int] = {}
        self._hanging: list[threading.Thread] = []

    def add(self, name: str, hanging: threading.Thread | None = None) -> None:
        """Count a failure; `hanging` is the thread that was left behind."""
        with self._lock:
            self._failures[name] = self._failures.get(name, 0) + 1
            self._hanging += [] if hanging is None else [hanging]

    def may_open(self, name: str, limits: FailoverLimits) -> bool:
        """Return True if a decoder may be opened once more."""
        with self._lock:
            self._hanging = [one for one in self._hanging if one.is_alive()]
            return len(self._hanging) < limits.hanging and self._failures.get(name, 0) < limits.failures


_RECORD = DecoderRecord()
_UNDECODED = av.error.InvalidDataError, av.error.ArgumentError
"""Errors of a packet that is damaged, and of one whose picture is too large; whole ones may follow."""
_UNKNOWN = object()
_STEP = 40_000
"""Distance of the time stamps of packets, in `TIME_BASE`: drivers may expect a usual rate."""
_Answer = list[VideoFrame] | Exception


class _DecoderThread:
    """A hardware decoder in a thread of its own."""

    def __init__(self, make: Callable[[], PictureDecoder], name: str) -> None:
        self._requests: queue.SimpleQueue[Callable[[PictureDecoder], list[VideoFrame]] | None] = (
            queue.SimpleQueue()
        )
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(make,), name=f"decode-{name}", daemon=True)
        self._first = True
        self.thread.start()

    def decode(self, packet: Packet[Stream], answer_s: float) -> list[VideoFrame]:
        """Decode a packet. Raises DecoderError, or TimeoutError if there is no answer in time."""
        self._requests.put(lambda decoder: decoder.decode(packet))
        try:
            answer = self._answers.get(timeout=3.0 * answer_s if self._first else answer_s)
        except queue.Empty:
            raise TimeoutError from None
        self._first = False
        if isinstance(answer, DecoderError):
            raise answer
        if isinstance(answer, _UNDECODED):
            return []
        if isinstance(answer, Exception):
            raise DecoderError(getattr(answer, "strerror", None) or type(answer).__name__)
        return answer

    def flush(self) -> None:
        """Have it forget what came before, ahead of the next packet."""
        self._requests.put(_flush)

    def end(self) -> None:
        """Close the decoder, as soon as it answers."""
        self._requests.put(None)

    def _run(self, make: Callable[[], PictureDecoder]) -> None:
        decoder: PictureDecoder | None = None
        while (request := self._requests.get()) is not None:
            try:
                decoder = decoder or make()
                answer: _Answer = request(decoder)
            except Exception as error:  # the stream's thread judges it
                answer = error
            if request is not _flush:
                self._answers.put(answer)


def _flush(decoder: PictureDecoder) -> list[VideoFrame]:
    decoder.flush_buffers()
    return []


class _Comparison:
    """Compares pictures of key frames with the software decoder's."""

    def __init__(self, limits: FailoverLimits) -> None:
        self._limits, self._due_s = limits, float("-inf")
        self._pts: int | None = None
        self._expected: SmallPicture | None = None

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def expect(self, pts: int | None, picture: VideoFrame) -> None:
        self._due_s = time.monotonic() + self._limits.check_s
        self._pts, self._expected = pts, small_picture(picture)

    def check(self, picture: VideoFrame) -> None:
        """Raise DecoderError if a picture is the expected one, and looks different."""
        if (expected := self._expected) is None or picture.pts != self._pts:
            return
        self._expected = None
        difference = picture_difference(small_picture(picture), expected)
        if difference > self._limits.difference:
            raise DecoderError(f"its pictures are wrong: they differ by {difference:.0f} of 255")


class SmallPicture(NamedTuple):
    """A picture in small, RGB, with the size that it had, px."""

    size: tuple[int, int]
    pixels: Array


def small_picture(picture: VideoFrame) -> SmallPicture:
    """Return a picture in small."""
    small = picture.reformat(width=64, height=36, format="rgb24", threads=1)
    return SmallPicture((picture.width, picture.height), small.to_ndarray().astype(np.int16))


def picture_difference(one: SmallPicture, other: SmallPicture) -> float:
    """Return the mean difference of two pictures, 0..255; 255 if their sizes differ."""
    return float(np.abs(one.pixels - other.pixels).mean()) if one.size == other.size else 255.0


class DecodedPicture(Struct, frozen=True):
    """A picture, and the opaque data of its packet.

    The data is not in the picture: PyAV forgets an object that two packets or pictures share as soon as it frees
    the first of them.
    """

    frame: VideoFrame
    opaque: object


class FailoverDecoder:
    """Decodes the packets of one opening. For one thread.

    Attributes:
        name: of the hardware decoder in use; empty: software decodes.
    """

    def __init__(
        self,
        track: VideoStream,
        shown: str,
        *,
        open_hardware: OpenDecoder = open_decoder,
        limits: FailoverLimits | None = None,
        record: DecoderRecord = _RECORD,
    ) -> None:
        """Decode in software until `prefer` says otherwise.

        Args:
            track: of the camera.
            shown: name of the source, for the log.
            open_hardware: opens a hardware decoder.
            limits: None: the usual ones.
            record: of failures.
        """
        self._track, self._shown, self._open, self._record = track, shown, open_hardware, record
        self._software = SoftwareDecoder(track)
        self._limits = limits or FailoverLimits()
        self.name, self._refused = "", ""
        self._hardware: _DecoderThread | None = None
        self._parameters: bytes | None = None
        """Parameters of the track when the hardware decoder was opened."""
        self._comparison = _Comparison(self._limits)
        self._kept: list[Packet[Stream]] = []
        self._kept_bytes = 0
        self._opaque: dict[int, object] = {}
        self._stamp = 0
        self._before: list[DecodedPicture] = []
        self._silent, self._silent_s = 0, 0.0
        self._waits = False
        """True while the software decoder lacks the packets before the next one, and waits for a key frame."""

    def prefer(self, name: str) -> None:
        """Use a hardware decoder from the next packet on, which is a key frame; empty: software.

        One that failed is not used again.
        """
        if name == self.name or name == self._refused:
            return
        if not name or not self._record.may_open(name, self._limits):
            self._refused = name
            return
        self._before += self._drained()
        track, open_hardware = self._track, self._open
        self._parameters = track.codec_context.extradata
        self._hardware = _DecoderThread(lambda: open_hardware(name, track), name)
        self.name, self._comparison = name, _Comparison(self._limits)
        self._forget()

    def filter_pictures(self, filtered: FilteredPictures) -> None:
        """Have software apply the loop filter to these pictures from the next packet on, which is a key frame."""
        if filtered != self._software.filtered:
            self._before += self._drained()
            self._software.filter_pictures(filtered)

    def restart(self) -> None:
        """Forget what came before: the next packet is a key frame."""
        self._software.flush()
        self._before.clear()
        if self._hardware is not None and self._parameters == self._track.codec_context.extradata:
            self._hardware.flush()
        else:  # the packet that brought the newest parameters was perhaps left out
            self.close()
        self._forget()

    def decode_alone(self, packet: Packet[Stream]) -> list[DecodedPicture]:
        """Return the picture of a key frame at once. Software does that: hardware may wait for more packets."""
        self._software.flush()
        found = self._in_software(packet)
        found += self._in_software(None)
        self._software.release()
        return found

    def decode(self, packet: Packet[Stream] | None) -> list[DecodedPicture]:
        """Decode the next packet; None: the end, at which the software decoder gives what it holds back."""
        before, self._before = self._before, []
        if self._hardware is None:
            if self._waits and packet is not None and not packet.is_keyframe:
                return before
            self._waits = False
            return before + self._in_software(packet)
        if packet is None:  # draining could wait for a driver; the opening is over
            return before
        self._keep(packet)
        try:
            return before + self._in_hardware(self._hardware, packet)
        except DecoderError as error:
            return before + self._fail(str(error))
        except TimeoutError:
            return before + self._fail("it does not answer", hanging=self._hardware.thread)

    def close(self) -> None:
        """Close the hardware decoder. May be called twice."""
        if self._hardware is not None:
            self._hardware.end()
        self._hardware, self.name = None, ""

    def _in_software(self, packet: Packet[Stream] | None) -> list[DecodedPicture]:
        try:
            return [DecodedPicture(one, one.opaque) for one in self._software.decode(packet)]
        except (*_UNDECODED, av.error.EOFError):
            return []

    def _drained(self) -> list[DecodedPicture]:
        found = self._in_software(None)
        self._software.flush()
        return found

    def _in_hardware(self, hardware: _DecoderThread, packet: Packet[Stream]) -> list[DecodedPicture]:
        numbered = self._numbered(packet)
        if packet.is_keyframe and self._comparison.is_due():
            for expected in self.decode_alone(packet)[:1]:
                self._comparison.expect(numbered.pts, expected.frame)
        found = []
        for picture in hardware.decode(numbered, self._limits.answer_s):
            # A driver keeps no opaque data, and may give pictures from before a restart.
            opaque = self._opaque.pop(cast(int, picture.pts), _UNKNOWN)
            if opaque is not _UNKNOWN:
                self._comparison.check(picture)
                found.append(DecodedPicture(picture, opaque))
        self._watch(found)
        return found

    def _numbered(self, packet: Packet[Stream]) -> Packet[Stream]:
        """Return a copy whose time stamp tells its picture: a camera's may be missing, or come twice."""
        self._stamp += _STEP
        numbered: Packet[Stream] = Packet(bytes(packet))
        numbered.time_base, numbered.pts, numbered.dts = TIME_BASE, self._stamp, self._stamp
        numbered.is_keyframe = packet.is_keyframe
        self._opaque[self._stamp] = packet.opaque
        while len(self._opaque) > self._limits.kept_packets:
            self._opaque.pop(next(iter(self._opaque)))
        return numbered

    def _watch(self, found: list[DecodedPicture]) -> None:
        """Raise DecoderError after too many packets without a picture."""
        if found or not self._silent:
            self._silent_s = time.monotonic()
        self._silent = 0 if found else self._silent + 1
        limits = self._limits
        if self._silent >= limits.silent_packets and time.monotonic() - self._silent_s >= limits.silent_s:
            raise DecoderError(f"it gave no picture for {self._silent} packets")

    def _keep(self, packet: Packet[Stream]) -> None:
        if packet.is_keyframe:
            self._kept, self._kept_bytes = [], 0
        self._kept_bytes += packet.size
        if self._kept_bytes > self._limits.kept_bytes or len(self._kept) >= self._limits.kept_packets:
            self._kept = []
        elif self._kept or packet.is_keyframe:
            self._kept.append(packet)

    def _fail(self, why: str, hanging: threading.Thread | None = None) -> list[DecodedPicture]:
        """Go on in software; return the pictures since the newest key frame."""
        log.warning("%s: hardware decoder %s: %s; decoding in software", self._shown, self.name, why)
        self._record.add(self.name, hanging)
        self._refused = self.name
        kept = self._kept
        self.close()
        self._forget()
        self._waits = not kept
        self._software.flush()
        return [picture for packet in kept for picture in self._in_software(packet)]

    def _forget(self) -> None:
        self._kept, self._kept_bytes, self._silent, self._waits = [], 0, 0, False
        self._opaque.clear()
