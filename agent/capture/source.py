"""Sources: a camera, a stream, a file or a folder, opened by its URI and read picture by picture.

v4l2:/dev/video0?size=1280x720&fps=30&format=MJPG   a camera on USB or CSI through V4L2
libcamera:0?size=1280x720&fps=30                     a Raspberry Pi's camera through Picamera2
rtsp://host:554/path   rtsps:// http:// https://     user and password: see `CaptureConfig`, or
rtsp://user:password@… file:clip.mp4?pace=realtime|fast&loop=1 dir:images/?pace=fast|realtime&fps=10&loop=1
jpg, png and bmp in order of their names test:?size=640x480&fps=10&frames=100&pace=fast       a moving pattern,
always the same

Sound has sources of its own: see `agent.capture.source`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from msgspec.structs import replace

from agent.config import secret_file
from agent.config.source_uri import SourceUri, opener, parse, parse_picture, parse_sound
from agent.config.stream import CaptureConfig
from agent.errors import SourceError, reason_of
from agent.types import Array, ChannelOrder, Image, Samples

# Files and folders that a source names: where what the system says of them becomes a `SourceError`.

SCHEMES = ("file", "dir", "wav")
"""Schemes of sources that are files or folders."""


def status(address: SourceUri) -> os.stat_result | None:
    """Return the status of the file or folder of a source; None: there is none.

    Raises:
        SourceError: it cannot be looked at; its cause is a PermissionError where a right is missing.
    """
    try:
        return Path(address.target).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL character
        raise SourceError(f"{address.masked}: cannot be read: {reason_of(error)}") from error


def exists(address: SourceUri) -> bool:
    """Return whether the file or folder of a source is there.

    Raises:
        SourceError: see `status`.
    """
    return status(address) is not None


# Logging in to a camera on the network: a user name and a password that do not stand in its URI.


def with_login(address: SourceUri, config: CaptureConfig) -> SourceUri:
    """Return the address with the configured user name and password in its target, which is never to be shown.

    The password is read from its file now: it may have been changed since the last time.

    Raises:
        SourceError: the file cannot be read, or the URI and the configuration do not go together.
    """
    if not (config.username or config.password_file):
        return address
    wrong = partial(_wrong, address)
    if not address.on_network:
        raise wrong("username", "and password_file are for rtsp:, rtsps:, http: and https:")
    parts = urlsplit(address.target, allow_fragments=False)
    if parts.password:
        raise wrong(
            "username", "or password_file is set, and the URI has a password, too: take it out of the URI"
        )
    if config.username and parts.username:
        raise wrong("username", "is set, and the URI names a user, too: take it out of the URI")
    user = config.username or unquote(parts.username or "")
    if not user:
        raise wrong("password_file", "is set but username is not")
    account = quote(user, safe="")
    if config.password_file:
        account += ":" + quote(_password(address, config.password_file), safe="")
    host = parts.netloc.rpartition("@")[2]
    return replace(address, target=parts._replace(netloc=f"{account}@{host}").geturl())


def _password(address: SourceUri, name: str) -> str:
    wrong = partial(_wrong, address, "password_file")
    return secret_file.read_password(secret_file.expand(name, wrong), wrong)


def _wrong(address: SourceUri, key: str, what: str) -> SourceError:
    return SourceError(f"{address.masked}: capture.{key} {what}")


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


Opener = Callable[[SourceUri, float], Source]
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
    if address.scheme in SCHEMES and not exists(address):
        raise SourceError(f"{address.masked}: no such file or folder: {Path(address.target).absolute()}")


def check_opens(uri: str) -> None:
    """Check that a file or folder can be opened, in the way that a stream opens it, and close it again.

    Nothing is opened that can block: no device, pipe, camera or microphone, and nothing on the network. Of a
    video file the first picture is decoded.

    Raises:
        SourceError: see `check_there`; or the file or folder does not hold what its kind of source reads.
    """
    check_there(uri)
    address = parse(uri)
    found = status(address) if address.scheme in SCHEMES else None
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


# Sources of sound: a microphone or a file, opened by its URI and read block by block.
#
# mic:default?rate=16000&channel=0       the microphone that the system prefers
# mic:3                                  by its number
# mic:USB PnP Sound                      by its name, or a part of it that only one has
# wav:speech.wav?pace=realtime|fast&loop=1&channel=left|right|mix|N     WAV, FLAC or OGG
#
# `rate` is what a microphone is asked for, if not for the rate that is wanted of it. Of several channels the mean
# is taken, unless `channel` names one.


class Block(NamedTuple):
    """What a source gives at once.

    Attributes:
        samples: N int16, one channel; none where nothing came for a moment.
        lost: samples that are missing right before them.
        captured_ns, read_ns: of the last sample, see `AudioChunk`; of a recording 0, since it counts by itself.
    """

    samples: Samples
    lost: int = 0
    captured_ns: int = 0
    read_ns: int = 0


class SoundSource(Protocol):
    """Sound, block by block. Used by one thread at a time.

    Attributes:
        live: it goes on by itself.
        paced: a recording that is to be played at its own pace.
        rate_hz: samples per second of what it gives. May change between two blocks.
        about: rate and channels, for people.
    """

    live: bool
    paced: bool
    rate_hz: int
    about: str

    def read(self) -> Block | None:
        """Wait for the next block, a fraction of a second at most; None at the end of a recording.

        Raises:
            SourceError: it broke.
        """
        ...

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


SoundOpener = Callable[[SourceUri, float, int], SoundSource]


def open_sound(uri: str, rate_hz: int, *, stall_s: float) -> SoundSource:
    """Open the source of sound behind a URI.

    Args:
        uri: see the module.
        rate_hz: that is wanted; it may give another.
        stall_s: a microphone that gives nothing for so long has failed, s.

    Raises:
        SourceError: the URI is wrong or one of pictures, or the source cannot be opened.
    """
    address = parse_sound(uri)
    return cast(SoundOpener, opener(address))(address, stall_s, rate_hz)


def mono(frames: Array, channel: int | None) -> Array:
    """One channel, N, of frames, N×C int16 or float32: the one of that number, or the mean of all, rounded."""
    if frames.shape[1] == 1 or channel is not None:
        picked: Array = np.ascontiguousarray(frames[:, channel or 0])
        return picked
    if frames.dtype != np.int16:
        return cast(Array, frames.mean(axis=1, dtype=frames.dtype))
    count = frames.shape[1]
    return cast(Array, ((frames.sum(axis=1, dtype=np.int32) + count // 2) // count).astype(np.int16))
