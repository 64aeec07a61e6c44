"""Pictures of encoded video, decoded by PyAV; and video files."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from agent.capture.hardware.failover import DecodedPicture, FailoverDecoder
from agent.capture.media import Media, OpenError
from agent.capture.pictures.decoded import DecodedImage, PictureConverter
from agent.capture.source import Source, SourceListener, check_size, status
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.types import DeferredImage, Image

log = logging.getLogger(__name__)


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
        self._decoder = FailoverDecoder(media.video, self._shown)
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
        """Return the held picture, to be converted when it is used, unless it is in a driver's few buffers."""
        held = self._held
        if held is None or self._decoder.name:
            return None
        picture, form = DecodedImage(held, self._converter), (held.format.name, held.width, held.height)
        if form != self._converted:  # whether it can be converted is this thread's to find out
            picture.image()
            self._converted = form
        return picture

    def close(self) -> None:
        self._decoder.close()
        self._media.close()


def describe(media: Media) -> str:
    """Describe the size of a medium, and the rate that it announces where its format has one."""
    size = f"{media.width}x{media.height}"
    return f"{size} at {media.fps:g} fps" if media.fps and media.is_timed else size


_DEFAULT_FPS = 25.0
_COUNT_TOLERANCE = 0.02
"""Share by which a frame count may be wrong: containers without an index only estimate it."""


class VideoFile(Video):
    """Pictures of a video file, once or in a loop."""

    def __init__(self, address: SourceUri) -> None:
        super().__init__(open_file(address), address.masked)
        self._address, self._read, self._warned = address, 0, False
        self._expected = self._media.frames
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
        self._warn_if_short()
        if not self._address.options.loop:
            return False
        self._media.close()
        self._begin(open_file(self._address))
        self._read = 0
        return super().grab()

    def _warn_if_short(self) -> None:
        missing = self._expected - self._read
        if missing > max(2, _COUNT_TOLERANCE * self._expected) and not self._warned:
            self._warned = True
            log.warning(
                "%s: ended after %d of %d pictures: the file is cut off or damaged",
                self._shown,
                self._read,
                self._expected,
            )


def open_clip(address: SourceUri, stall_s: float) -> VideoFile:
    """Open a video file.

    Raises:
        SourceError: it is missing, cannot be read, or is no video.
    """
    return VideoFile(address)


def open_file(address: SourceUri) -> Media:
    """Open the medium of a video file. Raises SourceError: it is missing, cannot be read, or is no video."""
    path = Path(address.target)
    if status(address) is None:
        raise SourceError(f"{address.masked}: expected a video file; there is no {path.absolute()}")
    if path.is_dir():
        raise SourceError(
            f"{address.masked}: expected a video file; found a folder; for pictures write dir:{path}"
        )
    try:
        return Media(f"file:{path}", {})
    except OpenError as error:
        raise SourceError(f"{address.masked}: expected a video file; {_describe_content(path, error)}") from None


def _describe_content(path: Path, error: OpenError) -> str:
    if error.kinds:
        return str(error)
    if not path.is_file():
        return "found a device or pipe that gives no video"
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as problem:
        return f"it cannot be read: {problem.strerror}; check its owner and mode"
    if size == 0:
        return "found an empty file"
    return f"found {size:,} bytes that are none that FFmpeg can read: cut off, or another kind of file"
