"""A diagnosis of a stream that cannot be opened: OpenCV only says that it cannot."""

from __future__ import annotations

import re
import socket
import ssl
from urllib.parse import urlsplit

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}

_ANSWERS = {
    "401": "it wants a user name and a password, or refuses the ones given",
    "403": "it refuses this user",
    "404": "it has no such path",
    "453": "it has no bandwidth left for another viewer",
    "503": "it serves no further viewer now",
}


def why_unreachable(uri: str, timeout_s: float) -> str:
    """Why a stream cannot be opened, as one clause; never with its credentials.

    Args:
        uri: rtsp, rtsps, http or https, with a host.
        timeout_s: of each step.
    """
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    where = f"{host}:{port}"
    try:
        status = _ask(uri, host, port, timeout_s)
    except socket.gaierror:
        return f"no address is known for {host}; check the name and the network"
    except ConnectionRefusedError:
        return f"nothing listens on {where}; check the port, and whether the camera is ready"
    except ssl.SSLError as error:
        return f"{where} does not speak TLS as expected: {error.reason}"
    except TimeoutError:
        return f"{where} does not answer; is the camera on, and on this network?"
    except OSError as error:
        return f"{where} cannot be reached: {error.strerror or error}"
    return _meaning(where, status)


def _ask(uri: str, host: str, port: int, timeout_s: float) -> str:
    """The status line of the answer, or less when it is none."""
    parts = urlsplit(uri)
    path = parts._replace(netloc=f"{host}:{port}")
    if parts.scheme.startswith("rtsp"):
        request = f"DESCRIBE {path.geturl()} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    else:
        target = path._replace(scheme="", netloc="").geturl() or "/"
        request = f"GET {target} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n"
    with socket.create_connection((host, port), timeout_s) as plain:
        if parts.scheme.endswith("s"):
            # Nothing secret is sent, and FFmpeg does not check certificates either.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return _exchange(secure, request)
        return _exchange(plain, request)


def _exchange(connection: socket.socket, request: str) -> str:
    connection.sendall(request.encode())
    return connection.recv(256).split(b"\r\n")[0].decode("latin-1")


def _meaning(where: str, status: str) -> str:
    """The status code in our words: the server's own may repeat the path that was asked for."""
    found = re.match(r"(?:RTSP|HTTP)/\S+ ([1-9]\d\d)(?!\S)", status)
    if found is None:
        return f"{where} answers, but not in this protocol; check scheme and port"
    code = found[1]
    if code == "200":
        return f"{where} answers, but with nothing to decode in time; check the path and the camera's codec"
    return f"{where} answers {code}: {_ANSWERS.get(code, 'check the path and the camera')}"
