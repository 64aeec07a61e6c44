"""Trials of decoders, each in a process of its own: it may hang or crash with the driver, or write what it likes.

The process decodes a clip with one decoder, and compares its pictures with the software decoder's.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from msgspec.structs import replace

from agent.capture.hardware_decoder import (
    SOFTWARE,
    DecoderError,
    DecoderTrial,
    PictureDecoder,
    candidates,
    open_decoder,
    picture_difference,
    small_picture,
)
from agent.child import LARGEST_REQUEST, ChildError, ChildProcess, encode, init_child, receive, send
from agent.errors import NO_JSON, reason_of
from agent.structs import from_json
from agent.text import plain
from agent.types import Array

_WITHIN_S = 60.0
"""Time limit of a trial, s."""
_LARGEST = 16 * 1024
_MODULE = "agent.capture.decoder_trial"
_PICTURES, _FPS, _SIZE = 60, 15, (640, 480)
"""Number, rate and size of the pictures that are encoded where a trial is given no video."""
_ENCODERS = {"h264": "libx264", "hevc": "libx265"}
_DIFFERENCE = 4.0
"""Mean difference of a picture, of 255, beyond which it is wrong."""
_MISSING = 0.9
"""Least share of the pictures that a decoder must give."""


def measure_decoders(
    codec: str, clip: bytes = b"", *, progress: Callable[[str], None] = lambda name: None
) -> tuple[DecoderTrial, ...]:
    """Try the software decoder and every hardware decoder for a codec, one after the other.

    Args:
        codec: FFmpeg's name.
        clip: file with one track of video, from a key frame on; empty: one is encoded.
        progress: called with the name of each before it is tried.
    """
    found = []
    for name in (SOFTWARE, *candidates(codec)):
        progress(name)
        found.append(run_trial(name, codec, clip))
    return tuple(found)


def run_trial(
    name: str, codec: str, clip: bytes = b"", within_s: float = _WITHIN_S, module: str = _MODULE
) -> DecoderTrial:
    """Try a decoder in a process that runs a module; whatever happens to that is why the decoder is refused."""
    trial = DecoderTrial(name, codec)
    try:
        process = ChildProcess(module)
    except OSError as error:
        return replace(trial, refused=f"its process cannot be started: {reason_of(error)}")
    try:
        answer = process.ask(encode(trial), clip, within_s=within_s, what="the trial", largest=_LARGEST)
        made = from_json(answer, DecoderTrial)
    except ChildError as error:
        return replace(trial, refused=f"it {plain(str(error))}")
    except NO_JSON as error:
        return replace(trial, refused=f"it sent an invalid answer: {plain(str(error))}")
    finally:
        process.end()
    return replace(made, name=name, codec=codec, refused=plain(made.refused))


def main(asked_by: int, answers_to: int, life: int) -> None:
    """Receive a request and a clip, and send the outcome. The arguments are descriptors, see `ChildProcess`."""
    init_child(life)
    os.nice(5)
    av.logging.set_level(None)
    asked = from_json(receive(asked_by), DecoderTrial)
    clip = receive(asked_by, largest=LARGEST_REQUEST)
    send(answers_to, encode(try_decoder(asked.name, asked.codec, clip)))
    os._exit(0)  # closing the device may hang


def try_decoder(
    name: str, codec: str, clip: bytes, open_hardware: Callable[[str, VideoStream], PictureDecoder] = open_decoder
) -> DecoderTrial:
    """Try one decoder.

    Args:
        name: of `DECODERS`, or `SOFTWARE`.
        codec: FFmpeg's name.
        clip: file with one track of video, from a key frame on; empty: one is encoded.
        open_hardware: opens a hardware decoder.
    """
    trial = DecoderTrial(name, codec)
    try:
        clip = clip or encode_clip(codec)
        with av.open(io.BytesIO(clip)) as container:
            track = container.streams.video[0]
            if name == SOFTWARE:
                return _measured(trial, _in_one_thread(track.codec_context), clip, {})
            decoder = open_hardware(name, track)
        return _measured(trial, decoder, clip, _expected(clip))
    except DecoderError as error:
        return replace(trial, refused=str(error))
    except (av.FFmpegError, OSError, ValueError, RuntimeError, IndexError) as error:
        return replace(trial, refused=f"failed: {getattr(error, 'strerror', None) or error}")


def encode_clip(codec: str) -> bytes:
    """Return a small clip of this codec, of a textured place in which something moves.

    Raises:
        DecoderError: this FFmpeg cannot encode it.
    """
    if (encoder := _ENCODERS.get(codec)) is None:
        raise DecoderError(f"there is no clip of {codec} to try it with")
    memory, (width, height) = io.BytesIO(), _SIZE
    random = np.random.default_rng(18)
    place = np.kron(
        random.integers(30, 220, (height // 16, width // 16, 3), np.uint8), np.ones((16, 16, 1), np.uint8)
    )
    try:
        with av.open(memory, "w", format="matroska") as container:
            track = cast(VideoStream, container.add_stream(encoder, rate=_FPS))
            track.width, track.height, track.pix_fmt = width, height, "yuv420p"
            track.codec_context.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "30"}
            for number in range(_PICTURES):
                picture = np.roll(place, 4 * number, axis=1)
                picture[180:300, 5 * number : 5 * number + 100] = (40, 80, 230)
                frame = VideoFrame.from_ndarray(picture, format="bgr24")
                frame.pts, frame.time_base = number, Fraction(1, _FPS)
                container.mux(track.encode(frame))
            container.mux(track.encode())
    except (av.FFmpegError, ValueError) as error:
        raise DecoderError(f"no clip of {codec} to try it with could be encoded: {error}") from None
    return memory.getvalue()


def _in_one_thread(context: VideoCodecContext) -> VideoCodecContext:
    context.thread_count, context.thread_type = 1, av.codec.context.ThreadType.NONE
    return context


def _packets(clip: bytes) -> Iterator[Packet[Stream] | None]:
    """Give the packets of a clip, and None at the end."""
    with av.open(io.BytesIO(clip), "r") as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield cast("Packet[Stream]", packet)
    yield None


def _expected(clip: bytes) -> dict[int, Array]:
    """Return the software decoder's pictures in small, by their time stamps."""
    found: dict[int, Array] = {}
    with av.open(io.BytesIO(clip)) as container:
        context = _in_one_thread(container.streams.video[0].codec_context)
        for packet in _packets(clip):
            for picture in _decoded(context, packet):
                if picture.pts is not None:
                    found[picture.pts] = small_picture(picture)
    return found


def _decoded(decoder: PictureDecoder, packet: Packet[Stream] | None) -> list[VideoFrame]:
    try:
        return decoder.decode(packet)
    except av.error.EOFError:
        return []


def _measured(
    trial: DecoderTrial, decoder: PictureDecoder, clip: bytes, expected: dict[int, Array]
) -> DecoderTrial:
    """Decode a clip; time that, and compare its pictures with those expected."""
    count, spent_s, cpu_s, differences = 0, 0.0, 0.0, []
    converter = VideoReformatter()
    for packet in _packets(clip):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        pictures = _decoded(decoder, packet)
        for picture in pictures:
            converter.reformat(picture, format="bgr24", threads=1)
        spent_s, cpu_s = spent_s + time.perf_counter() - began_s, cpu_s + time.process_time() - began_cpu_s
        count += len(pictures)
        differences += [_difference(picture, expected) for picture in pictures] if expected else []
    trial = replace(
        trial,
        pictures=count,
        ms=1e3 * spent_s / max(1, count),
        cpu_ms=1e3 * cpu_s / max(1, count),
        difference=max(differences, default=None),
    )
    return replace(trial, refused=_refusal(trial, len(expected)))


def _difference(picture: VideoFrame, expected: dict[int, Array]) -> float:
    known = expected.get(cast(int, picture.pts))
    return 255.0 if known is None else picture_difference(small_picture(picture), known)


def _refusal(trial: DecoderTrial, expected: int) -> str:
    if trial.pictures < _MISSING * expected or not trial.pictures:
        return f"it gave {trial.pictures} of {expected} pictures"
    if trial.difference is not None and trial.difference > _DIFFERENCE:
        return f"its pictures are wrong: one differs by {trial.difference:.0f} of 255"
    return ""


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
