"""Encode pictures as H.264 and sound as AAC, for clips of sources whose packets cannot be copied.

PyAV is loaded by the first encoder, always as `import av`: two threads that import modules of it at once, one of
them without the package, fail. The board's own encoder of H.264 is used where it works, else libx264.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.types import Frame, MediaPacket, MediaTrack

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.resampler import AudioResampler
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

log = logging.getLogger(__name__)

_HZ = 90000
"""Ticks per second of the pictures, as of RTP."""
_GROUP_NS = 2_000_000_000
"""Longest time from key frame to key frame, ns: clips begin at one."""
_BITS = 0.1
"""Bits per pixel of quality 75 of an encoder that is told its bit rate."""
_ENCODERS = ("h264_v4l2m2m", "libx264")
"""Encoders of H.264, the better first: hardware behind V4L2, software."""
_X264 = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
_HEADER = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_TRIED = 8
"""Pictures by which an encoder must have given one."""


def crf(quality: int) -> int:
    """Return libx264's constant rate factor for a quality of 1..100: 24 for 75, which looks like a JPEG of 75."""
    return round(51 - 0.36 * quality)


class PictureEncoder:
    """Encodes the frames of one stream as H.264. For one thread.

    Attributes:
        name: of FFmpeg's encoder in use; empty: none yet.
    """

    def __init__(self, max_width: int, quality: int, fps: float, encoders: tuple[str, ...] = _ENCODERS) -> None:
        """Prepare; the encoder is opened with the first frame, whose size it takes.

        Args:
            max_width: wider frames are scaled down, px.
            quality: 1..100.
            fps: pictures per second that are expected.
            encoders: that are tried, by FFmpeg's names.
        """
        self._max_width, self._quality, self._fps, self._names = max_width, quality, fps, deque(encoders)
        self.name = ""
        self._context: VideoCodecContext | None = None
        self._track: MediaTrack | None = None
        self._size = (0, 0)
        self._key_ns, self._last_pts = -_GROUP_NS, -1
        self._captured: dict[int, int] = {}

    def encode(self, frame: Frame) -> list[MediaPacket]:
        """Encode a frame; return the packets that are ready.

        Raises:
            BackendError: no encoder works.
        """
        while True:
            try:
                return list(self._encode(frame))
            except _errors() as error:
                self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """Go on to the next encoder."""
        refused, self._context, self._track = self._names.popleft(), None, None
        if not self._names:
            raise BackendError(f"pictures cannot be encoded as H.264: {refused}: {error}") from error
        log.debug("%s: %s; trying %s", refused, error, self._names[0])

    def _encode(self, frame: Frame) -> Iterator[MediaPacket]:
        planes = self._planes(frame)
        height, width = planes.shape[0] * 2 // 3, planes.shape[1]
        if self._context is None or self._size != (width, height):
            self._open(width, height)
        assert self._context is not None
        for packet in self._context.encode(self._picture(planes, frame.captured_ns)):
            data = bytes(packet)
            if self._track is None:
                self._track = _video_track(data, width, height)
            pts, dts = packet.pts, packet.dts
            yield MediaPacket(
                self._track,
                data,
                pts,
                dts,
                0,
                packet.is_keyframe,
                self._captured.pop(pts or 0, frame.captured_ns),
            )
        if len(self._captured) > _TRIED:
            raise ValueError(f"it gave nothing for {_TRIED} pictures")

    def _planes(self, frame: Frame) -> NDArray[np.uint8]:
        """Return a frame as planes of YUV 4:2:0, one above the other, no wider than wanted, its sides even."""
        import cv2

        height, width = frame.image.shape[:2]
        scale = min(1.0, self._max_width / width)
        size = max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2)
        image = frame.image
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        code = cv2.COLOR_BGR2YUV_I420 if frame.order == "bgr" else cv2.COLOR_RGB2YUV_I420
        planes: NDArray[np.uint8] = cv2.cvtColor(image, code)  # type: ignore[assignment]
        return planes

    def _picture(self, planes: NDArray[np.uint8], captured_ns: int) -> VideoFrame:
        import av

        made = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._last_pts = max(self._last_pts + 1, captured_ns * _HZ // 1_000_000_000)
        made.pts, made.time_base = self._last_pts, Fraction(1, _HZ)
        self._captured[self._last_pts] = captured_ns
        if captured_ns - self._key_ns >= _GROUP_NS:
            made.pict_type, self._key_ns = av.video.frame.PictureType.I, captured_ns
        return made

    def _open(self, width: int, height: int) -> None:
        import av

        self.name = name = self._names[0]
        made: Any = av.CodecContext.create(name, "w")
        made.width, made.height, made.pix_fmt = width, height, "yuv420p"
        made.time_base, made.framerate = Fraction(1, _HZ), Fraction(self._fps).limit_denominator(1000)
        made.gop_size, made.max_b_frames = 600, 0
        if name == "libx264":
            made.thread_count, made.options = 1, {**_X264, "crf": str(crf(self._quality))}
        else:
            made.bit_rate = round(width * height * self._fps * _BITS * self._quality / 75)
        made.open()
        self._context, self._size, self._track = made, (width, height), None
        self._key_ns = -_GROUP_NS
        self._captured.clear()


def _errors() -> tuple[type[Exception], ...]:
    import av

    return av.error.FFmpegError, ValueError


def _video_track(first: bytes, width: int, height: int) -> MediaTrack:
    """Return the track of an encoder's packets, from its first key frame, which has the parameter sets in it."""
    import av

    with av.open(io.BytesIO(first), format="h264") as parsed:
        memory = io.BytesIO()
        file = av.open(memory, "w", format="mp4", options=dict(_HEADER))
        track = file.add_stream_from_template(parsed.streams.video[0])
        track.time_base = Fraction(1, _HZ)
        file.start_encoding()
    return MediaTrack("video", "h264", (1, _HZ), memory.getvalue(), width, height)


def _sound_header(rate_hz: int, layout: str) -> bytes:
    """Return `ftyp` and `moov` of a fragmented MP4 with AAC alone."""
    import av

    memory = io.BytesIO()
    file = av.open(memory, "w", format="mp4", options=dict(_HEADER))
    file.add_stream("aac", rate=rate_hz, layout=layout)
    file.start_encoding()
    return memory.getvalue()


class SoundTranscoder:
    """Decodes sound that browsers do not play in MP4, such as G.711, and encodes it as AAC. For one thread."""

    def __init__(self, track: MediaTrack) -> None:
        """Open decoder and encoder.

        Raises:
            BackendError: there is no decoder for it.
        """
        import av

        rate_hz, layout = track.rate_hz, "stereo" if track.channels > 1 else "mono"
        try:
            decoder: Any = av.CodecContext.create(track.codec, "r")
            decoder.sample_rate, decoder.layout = rate_hz, layout
            decoder.open()
            encoder: Any = av.CodecContext.create("aac", "w")
            encoder.sample_rate, encoder.layout, encoder.format = rate_hz, layout, "fltp"
            encoder.time_base = Fraction(1, rate_hz)
            encoder.options = {"aac_coder": "fast"}  # a third of the work of the usual one
            encoder.bit_rate = 4 * rate_hz * (2 if track.channels > 1 else 1)
            encoder.open()
        except _errors() as error:
            raise BackendError(f"sound as {track.codec} cannot be recorded: {error}") from error
        self._decoder: AudioCodecContext = decoder
        self._encoder: AudioCodecContext = encoder
        frame_size = encoder.frame_size
        self._resampler: AudioResampler = av.AudioResampler("fltp", layout, rate_hz, frame_size=frame_size)
        self._rate_hz, self._source = rate_hz, track
        header = _sound_header(rate_hz, layout)
        self.track = MediaTrack("sound", "aac", (1, rate_hz), header, 0, 0, rate_hz, track.channels)

    def transcode(self, packet: MediaPacket) -> list[MediaPacket]:
        """Return the packets of AAC that are ready; one that cannot be decoded gives none."""
        import av

        made = av.Packet(packet.data)
        made.pts, made.dts = packet.pts, packet.dts
        made.time_base = Fraction(*packet.track.time_base)
        found = []
        try:
            for decoded in self._decoder.decode(made):
                for piece in self._resampler.resample(decoded):
                    found += self._encoder.encode(piece)
        except _errors():
            return []
        return [
            MediaPacket(self.track, bytes(one), one.pts, one.dts, one.duration or 0, True, packet.captured_ns)
            for one in found
        ]
