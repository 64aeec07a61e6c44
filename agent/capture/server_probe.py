"""Ask an RTSP or HTTP server why a stream does not open: FFmpeg does not pass its answer on."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import ssl
import time
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from msgspec import Struct, structs

from agent.config.source_uri import DEFAULT_PORTS, SourceUri, mask

_LARGEST_HEAD = 16 * 1024
_BEGINNING, _LARGEST_PICTURE = 64, 4 * 1024 * 1024
"""Bytes of a body to read: its beginning; or a whole picture whose length is not given."""
_LARGEST_SDP = 64 * 1024
_LONGEST_NUMBER = 18
"""Most digits of a plausible Content-Length."""
_REDIRECTS = ("301", "302", "303", "307", "308")
_MOST_REDIRECTS = 5
_PAGES = ("text/html", "application/xhtml+xml", "application/json", "text/plain")
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF....WEBP", re.DOTALL)
"""Beginnings of JPEG, PNG, GIF, BMP and WebP."""
_INSTEAD = "use the camera's MJPEG or RTSP address"
_ANSWERS = {
    "403": "it refuses this user",
    "404": "it has no such path",
    "453": "it has no bandwidth left for another viewer",
    "461": "it does not send in this way",
    "503": "it serves no further viewer now",
}
_TRANSPORTS = {"tcp": "RTP/AVP/TCP;unicast;interleaved=0-1", "udp": "RTP/AVP;unicast;client_port=50000-50001"}
"""Transports that SETUP asks for (RFC 2326, 12.39). Nothing is sent to these ports: the stream is not played."""
_AGAIN_S = 0.5
"""Time after which a server that serves nobody is asked again, s: it may be ending the session before."""
_UNESCAPED = (
    "; if there is a / ? # or @ in the password, write it as %2F %3F %23 %40, or use capture.password_file"
)


class _Answer(Struct, frozen=True):
    """A server's answer.

    Attributes:
        code: status code; empty if it is not HTTP or RTSP.
        fields: lower-case name and value of each header line.
        body: its beginning, after a GET or DESCRIBE that succeeded.
        ended: whether the body ended there.
    """

    code: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    ended: bool = False

    def field(self, name: str) -> str:
        """Return the first value of a header field; empty if it is missing."""
        return next((value for named, value in self.fields if named == name), "")

    @property
    def challenges(self) -> list[str]:
        """List the authentication methods that the server offers."""
        return [value for name, value in self.fields if name == "www-authenticate"]


class _Request(Struct, frozen=True):
    """Request to a server: method, requested URL without credentials, and further header lines."""

    method: str
    target: str
    lines: str = ""


class _Login(Struct, frozen=True):
    """Answers a server's challenge with the account of a URL. An answer by Digest is of one method and URL.

    Attributes:
        challenge: the server's, RFC 7617 or RFC 7616; that of RFC 2069 has no qop.
        user, password: the account.
    """

    challenge: str
    user: str
    password: str

    def line(self, method: str, target: str, count: int) -> str:
        """Return the header line of a request, the `count`-th with this challenge."""
        login = _authorization(self.challenge, method, target, self.user, self.password, count)
        return f"Authorization: {login}\r\n"


def why_unreachable(address: SourceUri, timeout_s: float) -> str:
    """Return why a stream cannot be opened, as one clause without credentials.

    Args:
        address: of a source on the network.
        timeout_s: limit for the whole, s; resolving the name may take longer.
    """
    uri = address.target
    return find_refusal(address, timeout_s) or (
        f"{_where(urlsplit(uri), uri)} answers, but with nothing to decode in time; check the path and the "
        "camera's codec"
    )


def find_refusal(address: SourceUri, timeout_s: float) -> str:
    """Ask a server for a stream without playing it: DESCRIBE and SETUP, or a GET whose body is read only in part.

    HTTP redirections are followed as FFmpeg follows them. Credentials go to another address only if the
    redirection names no host.

    Args:
        address: of a source on the network.
        timeout_s: limit for the whole, s; resolving the name may take longer.

    Returns:
        why the server or the network refuses it, as one clause without credentials; empty if it does not.
    """
    uri, until, where = address.target, time.monotonic() + timeout_s, ""
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(uri, allow_fragments=False)
        where = _where(parts, uri)
        answer = _answer(parts, _first_request(parts), uri, until)
        if isinstance(answer, str):
            return answer
        if not parts.scheme.startswith("http") and answer.code.startswith("2"):
            return _setup_problem(parts, answer, address, until)
        if not parts.scheme.startswith("http") or answer.code not in _REDIRECTS:
            return _explain_status(where, answer, has_account=parts.username is not None)
        uri, wrong = _redirection(uri, answer.field("location"))
        if wrong:
            return f"{where} answers {answer.code}: it redirects to an address {wrong}"
    return f"{where} redirects again and again; check the path"


def _setup_problem(parts: SplitResult, described: _Answer, address: SourceUri, until: float) -> str:
    """Return why the server does not send what it has described in the configured way; empty: it does."""
    # FFmpeg speaks TCP alone with TLS.
    transport = address.rtsp_transport if address.scheme == "rtsp" else "tcp"
    target = _control_url(parts, described)
    if not target:  # a description that only FFmpeg understands
        return ""
    request = _Request("SETUP", target, f"Transport: {_TRANSPORTS[transport]}\r\n")
    answer = _answer(parts, request, address.target, until)
    if isinstance(answer, str):
        return answer
    where = _where(parts, address.target)
    if answer.code == "461":
        other = "udp" if transport == "tcp" else "tcp"
        return (
            f"{where} answers 461: it does not send over {transport.upper()}; set capture.rtsp_transport = "
            f'"{other}"'
        )
    return _explain_status(where, answer, has_account=parts.username is not None)


def _control_url(parts: SplitResult, described: _Answer) -> str:
    """Return the URL of the first track of video, or else of the first track, of an SDP; empty: there is none.

    Source: RFC 2326, C.1.1.
    """
    base = described.field("content-base") or described.field("content-location") or _first_request(parts).target
    tracks = described.body.decode("latin-1").replace("\r", "").split("\nm=")[1:]
    chosen = next((one for one in tracks if one.startswith("video")), tracks[0] if tracks else "")
    control = re.search(r"^a=control:(\S+)", chosen, re.MULTILINE)
    if control is None or control[1] == "*":
        return base if tracks else ""
    if "://" in control[1]:
        return control[1]
    return base + ("" if base.endswith("/") else "/") + control[1]


def _answer(parts: SplitResult, request: _Request, uri: str, until: float) -> _Answer | str:
    """Return the server's answer, or why there is none."""
    where = _where(parts, uri)
    try:
        answer = _send_request(parts, request, until)
        if answer.code == "503" and until - time.monotonic() > 2.0 * _AGAIN_S:
            time.sleep(_AGAIN_S)
            answer = _send_request(parts, request, until)
        return answer
    except (socket.gaierror, UnicodeError):  # a UnicodeError: the host name cannot be encoded for DNS
        return f"no address is known for {where}; check the name and the network{_hint(uri)}"
    except ConnectionRefusedError:
        return f"nothing listens on {where}; check the port, and whether the camera is ready{_hint(uri)}"
    except ssl.SSLError as error:
        return f"{where} does not speak TLS as expected: {error.reason}"
    except TimeoutError:
        return f"{where} does not answer; is the camera on, and on this network?"
    except OSError as error:
        return f"{where} cannot be reached: {error.strerror or type(error).__name__}"


def _redirection(uri: str, location: str) -> tuple[str, str]:
    """Return where a redirection leads, and what is wrong with that address; empty: nothing."""
    try:
        onward = urljoin(uri, location)
        parts = urlsplit(onward, allow_fragments=False)
        host = parts.hostname
    except ValueError:
        return "", "that cannot be read; check the camera's settings"
    if not location or not host or parts.scheme not in ("http", "https"):
        return "", "that is neither http nor https"
    try:
        port = parts.port
    except ValueError:
        port = 0
    return (onward, "") if port != 0 else ("", "whose port is wrong; expected a port from 1 to 65535")


def _where(parts: SplitResult, uri: str) -> str:
    if mask(uri).endswith("***"):
        return "its host"
    return f"{parts.hostname}:{parts.port or DEFAULT_PORTS[parts.scheme]}"


def _hint(uri: str) -> str:
    return _UNESCAPED if mask(uri).endswith("***") else ""


def _explain_status(where: str, answer: _Answer, *, has_account: bool) -> str:
    """Describe a status code without its text: the server's own may repeat the requested path."""
    code = answer.code
    if not code:
        return f"{where} answers, but not in this protocol; check scheme and port"
    if code.startswith("2"):
        return _body_problem(where, answer)
    if code == "401":
        why = "it wants a user name and a password"
        why += (
            ", and refuses the ones given" if has_account else "; set capture.username and capture.password_file"
        )
    else:
        why = _ANSWERS.get(code, "check the path and the camera")
    return f"{where} answers {code}: {why}"


def _body_problem(where: str, answer: _Answer) -> str:
    """Describe what is wrong with the beginning of a body; empty: nothing that is known."""
    kind, body = answer.field("content-type").partition(";")[0].strip().lower(), answer.body
    if answer.field("transfer-encoding").lower() == "chunked":
        body = body.partition(b"\r\n")[2]
    whole = answer.ended or answer.field("content-length") != ""
    if not body:
        return f"{where} answers, but sends nothing; {_INSTEAD}" if answer.ended else ""
    if kind.startswith(("multipart/", "video/")):
        return ""
    if kind == "application/sdp" or body.startswith(b"v=0"):
        return f"{where} gives a description (SDP), not a stream; {_INSTEAD}"
    if _PICTURE.match(body):
        return f"this URL gives one picture, not a stream; {_INSTEAD}" if whole else ""
    if kind.startswith("image/"):
        return f"{where} announces a picture, but what it sends is none; check the path, or {_INSTEAD}"
    begins = body.lstrip().lower()
    if begins.startswith((b"<!doctype html", b"<html")) or (
        kind in _PAGES and not begins.startswith((b"#extm3u", b"--"))
    ):
        return f"{where} gives a page or text, not a stream; {_INSTEAD}"
    return ""


def _send_request(parts: SplitResult, request: _Request, until: float) -> _Answer:
    """Return the answer; if the server asks for credentials, send them in the way that it asks for."""
    answer = _exchange(parts, request, None, until)
    if answer.code != "401" or parts.username is None or not answer.challenges:
        return answer
    chosen = next((one for one in answer.challenges if one.lower().startswith("digest")), answer.challenges[0])
    return _exchange(
        parts, request, _Login(chosen, unquote(parts.username), unquote(parts.password or "")), until
    )


def _first_request(parts: SplitResult) -> _Request:
    """Return the first request: DESCRIBE, or GET."""
    if parts.scheme.startswith("rtsp"):
        return _Request("DESCRIBE", parts._replace(netloc=_host(parts)).geturl(), "Accept: application/sdp\r\n")
    return _Request("GET", parts._replace(scheme="", netloc="").geturl() or "/")


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _exchange(parts: SplitResult, asked: _Request, login: _Login | None, until: float) -> _Answer:
    address = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    with socket.create_connection(address, _remaining_s(until)) as plain:
        plain.settimeout(_remaining_s(until))
        if not parts.scheme.endswith("s"):
            return _converse(plain, parts, asked, login, until)
        # FFmpeg does not check certificates either: most cameras use self-signed ones.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain, server_hostname=address[0]) as secure:
            return _converse(secure, parts, asked, login, until)


def _converse(
    connection: socket.socket, parts: SplitResult, asked: _Request, login: _Login | None, until: float
) -> _Answer:
    """Send a request, and return the answer. End a session that was set up: a camera may have few of them."""
    connection.sendall(_request(parts, asked, login))
    answer = _read(connection, asked.method, until)
    if asked.method == "SETUP" and answer.code.startswith("2"):
        session = answer.field("session").partition(";")[0]
        ends = _Request("TEARDOWN", asked.target, f"Session: {session}\r\n")
        with suppress(OSError):
            connection.sendall(_request(parts, ends, login, count=2))
    return answer


def _request(parts: SplitResult, asked: _Request, login: _Login | None, count: int = 1) -> bytes:
    """Return a request as it is sent, the `count`-th of its connection."""
    if asked.method == "GET":
        head = f"GET {asked.target} HTTP/1.0\r\nHost: {_host(parts)}\r\n"
    else:
        head = f"{asked.method} {asked.target} RTSP/1.0\r\nCSeq: {count}\r\n"
    authorization = login.line(asked.method, asked.target, count) if login is not None else ""
    return f"{head}{asked.lines}{authorization}\r\n".encode("utf-8", "replace")


def _remaining_s(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _read(connection: socket.socket, method: str, until: float) -> _Answer:
    received = b""
    while b"\r\n\r\n" not in received and len(received) < _LARGEST_HEAD:
        connection.settimeout(_remaining_s(until))
        piece = connection.recv(4096)
        received += piece
        if not piece or not received.startswith((b"RTSP/"[: len(received)], b"HTTP/"[: len(received)])):
            break
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    found = re.match(r"(?:RTSP|HTTP)/\S+ ([1-9]\d\d)(?!\S)", status)
    named = [line.partition(":") for line in lines]
    answer = _Answer(
        found[1] if found else "", [(name.strip().lower(), value.strip()) for name, _, value in named]
    )
    if method == "SETUP" or not answer.code.startswith("2"):
        return answer
    return _with_body(connection, answer, body, until)


def _with_body(connection: socket.socket, answer: _Answer, body: bytes, until: float) -> _Answer:
    """Read until the body can be judged, or the time is over."""
    is_picture = answer.field("content-type").lower().startswith("image/")
    length = answer.field("content-length")
    enough = _LARGEST_PICTURE if is_picture and not length else _BEGINNING
    if answer.field("content-type").lower().startswith("application/sdp"):
        enough = _LARGEST_SDP if length else _BEGINNING
    if length.isdecimal() and len(length) <= _LONGEST_NUMBER:
        enough = min(enough, int(length))
    ended = length == "0"
    try:
        while len(body) < enough and not ended:
            connection.settimeout(_remaining_s(until))
            piece = connection.recv(65536)
            body, ended = body + piece, not piece
    except TimeoutError:  # a slow stream
        pass
    except OSError:
        ended = True
    return structs.replace(answer, body=body, ended=ended)


def _authorization(challenge: str, method: str, target: str, user: str, password: str, times: int) -> str:
    """Answer a challenge, the `times`-th time, see `_Login`."""
    kind, _, rest = challenge.partition(" ")
    if kind.lower() != "digest":
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    given = dict(re.findall(r'(\w+)\s*=\s*"?([^",]*)"?', rest))
    realm, nonce = given.get("realm", ""), given.get("nonce", "")
    algorithm = hashlib.sha256 if given.get("algorithm", "").upper().startswith("SHA-256") else hashlib.md5

    def digest(text: str) -> str:
        return algorithm(text.encode(), usedforsecurity=False).hexdigest()

    fields = {"username": user, "realm": realm, "nonce": nonce, "uri": target}
    between, count = nonce, f"{times:08x}"
    if "qop" in given:
        fields["cnonce"] = secrets.token_hex(8)
        between = f"{nonce}:{count}:{fields['cnonce']}:auth"
    fields["response"] = digest(
        f"{digest(f'{user}:{realm}:{password}')}:{between}:{digest(f'{method}:{target}')}"
    )
    fields |= {key: given[key] for key in ("opaque",) if key in given}
    quoted = ", ".join(f'{key}="{value}"' for key, value in fields.items())
    bare = f", qop=auth, nc={count}" if "qop" in given else ""
    named = f", algorithm={given['algorithm']}" if "algorithm" in given else ""
    return f"Digest {quoted}{bare}{named}"
