"""A diagnosis of a stream on the network: OpenCV only says that it cannot be opened."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import ssl
import time
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from agent.capture.uri import mask

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_LARGEST_HEAD = 16 * 1024

_ANSWERS = {
    "403": "it refuses this user",
    "404": "it has no such path",
    "453": "it has no bandwidth left for another viewer",
    "503": "it serves no further viewer now",
}
_UNESCAPED = (
    "; if there is a / ? # or @ in the password, write it as %2F %3F %23 %40, or use capture.password_file"
)


class _Answer(Struct, frozen=True):
    """The head of a server's answer: its status code, empty if it speaks another protocol; its challenges."""

    code: str
    challenges: list[str]


def why_unreachable(uri: str, timeout_s: float) -> str:
    """Return why a stream cannot be opened, as one clause; never with its credentials.

    Args:
        uri: rtsp, rtsps, http or https, with a host.
        timeout_s: at most, for the whole; resolving the name may take longer.
    """
    return objection(uri, timeout_s) or (
        f"{_where(urlsplit(uri), uri)} answers, but with nothing to decode in time; check the path and the "
        "camera's codec"
    )


def objection(uri: str, timeout_s: float) -> str:
    """Ask a server for a stream without opening it: DESCRIBE, or the head of a GET.

    Args:
        uri: rtsp, rtsps, http or https, with a host.
        timeout_s: at most, for the whole; resolving the name may take longer.

    Returns:
        what the server or the network has against it, as one clause without credentials; empty: nothing.
    """
    parts = urlsplit(uri, allow_fragments=False)
    where, until = _where(parts, uri), time.monotonic() + timeout_s
    try:
        answer = _ask(parts, until)
    except socket.gaierror:
        return f"no address is known for {where}; check the name and the network{_hint(uri)}"
    except ConnectionRefusedError:
        return f"nothing listens on {where}; check the port, and whether the camera is ready{_hint(uri)}"
    except ssl.SSLError as error:
        return f"{where} does not speak TLS as expected: {error.reason}"
    except TimeoutError:
        return f"{where} does not answer; is the camera on, and on this network?"
    except OSError as error:
        return f"{where} cannot be reached: {error.strerror or type(error).__name__}"
    return _meaning(where, answer.code, has_account=parts.username is not None)


def _where(parts: SplitResult, uri: str) -> str:
    if mask(uri).endswith("***"):
        return "its host"
    return f"{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"


def _hint(uri: str) -> str:
    return _UNESCAPED if mask(uri).endswith("***") else ""


def _meaning(where: str, code: str, *, has_account: bool) -> str:
    """The status code in our words: the server's own may repeat the path that was asked for."""
    if not code:
        return f"{where} answers, but not in this protocol; check scheme and port"
    if code.startswith("2"):
        return ""
    if code == "401":
        why = "it wants a user name and a password"
        why += (
            ", and refuses the ones given" if has_account else "; set capture.username and capture.password_file"
        )
    else:
        why = _ANSWERS.get(code, "check the path and the camera")
    return f"{where} answers {code}: {why}"


def _ask(parts: SplitResult, until: float) -> _Answer:
    """The answer; a server that wants to know who we are is asked again, as it wants to be."""
    answer = _exchange(parts, "", until)
    if answer.code != "401" or parts.username is None or not answer.challenges:
        return answer
    method, target = _request(parts)
    chosen = next((one for one in answer.challenges if one.lower().startswith("digest")), answer.challenges[0])
    account = unquote(parts.username), unquote(parts.password or "")
    return _exchange(parts, f"Authorization: {_authorization(chosen, method, target, *account)}\r\n", until)


def _request(parts: SplitResult) -> tuple[str, str]:
    """The method, and what is asked for: without the account."""
    if parts.scheme.startswith("rtsp"):
        return "DESCRIBE", parts._replace(netloc=_host(parts)).geturl()
    return "GET", parts._replace(scheme="", netloc="").geturl() or "/"


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _exchange(parts: SplitResult, authorization: str, until: float) -> _Answer:
    method, target = _request(parts)
    if method == "DESCRIBE":
        head = f"DESCRIBE {target} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n"
    else:
        head = f"GET {target} HTTP/1.0\r\nHost: {_host(parts)}\r\n"
    request = f"{head}{authorization}\r\n".encode("utf-8", "replace")
    address = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    with socket.create_connection(address, _left(until)) as plain:
        plain.settimeout(_left(until))
        if not parts.scheme.endswith("s"):
            return _read(plain, request, until)
        # FFmpeg does not check certificates either: most cameras have signed their own.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain, server_hostname=address[0]) as secure:
            return _read(secure, request, until)


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _read(connection: socket.socket, request: bytes, until: float) -> _Answer:
    connection.sendall(request)
    said = b""
    while b"\r\n\r\n" not in said and len(said) < _LARGEST_HEAD:
        connection.settimeout(_left(until))
        piece = connection.recv(4096)
        said += piece
        if not piece or not said.startswith((b"RTSP/"[: len(said)], b"HTTP/"[: len(said)])):
            break
    status, *lines = said.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = re.match(r"(?:RTSP|HTTP)/\S+ ([1-9]\d\d)(?!\S)", status)
    named = [line.partition(":") for line in lines]
    challenges = [value.strip() for name, _, value in named if name.strip().lower() == "www-authenticate"]
    return _Answer(found[1] if found else "", challenges)


def _authorization(challenge: str, method: str, target: str, user: str, password: str) -> str:
    """The answer to a challenge: Basic (RFC 7617), or Digest (RFC 7616; that of RFC 2069 has no qop)."""
    kind, _, rest = challenge.partition(" ")
    if kind.lower() != "digest":
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    given = dict(re.findall(r'(\w+)\s*=\s*"?([^",]*)"?', rest))
    realm, nonce = given.get("realm", ""), given.get("nonce", "")
    algorithm = hashlib.sha256 if given.get("algorithm", "").upper().startswith("SHA-256") else hashlib.md5

    def digest(text: str) -> str:
        return algorithm(text.encode(), usedforsecurity=False).hexdigest()

    said = {"username": user, "realm": realm, "nonce": nonce, "uri": target}
    between, count = nonce, "00000001"
    if "qop" in given:
        said["cnonce"] = secrets.token_hex(8)
        between = f"{nonce}:{count}:{said['cnonce']}:auth"
    said["response"] = digest(f"{digest(f'{user}:{realm}:{password}')}:{between}:{digest(f'{method}:{target}')}")
    said |= {key: given[key] for key in ("opaque",) if key in given}
    quoted = ", ".join(f'{key}="{value}"' for key, value in said.items())
    bare = f", qop=auth, nc={count}" if "qop" in given else ""
    named = f", algorithm={given['algorithm']}" if "algorithm" in given else ""
    return f"Digest {quoted}{bare}{named}"
