"""Source URIs: parsed and checked without opening anything, and masked before they are shown."""

from __future__ import annotations

import importlib
import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Meta, Struct

from agent.config.toml import Patience
from agent.errors import SourceError

Pace = Literal["realtime", "fast"]


class SourceOptions(Struct, frozen=True):
    """Options of all kinds of source; each kind takes the few that its scheme lists.

    Attributes:
        size: width and height, pixels; None: the source's own.
        fps: pictures per second; 0: the source's own.
        format: four characters, such as MJPG; empty: the device's own.
        pace: `realtime` plays as recorded, `fast` as fast as the consumer takes.
        loop: start again at the end.
        frames: number of pictures; 0: no end.
        rate: rate to ask a microphone for, Hz; 0: the wanted one.
        channel: of audio, from 0; None: the mean of all.
    """

    size: tuple[int, int] | None = None
    fps: float = 0.0
    format: str = ""
    pace: Pace = "realtime"
    loop: bool = False
    frames: int = 0
    rate: int = 0
    channel: int | None = None


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    size = int(width), int(height)
    if not all(16 <= side <= 16384 for side in size):
        raise ValueError(text)
    return size


def _number(kind: type[float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = kind(text)
        if not least <= number <= most:  # also refuses NaN
            raise ValueError(text)
        return number

    return read


def _format(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9 ]{4}", text):
        raise ValueError(text)
    return text.upper()


def _channel(text: str) -> float | None:
    named = {"mix": None, "left": 0, "right": 1}
    return named[text] if text in named else _number(int, 0, 63)(text)


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "size": (_size, "WIDTHxHEIGHT in pixels, each from 16 to 16384, such as 1280x720"),
    "fps": (
        _number(float, math.ulp(0.0), 1000),
        "a number of pictures per second over 0 and up to 1000, such as 15",
    ),
    "format": (_format, "four characters, such as MJPG or YUYV"),
    "pace": ({"realtime": "realtime", "fast": "fast"}.__getitem__, "realtime or fast"),
    "loop": ({"1": True, "0": False, "true": True, "false": False}.__getitem__, "1 or 0"),
    "frames": (_number(int, 1, math.inf), "a whole number of pictures from 1"),
    "rate": (_number(int, 4000, 384_000), "samples per second from 4000 to 384000, such as 16000"),
    "channel": (_channel, "mix, left, right, or a channel's number from 0 to 63"),
}


def _read_options(pairs: Sequence[tuple[str, str]], keys: Sequence[str], pace: Pace, shown: str) -> SourceOptions:
    """Parse the options of a query."""
    values: dict[str, Any] = {}
    for key, text in pairs:
        if key not in keys:
            raise SourceError(f"{shown}: expected a key among {', '.join(keys)}; found {key}")
        if key in values:
            raise SourceError(f"{shown}: expected {key} once; found it twice")
        read, expected = _READERS[key]
        try:
            values[key] = read(text)
        except (ValueError, KeyError):
            raise SourceError(f"{shown}: {key}: expected {expected}; found {text!r}") from None
    # What never ends is no replay: its times would run ahead of the clock without limit.
    return SourceOptions(**{"pace": "realtime" if values.get("loop") else pace} | values)


_AUTHORITY = re.compile(r"//([^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?")
_ACCOUNT = re.compile(r"[^/:?]*:.*@", re.DOTALL)
"""A user name, a password and a host without `//`. A path that looks like one may begin with `./`."""
_SECRET = re.compile(r"(?:pass|pwd|secret|token|key|auth)[^=&/]*=", re.IGNORECASE)
_HIDDEN = "***"
_NOT_A_URI = (
    "expected a host and a port up to 65535; in a user name or a password write / ? # @ : [ ] as %2F %3F %23 %40 "
    "%3A %5B %5D, or put the password into a file, see capture.password_file"
)


class Scheme(Struct, frozen=True):
    """One kind of source.

    Attributes:
        opener: `module:function` that opens its pictures; imported only when used. Empty: it gives none.
        sound_opener: the same of its sound, except of a camera on the network, see `agent.capture.camera_sound`.
        target: what stands behind the colon, and an example of it.
        keys: of the query.
        live: whether it continues unread: only the newest picture counts, and an outage is waited out.
        network: whether it is on another machine: its URI may hold secrets, and its query belongs to its server.
        pace: default of the key `pace`; with `loop=1` that is `realtime`.
        pattern: of the target.
    """

    opener: str
    target: str
    keys: tuple[str, ...] = ()
    live: bool = False
    sound_opener: str = ""
    network: bool = False
    pace: Literal["realtime", "fast"] = "realtime"
    pattern: str = r".+"


_STREAM = Scheme(
    "agent.capture.network:open_stream",
    "a host, such as //camera.local:554/path",
    live=True,
    network=True,
)
SCHEMES: dict[str, Scheme] = {
    "v4l2": Scheme(
        "agent.capture.local:open_camera",
        "a device, such as /dev/video0",
        ("size", "fps", "format"),
        live=True,
        pattern=r"/dev/.+",
    ),
    "libcamera": Scheme(
        "agent.capture.local:open_picamera",
        "a camera's number, such as 0",
        ("size", "fps"),
        live=True,
        pattern=r"\d+",
    ),
    "rtsp": _STREAM,
    "rtsps": _STREAM,
    "http": _STREAM,
    "https": _STREAM,
    "file": Scheme(
        "agent.capture.video:open_clip",
        "a video file, such as clip.mp4",
        ("pace", "loop"),
        sound_opener="agent.capture.sound_decoder:open_file_sound",
    ),
    "dir": Scheme(
        "agent.capture.local:open_pictures",
        "a folder of pictures, such as images/",
        ("pace", "fps", "loop"),
        pace="fast",
    ),
    "test": Scheme(
        "agent.capture.local:open_pattern",
        "nothing, as in test:?size=640x480",
        ("size", "fps", "frames", "pace"),
        pattern=r"",
    ),
    "mic": Scheme(
        "",
        "default, a microphone's number, or part of its name, such as USB PnP Sound",
        ("rate", "channel"),
        live=True,
        sound_opener="agent.capture.microphone:open_microphone",
    ),
    "wav": Scheme(
        "",
        "a WAV, FLAC or OGG file, such as speech.wav",
        ("pace", "loop", "channel"),
        sound_opener="agent.capture.audio_file:open_recording",
    ),
}
"""Every kind of source by its scheme."""


class SourceUri(Struct, frozen=True):
    """A parsed URI.

    Attributes:
        scheme: key of `SCHEMES`.
        target: path, device or number; for a stream the whole URI, credentials included: never show it.
        options: of the query; a stream's query belongs to its server.
        masked: the URI for messages, see `mask`.
        live: see `Scheme`.
        host: of a stream; empty for a source on this machine.
        rtsp_transport: of a stream by RTSP, see `CaptureConfig`.
    """

    scheme: str
    target: str
    options: SourceOptions
    masked: str
    live: bool
    host: str = ""
    rtsp_transport: Literal["tcp", "udp"] = "tcp"

    def __repr__(self) -> str:
        return f"SourceUri({self.masked})"  # keeps passwords out of logs and tracebacks

    @property
    def gives_pictures(self) -> bool:
        return bool(SCHEMES[self.scheme].opener)

    @property
    def gives_sound(self) -> bool:
        """True if it may give sound: a camera or a video file may turn out to have none."""
        return bool(SCHEMES[self.scheme].sound_opener) or self.on_network

    @property
    def on_network(self) -> bool:
        return SCHEMES[self.scheme].network

    @property
    def lossless(self) -> bool:
        """True if every picture or sample counts, however long the consumer takes."""
        return not self.live and self.options.pace == "fast"


def mask(uri: str) -> str:
    """Return a URI that may be shown: scheme, host and port of a network address, everything of other sources.

    A user name, a password, a path and a query may each hold a secret. If it is not certain which part is the
    host, as with an `@` behind it, `***` takes its place.
    """
    name, colon, rest = uri.strip().partition(":")
    scheme = name.lower()
    if scheme in SCHEMES and not SCHEMES[scheme].network:
        return f"{name}:{_HIDDEN}" if "://" in rest or _is_account(rest) else uri
    if not colon and not re.search(r"[@=?&]|//", uri):  # a path whose scheme is missing
        return uri
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not rest.startswith("//"):
        return f"{name}:" if colon and not rest else _HIDDEN
    return f"{name}://{_shown_host(rest)}"


def _is_account(rest: str) -> bool:
    """Return True if the rest of a URI is a network address, which may have a user name before its host."""
    found = _AUTHORITY.match(rest)
    if found is None:
        return _ACCOUNT.match(rest) is not None
    return bool(found[1]) and "@" in rest


def _shown_host(rest: str) -> str:
    found = _AUTHORITY.match(rest)
    assert found is not None
    host = found[1].rpartition("@")[2]
    # Behind an unescaped / ? or # in a password, what looks like the host is a part of the password.
    return host if "@" not in found[2] and _HOST.fullmatch(host) else _HIDDEN


def holds_secret(uri: str) -> bool:
    """Return True if a URI has a password, or something like one in its path or query."""
    name, _, rest = uri.strip().partition(":")
    scheme, found = SCHEMES.get(name.lower()), _AUTHORITY.match(rest)
    if found is None or scheme is None or not scheme.network:
        return False
    account = found[1].rpartition("@")[0]
    return bool(account.partition(":")[2] or "@" in found[2] or _SECRET.search(found[2]))


def parse(uri: str) -> SourceUri:
    """Parse a URI.

    Raises:
        SourceError: scheme, target or query is unknown; names the nearest that is known.
    """
    shown = mask(uri)
    try:
        parts = urlsplit(uri, allow_fragments=False)
        scheme = SCHEMES.get(parts.scheme)
        host, _ = (parts.hostname, parts.port) if scheme is not None and scheme.network else ("", 0)
    except ValueError:  # whose text quotes what may be a password
        raise SourceError(f"{shown}: not a URI: {_NOT_A_URI}") from None
    if scheme is None:
        raise SourceError(_unknown(uri, parts.scheme))
    if scheme.network:
        if not host:
            raise SourceError(f"{shown}: expected {parts.scheme}: and {scheme.target}; it names no host")
        if not _can_be_resolved(host):
            raise SourceError(f"{shown}: expected a host whose parts between dots have 1 to 63 characters")
        return SourceUri(parts.scheme, uri, SourceOptions(), shown, live=True, host=host)
    return _local(parts, scheme, shown)


def _can_be_resolved(host: str) -> bool:
    """Return False for a name that Python cannot encode as the name service wants it: see RFC 1035, 2.3.4."""
    try:
        return ":" in host or bool(host.encode("idna"))
    except UnicodeError:
        return False


def opener(address: SourceUri) -> Callable[..., object]:
    """Import and return the function that opens the pictures of this kind of source."""
    return _import(SCHEMES[address.scheme].opener)


def sound_opener(address: SourceUri) -> Callable[..., object]:
    """Import and return the function that opens the sound of this kind of source."""
    return _import(SCHEMES[address.scheme].sound_opener)


def import_openers() -> None:
    """Import what opens files and folders, as far as it is installed; later this process may not be able to."""
    for scheme in SCHEMES.values():
        for name in (scheme.opener, scheme.sound_opener):
            if name and not scheme.live:
                with suppress(ImportError):
                    _import(name)


def _import(path: str) -> Callable[..., object]:
    module, _, function = path.partition(":")
    return cast(Callable[..., object], getattr(importlib.import_module(module), function))


def parse_picture(uri: str) -> SourceUri:
    """Parse the URI of a source of pictures.

    Raises:
        SourceError: see `parse`; or the source gives audio.
    """
    address = parse(uri)
    if not address.gives_pictures:
        raise SourceError(f"{address.masked}: expected a source of pictures; {address.scheme}: gives sound")
    return address


def parse_sound(uri: str) -> SourceUri:
    """Parse the URI of a source of audio.

    Raises:
        SourceError: see `parse`; or the source gives pictures only.
    """
    address = parse(uri)
    if not address.gives_sound:
        sources = ", ".join(f"{name}:" for name, one in SCHEMES.items() if one.sound_opener or one.network)
        expected = f"expected a source of sound, one of {sources}"
        raise SourceError(f"{address.masked}: {expected}; {address.scheme}: gives pictures only")
    return address


def _local(parts: SplitResult, scheme: Scheme, shown: str) -> SourceUri:
    target = unquote(parts.netloc + parts.path)
    if shown.endswith(_HIDDEN):
        raise SourceError(
            f"{shown}: expected {scheme.target}; found an address on the network: write rtsp: or http:"
        )
    if not re.fullmatch(scheme.pattern, target):
        raise SourceError(f"{shown}: expected {parts.scheme}: and {scheme.target}; found {target or 'nothing'}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = _read_options(pairs, scheme.keys, scheme.pace, shown)
    return SourceUri(parts.scheme, target, options, shown, scheme.live)


def _unknown(uri: str, scheme: str) -> str:
    shown = mask(uri)
    if not scheme:
        examples = "v4l2:/dev/video0, rtsp://HOST/PATH, mic:default or file:clip.mp4"
        return f"{shown}: expected a URI with a scheme, such as {examples}; found none"
    return f"{shown}: expected one of {', '.join(f'{name}:' for name in SCHEMES)}; found {scheme}:"


DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_LOCAL = (".local", ".lan", ".home.arpa", ".internal")
"""Ends of names that only a local network resolves: RFC 6762, RFC 8375, and what routers and ICANN set aside."""


def is_local(host: str) -> bool:
    """Return True if a host name or address is this machine, or in the local network as far as it says.

    That is true of private and link-local addresses, names without a dot, and names like `camera.local`.
    Nothing is resolved.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or name.endswith(_LOCAL)
    return address.is_private or address.is_link_local or address.is_loopback


DecoderChoice = Literal["software", "auto", "h264_v4l2m2m", "hevc_v4l2m2m"]
"""Values of `capture.decoder`."""


class CaptureConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.capture]`: how the source is opened and watched.

    Attributes:
        stall_s: time without a frame after which the source is closed and reopened, s; at least 0.1.
        reopen_max_s: longest pause between two attempts to reopen, s; at least 0.1. Left out: 5 for a device and
            for a camera of the local network, 30 for other sources.
        max_fps: most frames per second that are processed; 0: all.
        username: user name for a network camera, in place of the one in its URI.
        password_file: file whose first line is the camera's password; `$CREDENTIALS_DIRECTORY`, which systemd
            sets, is expanded. It is read each time that the camera is opened.
        decode: which pictures of an encoded network camera are decoded: `auto`, a key frame now and then and all
            while something may happen, or where the sizes of packets would not show it; `saving`, the same also
            there; `full`, all; `keyframes`, key frames alone.
        decoder: what decodes all pictures of such a camera: `software`; `auto`, the board's V4L2 decoder,
            if it has one that gives the right pictures; or a hardware decoder by name.
            Where a hardware decoder fails, software goes on.
        rtsp_transport: how a camera sends by RTSP: `tcp`, over the connection, or `udp`.
    """

    stall_s: Patience = 10.0
    reopen_max_s: Patience | None = None
    max_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    username: str = ""
    password_file: str = ""
    decode: Literal["auto", "full", "keyframes", "saving"] = "auto"
    decoder: DecoderChoice = "software"
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
