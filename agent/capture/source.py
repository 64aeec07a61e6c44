"""Sources of pictures and audio, opened by URI.

Pictures:

    v4l2:/dev/video0?size=1280x720&fps=30&format=MJPG   camera on USB or CSI, through V4L2
    libcamera:0?size=1280x720&fps=30                    Raspberry Pi camera, through Picamera2
    rtsp://user:password@host:554/path                  or rtsps:, http:, https:; see also `CaptureConfig`
    file:clip.mp4?pace=realtime|fast&loop=1             video file
    dir:images/?pace=fast|realtime&fps=10&loop=1        jpg, png and bmp in order of their names
    test:?size=640x480&fps=10&frames=100&pace=fast      moving pattern, always the same

Audio, which `rtsp:`, `rtsps:`, `http:`, `https:` and `file:` may give, too:

    mic:default?rate=16000&channel=0                    the system's preferred microphone
    mic:3                                               by number
    mic:USB PnP Sound                                   by name, or a unique part of it
    wav:speech.wav?pace=realtime|fast&loop=1&channel=left|right|mix|N     WAV, FLAC or OGG

`rate` asks a microphone for another rate than the model's. Several channels are averaged unless `channel` names
one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from agent.config import CaptureConfig, servers
from agent.config.source_uri import SourceUri, opener, parse, parse_picture, sound_opener
from agent.errors import SourceError, reason_of
from agent.types import Box, ChannelOrder, DeferredImage, Image, MediaPacket

if TYPE_CHECKING:
    from agent.config.places import PrivacyMask


class DecodeMode(IntEnum):
    """How much of a stream is decoded."""

    NOTHING = 0
    """No picture at all: only the sound is of use."""
    PACKETS = 1
    """A key frame now and then; the sizes of packets tell when more is needed."""
    KEYFRAMES = 2
    """Every key frame."""
    FULL = 3
    """Every picture."""


DecodeChoice = Literal["auto", "full", "keyframes", "saving"]
"""Values of `capture.decode`."""
FilteredPictures = Literal["all", "keyframes", "none"]
"""Pictures that get the loop filter of H.264 and H.265."""


class Demand(Struct, frozen=True, gc=False):
    """Least that a consumer wants to be decoded.

    Attributes:
        mode: see `DecodeMode`.
        moved: whether it wants that because something moves in the newest picture.
        most: what is decoded at most, while that is left to the source: `KEYFRAMES` or `FULL`.
        exact: whether pictures must be as the camera meant them, because parts of them are looked at closely; see
            `agent.capture.decode_policy`.
    """

    mode: DecodeMode = DecodeMode.FULL
    moved: bool = False
    most: DecodeMode = DecodeMode.FULL
    exact: bool = False


FindHidden = Callable[[Image, ChannelOrder, int], Sequence[Box]]
"""Returns the parts of a picture that are to be blurred, fractions 0..1; takes its channel order and the time of
its capture, CLOCK_MONOTONIC in ns."""


class Privacy(Struct, frozen=True):
    """Masks and blurs of one stream.

    Attributes:
        masks: polygons that are black.
        find: finds what is to be blurred; None: nothing is.
        mask_model: False: models see the true picture.
    """

    masks: tuple[PrivacyMask, ...] = ()
    find: FindHidden | None = None
    mask_model: bool = True

    @property
    def hides(self) -> bool:
        """True if anything is hidden."""
        return bool(self.masks) or self.find is not None


NO_PRIVACY = Privacy()

_ON_DISK = ("file", "dir", "wav")
"""Schemes of sources that are files or folders."""


def status(address: SourceUri) -> os.stat_result | None:
    """Return the status of a source's file or folder, or None if there is none.

    Raises:
        SourceError: it cannot be accessed; the cause is a PermissionError if a right is missing.
    """
    try:
        return Path(address.target).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL character
        raise SourceError(f"{address.masked}: cannot be read: {reason_of(error)}") from error


def with_login(address: SourceUri, config: CaptureConfig) -> SourceUri:
    """Return the address with the configured user name and password in its target, and the transport of RTSP.

    Never show that target. What is configured counts more than what the URI has.
    The password file is read at each call, so that a changed password is used at the next opening.

    Raises:
        SourceError: the file cannot be read, or the URI and the configuration do not go together.
    """
    address = replace(address, rtsp_transport=config.rtsp_transport)
    if not (config.username or config.password_file):
        return address
    parts = urlsplit(address.target, allow_fragments=False)
    user = config.username or unquote(parts.username or "")
    if not address.on_network:
        raise _wrong(address, "username", "and password_file are for rtsp:, rtsps:, http: and https:")
    if not user:
        raise _wrong(address, "password_file", "is set but username is not")
    account, password = quote(user, safe=""), parts.password
    if config.password_file:
        wrong = partial(_wrong, address, "password_file")
        password = quote(servers.read_password(config.password_file, wrong), safe="")
    account += f":{password}" if password else ""
    host = parts.netloc.rpartition("@")[2]
    return replace(address, target=parts._replace(netloc=f"{account}@{host}").geturl())


def _wrong(address: SourceUri, key: str, what: str) -> SourceError:
    return SourceError(f"{address.masked}: capture.{key} {what}")


WAITS = "waiting for a key frame"
"""The picture for which a source waits while packets come, see `Source.waits_for`."""


class SourceListener(Protocol):
    """Takes the packets of an encoded source, decoded or not, and tells what is to be decoded."""

    @property
    def decode(self) -> DecodeChoice:
        """What the configuration says is to be decoded."""
        ...

    @property
    def demand(self) -> Demand:
        """What is to be decoded at least, if that is left to the source."""
        ...

    @property
    def wants_packets(self) -> bool:
        """Return True if `take_packet` is to be called with every packet."""
        ...

    @property
    def wants_sound(self) -> bool:
        """Return True if `take_packet` is to be called with packets of sound."""
        ...

    @property
    def decoder(self) -> str:
        """The value of `capture.decoder`."""
        ...

    def take_packet(self, packet: MediaPacket) -> None:
        """Take a packet, in the order of the source. Called by the thread that reads; must not wait."""
        ...


class Source(Protocol):
    """Pictures, one after the other. Used by one thread at a time.

    Attributes:
        live: whether it continues unread, so that only the newest picture counts.
        order: of the three channels.
        pace_s: time between pictures when replayed with `pace=realtime`, s; 0: as fast as they are read.
        period_s: time between pictures when recorded, s; 0: unknown.
        description: size and rate, for people.
        holds: whether a picture is held after `grab`; False only for a camera of which not all is decoded.
        captured_ns, read_ns: of the held picture, see `Frame`; 0: now.
        late: whether the held picture was decoded later than it came, and must not be replaced by a newer one.
        decoding: what is decoded now, `packets`, `keyframes` or `full`; empty: the source is not encoded.
        waits_for: why no picture can come yet although the source sends, for people; empty: it can.
        undecoded: number of pictures that were left encoded.
        inter_coded: number of pictures that can only be decoded after others: all but the key frames.
        has_sound: whether it has a track of sound that a listener can take.
    """

    live: bool
    order: ChannelOrder
    pace_s: float
    period_s: float
    description: str
    holds: bool = True
    captured_ns: int = 0
    read_ns: int = 0
    late: bool = False
    decoding: str = ""
    waits_for: str = ""
    undecoded: int = 0
    inter_coded: int = 0
    has_sound: bool = False

    def grab(self) -> bool:
        """Wait for the next picture and hold it. Return False at the end of a finite source.

        A camera of which not all is decoded returns also after a packet without a picture: see `holds`.

        Raises:
            SourceError: the source broke.
        """
        ...

    def picture(self, into: Image | None) -> Image:
        """Return the held picture, H×W×3 uint8; in the memory of `into` if that fits, else in new memory.

        Raises:
            SourceError: it cannot be decoded.
        """
        ...

    def deferred(self) -> DeferredImage | None:
        """Return the held picture, to be converted when it is used; None: there is only `picture`.

        Raises:
            SourceError: as `picture`.
        """
        return None

    def read(self, into: Image | None) -> Image | None:
        """Return the next picture, or None at the end: `grab` and `picture` in one.

        Raises:
            SourceError: the source broke.
        """
        while self.grab():
            if self.holds:
                return self.picture(into)
        return None

    def follow(self, listener: SourceListener) -> None:
        """Hand packets to a listener, and decode what it demands, from now on; of use to encoded sources."""
        return

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


_KEPT = 6
"""Buffers kept: one being read, up to four queued at `pace=fast`, one in use."""


class FrameBufferPool:
    """Frame memory to use again, so that no frame is allocated in steady state.

    Each method is a single list operation and needs no lock.
    """

    def __init__(self) -> None:
        self._free: list[Image] = []
        self._room = _KEPT

    def take(self) -> Image | None:
        """Return memory of an earlier frame, or None if the reader has to allocate."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, image: Image) -> None:
        """Keep the memory of a frame that is no longer in use, unless it belongs to a decoder."""
        if image.flags.owndata and len(self._free) < self._room:
            self._free.append(image)

    def close(self) -> None:
        """Free the memory, also that of frames that are given back from now on."""
        self._room = 0
        self._free.clear()


Opener = Callable[[SourceUri, float], Source]
_STALL_S, _RATE_HZ = 1.0, 16_000
"""Stall time, s, and rate, Hz: arguments that openers of files and folders ignore."""


def check_there(uri: str) -> None:
    """Check a URI, and that its file or folder exists. A camera or a server may appear later.

    Raises:
        SourceError: what is wrong; its cause is a PermissionError if a right is missing.
    """
    address = parse(uri)
    if address.scheme in _ON_DISK and status(address) is None:
        raise SourceError(f"{address.masked}: no such file or folder: {Path(address.target).absolute()}")


def check_opens(uri: str) -> None:
    """Open a file or folder as a stream does, and close it.

    Skips everything that can block: devices, pipes, cameras, microphones and the network. The first picture of a
    video file is decoded.

    Raises:
        SourceError: see `check_there`; or the file or folder does not hold what its kind of source reads.
    """
    check_there(uri)
    address = parse(uri)
    found = status(address) if address.scheme in _ON_DISK else None
    if found is None or stat.S_IFMT(found.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return
    if address.gives_pictures:
        source: Any = opener(address)(address, _STALL_S)
    else:
        source = sound_opener(address)(address, _STALL_S, _RATE_HZ)
    try:
        if address.scheme == "file":
            source.grab()
    finally:
        source.close()


def open_source(uri: str, *, stall_s: float, login: CaptureConfig | None = None) -> Source:
    """Open a source of pictures.

    Args:
        uri: see the module.
        stall_s: limit for opening and for each picture, s, if the source supports one.
        login: user name and password file for a source on the network; None: those of the URI.

    Raises:
        SourceError: the URI is wrong or names audio, or the source cannot be opened.
    """
    address = parse_picture(uri)
    if login is not None:
        address = with_login(address, login)
    return cast(Opener, opener(address))(address, stall_s)


LARGEST_PIXELS = 50_000_000
"""Largest picture: decoded to three bytes a pixel it takes 150 MB, and a stream holds several."""
_START = b"\xff\xd8"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive JPEG; cameras make no other kinds."""
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""
_PNG_START, _BMP_START = b"\x89PNG\r\n\x1a\n", b"BM"
_BMP_INFO_HEADER = 40
"""Bytes of the shortest BMP header whose sides have four bytes each."""


def check_size(shown: str, width: int, height: int) -> None:
    """Refuse a picture that is too large: decoding may need a hundred times the memory of the file.

    Args:
        shown: name of the source, for the message.
        width: of the picture, pixels; 0 where it is not known yet.
        height: of the picture, pixels; 0 where it is not known yet.

    Raises:
        SourceError: it has more than `LARGEST_PIXELS` pixels.
    """
    if width * height > LARGEST_PIXELS:
        raise SourceError(
            f"{shown}: its pictures have {width}x{height} pixels, {width * height / 1e6:.3g} megapixels; expected"
            f" at most {LARGEST_PIXELS / 1e6:.0f} megapixels; choose a smaller size"
        )


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, PNG or BMP in pixels; None: the data begins with no such header.

    Sources of the formats: ITU-T T.81, annex B, frame header; ISO/IEC 15948, IHDR; BITMAPINFOHEADER.
    """
    if data.startswith(_PNG_START) and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if (
        data.startswith(_BMP_START)
        and len(data) >= 26
        and int.from_bytes(data[14:18], "little") >= _BMP_INFO_HEADER
    ):
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)  # a negative height: the rows are stored from the top down
    return jpeg_size(data)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG in pixels; None: the data is no JPEG of a known kind."""
    if not data.startswith(_START):
        return None
    at = len(_START)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return (width, height) if width and height else None
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None
