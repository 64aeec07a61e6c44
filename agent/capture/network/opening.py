"""Opening of sources on the network: options of FFmpeg's demultiplexers, and its errors in words."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TypeVar

import av

from agent.capture.media import Media, OpenError, SoundMedia
from agent.capture.source import LARGEST_PIXELS
from agent.config.source_uri import SourceUri
from agent.errors import SoundAloneError, SourceError

_Medium = TypeVar("_Medium", Media, SoundMedia)
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (
        av.error.HTTPUnauthorizedError,
        "the server answers 401: it wants a user name and a password, or refuses the ones given; set "
        "capture.username and capture.password_file",
    ),
    (av.error.HTTPForbiddenError, "the server answers 403: it refuses this user"),
    (av.error.HTTPNotFoundError, "the server answers 404: it has no such path"),
    (av.error.HTTPClientError, "the server refuses it: check the path, and whether it has too many viewers"),
    (av.error.HTTPServerError, "the server fails, or serves no further viewer now"),
    (ConnectionRefusedError, "nothing listens there; check the port, and whether the camera is ready"),
)
_UNKNOWN_NAME = "no address is known for its host; check the name and the network"
_UNESCAPED = "; write / ? # and @ in a password as %2F %3F %23 and %40, or use capture.password_file"
_SILENT = "no stream comes in time; is the camera on, and on this network?"
_NO_STREAM = (
    "what it sends is not a stream that can be read; check scheme, port and path, and use the camera's MJPEG or "
    "RTSP address, not that of a page or a snapshot"
)
_PROBING = {"analyzeduration": "300000", "probesize": "100000", "max_pixels": str(LARGEST_PIXELS)}
"""Looking at 0.3 s (µs here) instead of 5 s of the stream opens a camera in 0.5 s instead of 2. Larger pictures
are not decoded for it."""
NO_DATAGRAM = "no datagram arrives over UDP: check the firewall (ports 5000 to 65000)"
_UDP_BYTES = 1024 * 1024
"""Buffer to ask the kernel for: a key frame comes at once."""
_RTSP = {"format_whitelist": "rtsp", "protocol_whitelist": "tcp,tls,udp,rtp,srtp"}
_HTTP_FORMATS = (
    *("mpjpeg", "mpegts", "mpeg", "flv", "live_flv", "hls", "h264", "hevc", "matroska", "mov", "asf", "avi"),
    *("ogg", "mp3", "aac", "flac", "wav"),
)
_HTTP = {
    "format_whitelist": ",".join(_HTTP_FORMATS),
    "protocol_whitelist": "http,https,httpproxy,tcp,tls,crypto",
}
"""A server may answer with any format. Lists of other addresses, such as SDP, would have this machine open ports
or files of the server's choice. HLS is the only one that cameras use, and its parts come by HTTP. Single pictures
are no stream."""


def demuxer_options(address: SourceUri) -> dict[str, str]:
    """Return the options with which a source on the network is opened."""
    if not address.scheme.startswith("rtsp"):
        return {**_PROBING, **_HTTP}
    options = {**_PROBING, **_RTSP, "rtsp_transport": address.rtsp_transport}
    return options | {"buffer_size": str(_UDP_BYTES)} if address.rtsp_transport == "udp" else options


def describe_encryption(address: SourceUri) -> str:
    """Return what to add to the description of a source with TLS: FFmpeg does not verify certificates unasked."""
    return ", certificate not verified" if address.scheme in ("rtsps", "https") else ""


def open_medium(kind: type[_Medium], address: SourceUri, stall_s: float, expected: str) -> _Medium:
    """Open a source on the network.

    Args:
        kind: `Media` or `SoundMedia`.
        address: of the source.
        stall_s: limit for each step of the opening, and for each packet, s; resolving the name may take longer.
        expected: what the source should have, for the message.

    Raises:
        SoundAloneError: it has sound, and no video.
        SourceError: it cannot be opened; says why.
    """
    began_s = time.monotonic()
    try:
        return kind(address.target, demuxer_options(address), stall_s)
    except OpenError as error:
        is_late = time.monotonic() - began_s >= stall_s
        why = str(error) if error.cause is None else _describe(error.cause, address, is_late=is_late)
        raised = SoundAloneError if error.kinds else SourceError
        raise raised(f"{address.masked}: expected {expected}; {why}") from None


def _describe(error: Exception, address: SourceUri, *, is_late: bool) -> str:
    """Return why a source was not opened, without FFmpeg's text, which may hold credentials."""
    for kind, why in _REFUSALS:
        if isinstance(error, kind):
            return why
    if getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
        other = "udp" if address.rtsp_transport == "tcp" else "tcp"
        over = f"the server answers 461: it does not send over {address.rtsp_transport.upper()}"
        return f'{over}; set capture.rtsp_transport = "{other}"'
    try:
        socket.getaddrinfo(address.host, None)
    except OSError:
        return _UNKNOWN_NAME + (_UNESCAPED if address.masked.endswith("***") else "")
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return f"it cannot be reached: {os.strerror(error.errno)}"
    return _SILENT if is_late else _NO_STREAM
