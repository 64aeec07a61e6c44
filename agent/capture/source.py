"""Sources: a camera, a stream, a file or a folder, opened by its URI and read picture by picture.

v4l2:/dev/video0?size=1280x720&fps=30&format=MJPG   a camera on USB or CSI through V4L2
libcamera:0?size=1280x720&fps=30                     a Raspberry Pi's camera through Picamera2
rtsp://host:554/path   rtsps:// http:// https://     user and password: see `CaptureConfig`, or rtsp://user:password@…
file:clip.mp4?pace=realtime|fast&loop=1
dir:images/?pace=fast|realtime&fps=10&loop=1         jpg, png and bmp in order of their names
test:?size=640x480&fps=10&frames=100&pace=fast       a moving pattern, always the same

Sound has sources of its own: see `agent.capture.sound`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from agent.capture import localfile
from agent.capture.login import with_login
from agent.capture.uri import Address, opener, parse, parse_picture
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.messages import ChannelOrder, Image


class Source(Protocol):
    """Pictures, one after the other. Used by one thread at a time.

    Attributes:
        live: it goes on by itself, so only its newest picture counts.
        order: of the three channels.
        pace_s: from one picture to the next when replayed at realtime, s; 0: as fast as it is read.
        period_s: from one picture to the next where it was recorded, s; 0: unknown.
        about: size and rate, for people.
    """

    live: bool
    order: ChannelOrder
    pace_s: float
    period_s: float
    about: str

    def grab(self) -> bool:
        """Wait for the next picture and hold it; False at the end of a finite source.

        Raises:
            SourceError: it broke.
        """
        ...

    def picture(self, into: Image | None) -> Image:
        """The picture held, H×W×3 uint8: in the memory of `into` where shape and kind allow, else in new memory.

        Raises:
            SourceError: it cannot be decoded.
        """
        ...

    def read(self, into: Image | None) -> Image | None:
        """The next picture; None at the end. `grab` and `picture` in one.

        Raises:
            SourceError: it broke.
        """
        return self.picture(into) if self.grab() else None

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


Opener = Callable[[Address, float], Source]
_STALL_S, _RATE_HZ = 1.0, 16_000
"""Stall time, s, and rate, Hz, that openers of files and folders are given and do not use."""


def check_uri(uri: str) -> None:
    """Check everything that can be checked without opening.

    Raises:
        SourceError: what is wrong, and the nearest that is right.
    """
    parse(uri)


def check_there(uri: str) -> None:
    """`check_uri`, and that a file or folder exists. A camera or a server may still come.

    Raises:
        SourceError: what is wrong; its cause is a PermissionError where that is for want of a right.
    """
    address = parse(uri)
    if address.scheme in localfile.SCHEMES and not localfile.exists(address):
        raise SourceError(f"{address.shown}: no such file or folder: {Path(address.target).absolute()}")


def check_opens(uri: str) -> None:
    """Check that a file or folder can be opened, in the way that a stream opens it, and close it again.

    Nothing is opened that can block: no device, pipe, camera or microphone, and nothing on the network. Of a
    video file the first picture is decoded.

    Raises:
        SourceError: see `check_there`; or the file or folder does not hold what its kind of source reads.
    """
    check_there(uri)
    address = parse(uri)
    found = localfile.status(address) if address.scheme in localfile.SCHEMES else None
    if found is None or stat.S_IFMT(found.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return
    source: Any = opener(address)(address, _STALL_S, *([_RATE_HZ] if address.sound else []))
    try:
        if address.scheme == "file":
            source.grab()
    finally:
        source.close()


def check_login(uri: str, config: CaptureConfig) -> None:
    """Check that the user name and the password of a source can be used.

    Raises:
        SourceError: see `with_login`.
    """
    with_login(parse(uri), config)


def open_source(uri: str, *, stall_s: float, login: CaptureConfig | None = None) -> Source:
    """Open the source behind a URI.

    Args:
        uri: see the module.
        stall_s: opening, and waiting for a picture, may take so long where the source lets us limit it, s.
        login: user name and password file for a source on the network; None: as the URI says.

    Raises:
        SourceError: the URI is wrong or one of sound, or the source cannot be opened.
    """
    address = parse_picture(uri)
    if login is not None:
        address = with_login(address, login)
    return cast(Opener, opener(address))(address, stall_s)
