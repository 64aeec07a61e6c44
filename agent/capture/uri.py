"""Source URIs: read and checked without opening anything, and masked before they are shown."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

from agent.capture.options import Options, read_options
from agent.errors import SourceError

_USERINFO = re.compile(r"(?<=//)([^/:@\s]*):(?!\d*(?:[/?#]|$))[^\s?#]*@")
_SECRET = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key|auth)[^=&\s]*=)[^&\s]+", re.IGNORECASE)


class Scheme(Struct, frozen=True):
    """One kind of source.

    Attributes:
        opener: `module:function` that opens it; imported when it is needed and not before.
        target: what stands behind the colon, and an example of it.
        keys: of the query.
        live: it goes on by itself: only the newest picture counts, and a loss is waited out.
        sound: it gives sound instead of pictures.
        pace: default of the key `pace`.
        pattern: of the target.
    """

    opener: str
    target: str
    keys: tuple[str, ...] = ()
    live: bool = False
    sound: bool = False
    pace: Literal["realtime", "fast"] = "realtime"
    pattern: str = r".+"


_SOUND_FILES = (".wav", ".flac", ".ogg")
_STREAM = Scheme("agent.capture.stream:open_stream", "a host, such as //camera.local:554/path", live=True)

SCHEMES: dict[str, Scheme] = {
    "v4l2": Scheme(
        "agent.capture.camera:open_camera",
        "a device, such as /dev/video0",
        ("size", "fps", "format"),
        live=True,
        pattern=r"/dev/.+",
    ),
    "libcamera": Scheme(
        "agent.capture.picamera:open_picamera",
        "a camera's number, such as 0",
        ("size", "fps"),
        live=True,
        pattern=r"\d+",
    ),
    "rtsp": _STREAM,
    "rtsps": _STREAM,
    "http": _STREAM,
    "https": _STREAM,
    "file": Scheme("agent.capture.clip:open_clip", "a video file, such as clip.mp4", ("pace", "loop")),
    "dir": Scheme(
        "agent.capture.pictures:open_pictures",
        "a folder of pictures, such as images/",
        ("pace", "fps", "loop"),
        pace="fast",
    ),
    "test": Scheme(
        "agent.capture.pattern:open_pattern",
        "nothing, as in test:?size=640x480",
        ("size", "fps", "frames", "pace"),
        pattern=r"",
    ),
    "mic": Scheme(
        "agent.capture.microphone:open_microphone",
        "default, a microphone's number, or part of its name, such as USB PnP Sound",
        ("rate", "channel"),
        live=True,
        sound=True,
    ),
    "wav": Scheme(
        "agent.capture.recording:open_recording",
        "a WAV, FLAC or OGG file, such as speech.wav",
        ("pace", "loop", "channel"),
        sound=True,
    ),
}
"""Every kind of source by its scheme."""


class Address(Struct, frozen=True):
    """A URI that was understood.

    Attributes:
        scheme: key of `SCHEMES`.
        target: path, device or number; for a stream the whole URI, credentials included: never show it.
        options: of the query; a stream's query belongs to its server.
        shown: the URI with its credentials masked, for messages.
        live, sound: see `Scheme`.
        host: of a stream; empty for what is on this machine.
    """

    scheme: str
    target: str
    options: Options
    shown: str
    live: bool
    sound: bool = False
    host: str = ""

    @property
    def keeps_all(self) -> bool:
        """Whether every picture or sample counts, however long the consumer takes."""
        return not self.live and self.options.pace == "fast"


def mask(text: str) -> str:
    """The text with the password of every URI in it replaced: `rtsp://user:***@host`."""
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def parse(uri: str) -> Address:
    """Understand a URI.

    Raises:
        SourceError: its scheme, target or query is not one of ours; names the nearest that is.
    """
    shown = mask(uri)
    try:
        parts = urlsplit(uri, allow_fragments=False)
        stream = parts.scheme in SCHEMES and SCHEMES[parts.scheme] is _STREAM
        host, _ = (parts.hostname, parts.port) if stream else ("", 0)
    except ValueError as error:
        raise SourceError(f"{shown}: not a URI: {mask(str(error))}") from None
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        raise SourceError(_unknown(uri, parts.scheme))
    if stream:
        if not host:
            raise SourceError(f"{shown}: expected {parts.scheme}: and {scheme.target}; it names no host")
        return Address(parts.scheme, uri, Options(), shown, live=True, host=host)
    return _local(parts, scheme, shown)


def opener(address: Address) -> Callable[..., object]:
    """The function that opens this kind of source; imports its module."""
    module, _, function = SCHEMES[address.scheme].opener.partition(":")
    return cast(Callable[..., object], getattr(importlib.import_module(module), function))


def parse_picture(uri: str) -> Address:
    """Understand the URI of a source of pictures.

    Raises:
        SourceError: see `parse`; or it gives sound.
    """
    address = parse(uri)
    if address.sound:
        raise SourceError(f"{address.shown}: expected a source of pictures; {address.scheme}: gives sound")
    return address


def parse_sound(uri: str) -> Address:
    """Understand the URI of a source of sound.

    Raises:
        SourceError: see `parse`; or it gives pictures.
    """
    address = parse(uri)
    if not address.sound:
        raise SourceError(
            f"{address.shown}: expected a source of sound, mic: or wav:; {address.scheme}: gives pictures"
        )
    return address


def _local(parts: SplitResult, scheme: Scheme, shown: str) -> Address:
    target = unquote(parts.netloc + parts.path)
    if not re.fullmatch(scheme.pattern, target):
        found = f"found {target}" if target else "found nothing"
        raise SourceError(f"{shown}: expected {parts.scheme}: and {scheme.target}; {found}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = read_options(pairs, scheme.keys, scheme.pace, shown)
    return Address(parts.scheme, target, options, shown, scheme.live, scheme.sound)


def _unknown(uri: str, scheme: str) -> str:
    """What to write instead."""
    shown = mask(uri)
    if not scheme:
        kind = "v4l2" if uri.startswith("/dev/") else "dir" if uri.endswith("/") else "file"
        kind = "wav" if uri.lower().endswith(_SOUND_FILES) else kind
        return f"{shown}: expected a URI with a scheme; found none; did you mean {kind}:{shown}?"
    near = get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}:?" if near else ""
    return f"{shown}: expected one of {', '.join(f'{name}:' for name in SCHEMES)}; found {scheme}:{hint}"
