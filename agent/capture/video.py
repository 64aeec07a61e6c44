"""Pictures of encoded video, decoded by FFmpeg's software; and video files."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from msgspec import Struct

from agent.capture.media import Media, OpenError
from agent.capture.source import LARGEST_PIXELS, FilteredPictures, Source, SourceListener, check_size, status
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.types import DeferredImage, Image, Luma, Planes


def _graph(picture: VideoFrame) -> av.filter.Graph:
    """Return FFmpeg's scaler, without scaling. It takes the colour space and range of each picture from it."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1_000_000)
    )
    nodes = [graph.add("scale", "flags=bilinear"), graph.add("format", "bgr24"), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    return graph


_LUMA = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")
"""Formats whose first plane is the brightness in 8 bits."""
_PLANES = ("yuv420p", "yuvj420p")
"""Formats with three planes, of which two have a quarter of the pixels."""
_BT709 = {1: True, 2: False, 5: False, 6: False}
"""Colour spaces (ITU-T H.273, table 4) by whether they are BT.709, else BT.601: so FFmpeg takes 2, that of a
stream that names none."""


class PictureConverter:
    """Converts the pictures of one source to BGR, one at a time. Any thread may call it.

    FFmpeg's filters keep the memory of pictures that nobody has any more for the next ones. New memory for each
    picture, as of PyAV's `VideoReformatter`, has to be mapped and cleared page by page: 1080p then takes 3 to
    5 ms instead of 0.8.
    """

    def __init__(self, shown: str) -> None:
        """Prepare it; `shown` is the name of the source, for messages."""
        self._shown, self._lock = shown, threading.Lock()
        self._form: tuple[int, int, str] | None = None
        self._graph: av.filter.Graph | None = None
        self._keeps = True

    def convert(self, frame: VideoFrame, into: Image | None = None) -> Image:
        """Return a picture as BGR.

        It is in the memory of `into` only where FFmpeg's rows have gaps: FFmpeg converts into its own memory.

        Raises:
            SourceError: it is damaged.
        """
        form = frame.width, frame.height, frame.format.name
        try:
            with self._lock:
                if self._graph is None or form != self._form:
                    self._graph, self._form = _graph(frame), form
                graph, self._graph = self._graph, None  # after an error it may hold half of the work
                graph.vpush(frame)
                bgr = graph.vpull()
                self._graph = graph if self._keeps else None
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{self._shown}: expected a picture that can be decoded; found a damaged one"
            ) from error
        return _image(bgr, into)

    def keep(self, keeps: bool) -> None:
        """Keep memory for the next pictures, as at the beginning, or free it after each."""
        with self._lock:
            self._keeps = keeps
            if not keeps:
                self._graph = None


class DecodedImage:
    """A picture in its decoder's memory: a `DeferredImage`."""

    def __init__(self, frame: VideoFrame, converter: PictureConverter) -> None:
        self._frame, self._converter = frame, converter
        self._lock = threading.Lock()
        self._image: Image | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._frame.height, self._frame.width, 3

    def image(self) -> Image:
        """Return the picture, BGR.

        Raises:
            SourceError: it is damaged.
        """
        with self._lock:
            if self._image is None:
                self._image = self._converter.convert(self._frame)
            return self._image

    def luma(self) -> Luma | None:
        """Return the brightness in the decoder's memory; None: its format has none in 8 bits."""
        frame = self._frame
        if frame.format.name not in _LUMA:
            return None
        return Luma(_pixels(frame.planes[0], frame.height, frame.width), _is_full(frame))

    def planes(self) -> Planes | None:
        """Return the picture in the decoder's memory; None: its format or its colour space is another."""
        frame = self._frame
        if frame.format.name not in _PLANES or (is_bt709 := _BT709.get(frame.colorspace)) is None:
            return None
        luma, blue, red = frame.planes
        height, width = frame.height, frame.width
        rows, columns = (height + 1) // 2, (width + 1) // 2
        brightness = Luma(_pixels(luma, height, width), _is_full(frame))
        return Planes(brightness, _pixels(blue, rows, columns), _pixels(red, rows, columns), is_bt709)


def _is_full(frame: VideoFrame) -> bool:
    """Return True if a picture's values have the full range, see `Luma`."""
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith(("yuvj", "gray"))


def _pixels(plane: VideoPlane, height: int, width: int) -> Image:
    """Return a plane's memory without a copy; in one step, as this runs for each picture."""
    return np.ndarray((height, width), np.uint8, memoryview(plane), 0, (plane.line_size, 1))


def _image(bgr: VideoFrame, into: Image | None) -> Image:
    """Return a picture as an array that keeps its memory alive."""
    plane, row = bgr.planes[0], 3 * bgr.width
    padded: Image = np.frombuffer(memoryview(plane), np.uint8).reshape(bgr.height, plane.line_size)
    if plane.line_size == row:
        return padded.reshape(bgr.height, bgr.width, 3)
    shape = bgr.height, bgr.width, 3
    image = into if into is not None and into.shape == shape else np.empty(shape, np.uint8)
    np.copyto(image, padded[:, :row].reshape(shape))
    return image


_REOPENED = ("h264", "hevc")
"""Codecs whose parameters are in the packets, or in `extradata`, so that a decoder can be opened anew at each key
frame. Others need what only the track's own context has been told."""
_SKIPPED: dict[FilteredPictures, str] = {"all": "default", "keyframes": "nokey", "none": "all"}
"""FFmpeg's `skip_loop_filter`, which is read when a decoder is opened."""
UNDECODED = av.error.InvalidDataError, av.error.ArgumentError
"""Errors of a packet that is damaged, and of one whose picture is too large; whole ones may follow."""


class DecodedPicture(Struct, frozen=True):
    """A picture, and the opaque data of its packet.

    The data is not in the picture: PyAV forgets an object that two packets or pictures share as soon as it frees
    the first of them.
    """

    frame: VideoFrame
    opaque: object


class SoftwareDecoder:
    """Decodes the packets of a track in the calling thread. For one thread.

    A decoder of 1080p keeps 9 MB or more for the pictures that others are predicted from. Opening one for a key
    frame takes no longer, within 1 ms, than decoding it with one that is open.

    Where a camera does not say how many pictures are shown later than they come, FFmpeg learns it by losing one.
    A decoder that is opened anew is told what the one before has learned.
    """

    def __init__(self, track: VideoStream) -> None:
        self._track = track
        self._reopens = track.codec_context.name in _REOPENED
        self._context: VideoCodecContext | None = None
        self._parameters: bytes | None = None
        self._held_back = _held_back(track.codec_context)
        self._filtered: FilteredPictures = "all"
        self._before: list[DecodedPicture] = []

    def decode(self, packet: Packet[Stream] | None) -> list[DecodedPicture]:
        """Decode the next packet; None: give what is held back. A damaged packet gives nothing."""
        before, self._before = self._before, []
        return before + self._decode(packet)

    def decode_alone(self, packet: Packet[Stream]) -> list[DecodedPicture]:
        """Return the picture of a key frame at once, and forget what came before. The next one is a key frame."""
        self._flush()
        pictures = self._decode(packet) + self._decode(None)
        self._release()
        return pictures

    def restart(self) -> None:
        """Forget what came before: the next packet is a key frame."""
        self._before.clear()
        self._flush()

    def filter_pictures(self, filtered: FilteredPictures) -> None:
        """Apply the loop filter to these pictures from the next packet on, which is a key frame."""
        if filtered != self._filtered:
            self._before += self._decode(None)
            self._filtered = filtered
            self._release()

    def _decode(self, packet: Packet[Stream] | None) -> list[DecodedPicture]:
        if self._context is None:
            if packet is None:
                return []
            self._context = self._open()
        try:
            return [DecodedPicture(frame, frame.opaque) for frame in self._context.decode(packet)]
        except (*UNDECODED, av.error.EOFError):
            return []

    def _flush(self) -> None:
        if self._reopens and self._parameters != self._track.codec_context.extradata:
            self._release()  # the packet that brought the newest ones was perhaps left out
        elif self._context is not None:
            self._context.flush_buffers()

    def _release(self) -> None:
        """Forget what came before, and free the memory of pictures."""
        if not self._reopens:
            self._flush()
        elif self._context is not None:
            self._held_back = _held_back(self._context)
            self._context = None

    def _open(self) -> VideoCodecContext:
        context = known = self._track.codec_context
        options = {"max_pixels": str(LARGEST_PIXELS)}
        if self._reopens:
            context = cast(VideoCodecContext, av.CodecContext.create(known.name, "r"))
            self._parameters = known.extradata  # the newest ones: `Media` keeps them there
            context.extradata, context.width, context.height = self._parameters, known.width, known.height
            options |= {"skip_loop_filter": _SKIPPED[self._filtered], "has_b_frames": str(self._held_back)}
        context.options = options
        # FFmpeg's own choice of threads, one per core, costs 15 % more processor time and 2.5 MB more per stream
        # of 768×576 H.264, and holds back as many pictures as it has threads.
        context.thread_count, context.thread_type = 1, av.codec.context.ThreadType.NONE
        context.copy_opaque = True  # a packet's times go to its picture
        return context


def _held_back(context: VideoCodecContext) -> int:
    """Return how many pictures a decoder holds back to put them in order; 0 with PyAV 16, which does not tell."""
    return int(getattr(context, "reorder_depth", 0))


class Video(Source):
    """Pictures of an open medium, decoded by one thread."""

    order = "bgr"
    decoding = "full"

    def __init__(self, media: Media, shown: str) -> None:
        """Take an open medium.

        Raises:
            SourceError: its pictures are too large; the medium is closed.
        """
        self._shown = shown
        self._media = media
        self.live, self.pace_s, self.period_s = True, 0.0, 0.0
        self.description = describe(media)
        self._listener: SourceListener | None = None
        self._converter = PictureConverter(shown)
        self._converted: tuple[str, int, int] | None = None
        self._begin(media)

    def _begin(self, media: Media) -> None:
        """Read a medium from its first packet on."""
        try:
            check_size(self._shown, media.width, media.height)
        except SourceError:
            media.close()
            raise
        self._media = media
        self._packets: Iterator[Packet[Stream]] = media.packets()
        self._track = media.video.index
        self._decoder = SoftwareDecoder(media.video)
        self._decoded: deque[DecodedPicture] = deque()
        self._held: VideoFrame | None = None

    def follow(self, listener: SourceListener) -> None:
        self._listener = listener

    def grab(self) -> bool:
        self._held = None
        while not self._decoded:
            if (packet := self._next_packet()) is None:
                return False
            self._decode(packet)
        self._held = self._decoded.popleft().frame
        return True

    def _next_packet(self) -> Packet[Stream] | None:
        """Return the next packet of video, and hand each on; None at the end.

        Raises:
            av.FFmpegError: the connection broke, or nothing came in time. Its text may hold credentials.
        """
        packet = next(self._packets, None)
        if packet is None:
            return None
        began_ns = self._stamp(packet) if packet.size else 0
        listener = self._listener
        if not packet.size or listener is None:
            return packet
        if listener.wants_packets or (packet.stream_index != self._track and listener.wants_sound):
            listener.take_packet(self._media.media_packet(packet, self._packet_ns(packet), began_ns))
        return packet

    def _stamp(self, packet: Packet[Stream]) -> int:
        """Return `MediaPacket.began_ns` of a packet."""
        return 0

    def _packet_ns(self, packet: Packet[Stream]) -> int:
        """Return when a packet was captured, see `MediaPacket`."""
        return time.monotonic_ns()

    def _decode(self, packet: Packet[Stream]) -> None:
        """Decode a packet of video; an empty one gives what the decoder holds back."""
        if packet.stream_index == self._track:
            self._decoded += self._decoder.decode(packet if packet.size else None)

    def picture(self, into: Image | None) -> Image:
        """Return the held picture, see `PictureConverter.convert`."""
        assert self._held is not None
        return self._converter.convert(self._held, into)

    def deferred(self) -> DeferredImage | None:
        """Return the held picture, to be converted when it is used."""
        if (held := self._held) is None:
            return None
        picture, form = DecodedImage(held, self._converter), (held.format.name, held.width, held.height)
        if form != self._converted:  # whether it can be converted is this thread's to find out
            picture.image()
            self._converted = form
        return picture

    def close(self) -> None:
        self._media.close()


def describe(media: Media) -> str:
    """Describe the size of a medium, and the rate that it announces where its format has one."""
    size = f"{media.width}x{media.height}"
    return f"{size} at {media.fps:g} fps" if media.fps and media.is_timed else size


_DEFAULT_FPS = 25.0


class VideoFile(Video):
    """Pictures of a video file, once or in a loop."""

    def __init__(self, address: SourceUri) -> None:
        super().__init__(open_file(address), address.masked)
        self._address, self._read = address, 0
        self.live = False
        self.period_s = 1.0 / (self._media.fps or _DEFAULT_FPS)
        self.pace_s = self.period_s if address.options.pace == "realtime" else 0.0
        self._began_ns = self._sent_ns = 0

    def grab(self) -> bool:
        try:
            if not super().grab() and not self._again():
                return False
        except av.FFmpegError:  # a damaged container
            if not self._again():
                return False
        self._read += 1
        return True

    def _packet_ns(self, packet: Packet[Stream]) -> int:
        """Return the present; of a replay at its own pace the recorded time since its first packet."""
        now_ns = time.monotonic_ns()
        if not self._address.lossless:
            return now_ns
        self._began_ns = self._began_ns or now_ns
        return self._began_ns + round(self._read * self.period_s * 1e9)

    def _again(self) -> bool:
        if self._read == 0:
            raise SourceError(f"{self._shown}: expected pictures; found none that can be decoded; cut off?")
        if not self._address.options.loop:
            return False
        self._media.close()
        self._begin(open_file(self._address))
        self._read = 0
        return super().grab()


def open_clip(address: SourceUri, stall_s: float) -> VideoFile:
    """Open a video file.

    Raises:
        SourceError: it is missing, cannot be read, or is no video.
    """
    return VideoFile(address)


def open_file(address: SourceUri) -> Media:
    """Open the medium of a video file. Raises SourceError: it is missing, cannot be read, or is no video."""
    path, expected = Path(address.target), f"{address.masked}: expected a video file"
    if (found := status(address)) is None:
        raise SourceError(f"{expected}; there is no {path.absolute()}")
    if path.is_dir():
        raise SourceError(f"{expected}; found a folder; for pictures write dir:{path}")
    try:
        return Media(f"file:{path}", {})
    except OpenError as error:
        if error.cause is None:
            raise SourceError(f"{expected}; {error}") from None
        why = getattr(error.cause, "strerror", None) or type(error.cause).__name__
        raise SourceError(f"{expected}; found {found.st_size:,} bytes that cannot be read: {why}") from None
