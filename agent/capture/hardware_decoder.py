"""V4L2 decoders that FFmpeg can use: a camera's pictures from one of them.

V4L2's memory-to-memory devices are in /dev/video*: `bcm2835-codec` of a Raspberry Pi 4B, `venus` of Snapdragon.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Protocol, cast

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.capture.source import LARGEST_PIXELS
from agent.capture.video import UNDECODED, DecodedPicture, SoftwareDecoder
from agent.types import Array

log = logging.getLogger(__name__)

DECODERS = {"h264_v4l2m2m": "h264", "hevc_v4l2m2m": "hevc"}
"""Codec by the name of a decoder, both as FFmpeg has them."""


class DecoderError(Exception):
    """A hardware decoder cannot be used, or failed. The text says why, for people."""


class PictureDecoder(Protocol):
    """Decodes packets of one track of video: a context of FFmpeg. For one thread at a time."""

    def decode(self, packet: Packet[Stream] | None = None, /) -> list[VideoFrame]:
        """Decode a packet; None: the end. Return the pictures that are ready, in their order."""
        ...

    def flush_buffers(self) -> None:
        """Forget what came before; the next packet is a key frame."""
        ...


_TIME_BASE = Fraction(1, 1_000_000)
"""Unit of the time stamps of packets for hardware decoders, s."""


def open_decoder(name: str, track: VideoStream) -> PictureDecoder:
    """Open a hardware decoder for a track of video. It may hang, or end the process.

    Args:
        name: of `DECODERS`.
        track: its context is not changed.

    Raises:
        DecoderError: there is no such decoder here, or it is not for this codec.
    """
    known = track.codec_context
    codec = known.name
    if codec != DECODERS[name]:
        raise DecoderError(f"it is for {DECODERS[name]}; the camera sends {codec}")
    if not _has_nodes():
        raise DecoderError("there is no such device: no /dev/video*")
    try:
        context = cast(VideoCodecContext, av.CodecContext.create(name, "r"))
    except ValueError as error:
        raise DecoderError(f"FFmpeg cannot open it: {error}") from None
    context.extradata, context.width, context.height = known.extradata, known.width, known.height
    # Without it, FFmpeg's V4L2 decoders lose the time stamps; what a stamp counts is all the same to them.
    time_base = f"{_TIME_BASE.numerator}/{_TIME_BASE.denominator}"
    context.options = {"pkt_timebase": time_base, "max_pixels": str(LARGEST_PIXELS)}
    try:
        context.open()
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DecoderError(f"no device of this board decodes {codec}: {reason}") from None
    return context


def _has_nodes() -> bool:
    return any(Path("/dev").glob("video*"))


def small_picture(picture: VideoFrame) -> Array:
    """Return a picture in small, RGB, int16 [36, 64, 3]."""
    small = picture.reformat(width=64, height=36, format="rgb24", threads=1)
    return small.to_ndarray().astype(np.int16)


def picture_difference(one: Array, other: Array) -> float:
    """Return the mean difference of two small pictures, 0..255."""
    return float(np.abs(one - other).mean())


_DIFFERENCE = 10.0
"""Mean difference of the first picture to the software decoder's, of 255, beyond which a decoder is wrong."""
_SILENT_PACKETS, _SILENT_S = 40, 1.0
"""A decoder that gives no picture for so many packets, and so long, has failed."""
_OPAQUE = 1500
"""Most packets whose pictures are awaited."""
_STEP = 40_000
"""Distance of the time stamps of packets, in `_TIME_BASE`: drivers may expect a usual rate."""
_FAILED: set[str] = set()
"""Decoders that have failed in this process, which are not opened again."""


def usable_decoder(choice: str, codec: str) -> str:
    """Return the name of the decoder to use; empty: there is none for the codec here, or it has failed before.

    Args:
        choice: of `DECODERS`; or `auto`: the one for the codec, if this board has a device that may be it.
        codec: FFmpeg's name.
    """
    if choice == "auto":
        choice = next((name for name, own in DECODERS.items() if own == codec and _has_nodes()), "")
    return "" if choice in _FAILED else choice


class HardwareDecoder:
    """Decodes a camera with a hardware decoder, and in software after that has failed.

    It has failed when it reports an error, does not answer, keeps giving no picture, or shows the first key frame
    differently than the software decoder. Software then goes on from the next key frame. The decoder runs in a
    thread of its own, which is left behind if it hangs. For one thread.

    Attributes:
        name: of the hardware decoder; empty: software decodes.
    """

    def __init__(
        self, name: str, track: VideoStream, shown: str, software: SoftwareDecoder, answer_s: float
    ) -> None:
        """Open the decoder in its thread.

        Args:
            name: of `DECODERS`.
            track: of the camera.
            shown: name of the source, for the log.
            software: decodes the first key frame, too, and everything after a failure.
            answer_s: longest time until it has taken a packet, s; three times that for its opening and first one.
        """
        self.name, self._shown, self._software, self._answer_s = name, shown, software, answer_s
        self._thread = _DecoderThread(lambda: open_decoder(name, track), name)
        self._expected: tuple[int | None, Array | None] | None = None
        """Time stamp and picture of the first key frame by the software decoder; None: it did not come yet."""
        self._stamp = self._silent = 0
        self._opaque: dict[int, object] = {}
        self._silent_s = 0.0
        self._waits = False
        """True while the software decoder lacks the packets before the next one, and waits for a key frame."""

    def decode(self, packet: Packet[Stream] | None) -> list[DecodedPicture]:
        """Decode the next packet; None: the end."""
        if not self.name:
            if self._waits and packet is not None and not packet.is_keyframe:
                return []
            self._waits = False
            return self._software.decode(packet)
        if packet is None:  # draining could wait for a driver; the opening is over
            return []
        try:
            return self._decoded(packet)
        except DecoderError as error:
            log.warning("%s: hardware decoder %s: %s; decoding in software", self._shown, self.name, error)
            _FAILED.add(self.name)
            self.close()
            self._forget()
            self._software.restart()
            self._waits = not packet.is_keyframe
            return [] if self._waits else self._software.decode(packet)

    def restart(self) -> None:
        """Forget what came before: the next packet is a key frame."""
        self._software.restart()
        if self.name:
            self._thread.flush()
        self._forget()

    def close(self) -> None:
        """Close the hardware decoder, as soon as it answers. May be called twice."""
        self._thread.end()
        self.name = ""

    def _decoded(self, packet: Packet[Stream]) -> list[DecodedPicture]:
        numbered = self._numbered(packet)
        if packet.is_keyframe and self._expected is None:
            first = [small_picture(picture.frame) for picture in self._software.decode_alone(packet)[:1]]
            self._expected = numbered.pts, first[0] if first else None
        pictures = []
        for frame in self._thread.decode(numbered, self._answer_s):
            # A driver keeps no opaque data, and may give pictures from before a restart.
            if (pts := cast(int, frame.pts)) in self._opaque:
                self._check(frame)
                pictures.append(DecodedPicture(frame, self._opaque.pop(pts)))
        self._watch(has_picture=bool(pictures))
        return pictures

    def _numbered(self, packet: Packet[Stream]) -> Packet[Stream]:
        """Return a copy whose time stamp tells its picture: a camera's may be missing, or come twice."""
        self._stamp += _STEP
        numbered: Packet[Stream] = Packet(bytes(packet))
        numbered.time_base, numbered.pts, numbered.dts = _TIME_BASE, self._stamp, self._stamp
        numbered.is_keyframe = packet.is_keyframe
        self._opaque[self._stamp] = packet.opaque
        while len(self._opaque) > _OPAQUE:
            self._opaque.pop(next(iter(self._opaque)))
        return numbered

    def _check(self, frame: VideoFrame) -> None:
        """Raise DecoderError if a picture is that of the first key frame, and looks different."""
        if self._expected is None or (expected := self._expected[1]) is None or frame.pts != self._expected[0]:
            return
        difference = picture_difference(small_picture(frame), expected)
        if difference > _DIFFERENCE:
            raise DecoderError(f"its pictures are wrong: they differ by {difference:.0f} of 255")

    def _watch(self, *, has_picture: bool) -> None:
        """Raise DecoderError after too many packets without a picture."""
        if has_picture or not self._silent:
            self._silent_s = time.monotonic()
        self._silent = 0 if has_picture else self._silent + 1
        if self._silent >= _SILENT_PACKETS and time.monotonic() - self._silent_s >= _SILENT_S:
            raise DecoderError(f"it gave no picture for {self._silent} packets")

    def _forget(self) -> None:
        self._silent, self._waits = 0, False
        self._opaque.clear()


_Answer = list[VideoFrame] | Exception


class _DecoderThread:
    """A hardware decoder in a thread of its own."""

    def __init__(self, make: Callable[[], PictureDecoder], name: str) -> None:
        self._requests: queue.SimpleQueue[Callable[[PictureDecoder], list[VideoFrame]] | None] = (
            queue.SimpleQueue()
        )
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._is_first = True
        threading.Thread(target=self._run, args=(make,), name=f"decode-{name}", daemon=True).start()

    def decode(self, packet: Packet[Stream], answer_s: float) -> list[VideoFrame]:
        """Decode a packet. Raises DecoderError if it fails, or there is no answer in time."""
        self._requests.put(lambda decoder: decoder.decode(packet))
        try:
            answer = self._answers.get(timeout=3.0 * answer_s if self._is_first else answer_s)
        except queue.Empty:
            raise DecoderError("it does not answer") from None
        self._is_first = False
        if isinstance(answer, DecoderError):
            raise answer
        if isinstance(answer, UNDECODED):
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
