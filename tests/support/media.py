"""Encoded video and sound for tests: files by PyAV's encoders, and their packets as a capture gives them.

Each picture tells its number by its brightness; a tone begins with each second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from agent.capture.media import Media
from agent.compute.av_encoding import PictureEncoder
from agent.storage.clips.packets import PacketTimeline, TimedPacket
from agent.types import Frame, MediaPacket
from tests.support.clip_pictures import SECOND, image, number_of

FPS = 25


def make_video(
    path: Path,
    seconds: float,
    *,
    codec: str = "libx264",
    sound: str = "",
    group: int = FPS,
    between: int = 0,
    size: tuple[int, int] = (64, 48),
) -> Path:
    """Write a video file.

    Args:
        path: of the file; its suffix decides about the container.
        seconds: length.
        codec: of the pictures, by FFmpeg's name of the encoder.
        sound: of the sound, likewise; empty: there is none. G.711 has 8 kHz, others 48 kHz.
        group: pictures from key frame to key frame.
        between: B-frames in a row.
        size: of the pictures, px.
    """
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream(codec, rate=FPS)
        video.width, video.height, video.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.gop_size, video.max_b_frames = group, between
        if codec.startswith("libx26"):
            fixed = f"keyint={group}:min-keyint={group}:scenecut=0:bframes={between}"
            video.options = {
                "preset": "ultrafast",
                "crf": "6",
                f"{codec[3:]}-params": fixed + ":log-level=none" * (codec == "libx265"),
            }
        heard: Any = None
        resampler: Any = None
        if sound:
            heard = file.add_stream(sound, rate=_rate(sound), layout="mono")
            resampler = _resampler(heard)
        for number in range(round(seconds * FPS)):
            planes: Any = cv2.cvtColor(image(number, *size), cv2.COLOR_BGR2YUV_I420)
            shown = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            shown.pts, shown.time_base = number, Fraction(1, FPS)
            file.mux(video.encode(shown))
            if heard is not None:
                _add_sound(file, heard, resampler, number)
        file.mux(video.encode(None))
        if heard is not None:
            file.mux(heard.encode(None))
    return path


def _rate(sound: str) -> int:
    return 8000 if sound.startswith("pcm") else 48000


def beep_at(at_s: float) -> bool:
    """True in the first fifth of each second, in which there is a tone; else it is silent."""
    return at_s % 1.0 < 0.2


def _add_sound(file: Any, heard: Any, resampler: Any, number: int) -> None:
    """Add the sound of one picture."""
    rate = heard.codec_context.sample_rate
    count = rate // FPS
    at = (np.arange(count) + number * count) / rate
    wave = np.where([beep_at(one) for one in at], np.sin(2 * np.pi * 1000 * at) * 0.5, 0.0)
    made = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
    made.sample_rate, made.pts, made.time_base = rate, number * count, Fraction(1, rate)
    for one in resampler.resample(made):
        file.mux(heard.encode(one))


def _resampler(heard: Any) -> Any:
    """Return what makes the frames that an encoder takes."""
    context = heard.codec_context
    context.open(strict=False)
    return av.AudioResampler(
        context.format, context.layout, context.sample_rate, frame_size=context.frame_size or None
    )


def packets_of(path: Path, begin_ns: int = SECOND) -> list[MediaPacket]:
    """The packets of a file, each captured when it is due."""
    media = Media(f"file:{path}", {})
    try:
        return list(_packets(media, begin_ns))
    finally:
        media.close()


def _packets(media: Media, begin_ns: int) -> Iterator[MediaPacket]:
    for packet in media.packets():
        if packet.size and packet.dts is not None and packet.time_base is not None:
            at_ns = begin_ns + max(0, round(float(packet.dts * packet.time_base) * SECOND))
            yield media.media_packet(packet, at_ns)


class Encoder:
    """Encodes pictures by number, as those of a V4L2 camera are: a key frame at least every two seconds."""

    def __init__(self, size: tuple[int, int] = (64, 48)) -> None:
        self._size = size
        self._encoder = PictureEncoder(1280, 90, 2.0, ("libx264",))

    def packet(self, number: int, at_ns: int) -> MediaPacket:
        """Return one, captured then."""
        frame = Frame(image(number, *self._size), "front", number, at_ns, datetime.now(UTC))
        (made,) = self._encoder.encode(frame)
        return made


def number_in(shown: av.VideoFrame) -> int:
    """Which picture a decoded one is, by its luminance."""
    plane = shown.planes[0]
    grey = np.frombuffer(memoryview(plane), np.uint8).reshape(shown.height, plane.line_size)[:, : shown.width]
    return number_of(np.full(1, (float(grey.mean()) - 16) * 255 / 219))


def timed(packets: Sequence[MediaPacket]) -> list[TimedPacket]:
    """Packets with their time stamps as the ring gives them."""
    clock = PacketTimeline()
    found = [clock.stamp(packet, number) for number, packet in enumerate(packets)]
    return [packet for packet in found if packet is not None]


def video_of(packets: Sequence[MediaPacket]) -> list[MediaPacket]:
    """Those of the pictures."""
    return [packet for packet in packets if packet.track.kind == "video"]
