"""Why a source on the network is not opened; what a server may have this machine open, and take of its memory."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.network import demuxer_options
from agent.capture.source import open_source, with_login
from agent.config import CaptureConfig
from agent.config.source_uri import parse
from agent.errors import SourceError
from tests.support.certificates import make_certificates

_MULTIPART = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n--x\r\n"
_SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45678 RTP/AVP 96\n"
_JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
_ENDLESS = 1024 * 1024 * 1024
"""Bytes after which a server gives up."""
_READ = """
import contextlib, re, sys
from pathlib import Path
from agent.capture.source import open_source
with contextlib.suppress(Exception):
    open_source(sys.argv[1], stall_s=60.0).read(None)
# Not ru_maxrss, which begins at the memory of the process that has started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer every connection; give the port."""
    stopped = threading.Event()

    def run(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection)

    def accept(listener: socket.socket) -> None:
        while not stopped.is_set():
            with suppress(OSError):
                threading.Thread(target=run, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)


def pour(connection: socket.socket, sent: list[int]) -> None:
    """Send without end, and count."""
    piece = b"A" * 1024 * 1024
    while sum(sent) < _ENDLESS:
        connection.sendall(piece)
        sent.append(len(piece))


def test_the_transport_of_rtsp_is_configured() -> None:
    camera = parse("rtsp://camera/1")
    assert demuxer_options(camera)["rtsp_transport"] == "tcp"
    udp = with_login(camera, CaptureConfig(rtsp_transport="udp"))
    assert demuxer_options(udp)["rtsp_transport"] == "udp"
    assert "rtsp_transport" not in demuxer_options(parse("http://camera/1"))


def answering(data: bytes) -> Callable[[socket.socket], None]:
    """Answer each request with the same; nothing: keep silent."""

    def answer(connection: socket.socket) -> None:
        while connection.recv(4096):
            connection.sendall(data)
            if data.startswith(b"HTTP"):
                return

    return answer


def refusal(uri: str, stall_s: float = 60.0) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(uri, stall_s=stall_s)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("401 Unauthorized", "set capture.username and capture.password_file"),
        ("403 Forbidden", "403"),
        ("404 \x1b[31mRED\x1b[2J", "404"),
        ("453 Not Enough Bandwidth", "4XX"),
        ("503 Busy", "5XX"),
    ],
)
def test_what_a_server_refuses_is_told_and_shows_no_secret(scheme: str, status: str, why: str) -> None:
    data = f"{scheme.upper()}/1.0 {status}\r\nCSeq: 1\r\n\r\n".encode()
    with serving(answering(data)) as port:
        told = refusal(f"{scheme}://ann:secret@127.0.0.1:{port}/user=ann_password=secret")
    assert told.startswith(f"{scheme}://127.0.0.1:{port}: expected a video stream; ")
    assert why in told
    assert not [word for word in ("ann", "secret", "RED") if word in told]


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_port_that_nothing_listens_on_is_told_from_a_server_that_keeps_silent(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "Connection refused" in refusal(f"{scheme}://127.0.0.1:{port}/")
    with serving(answering(b"")) as port:
        assert "no stream comes in time" in refusal(f"{scheme}://127.0.0.1:{port}/", 0.3)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_name_without_an_address_is_told(scheme: str) -> None:
    assert "no address is known for its host; check the name" in refusal(f"{scheme}://camera.invalid/")


def test_what_may_be_a_part_of_a_password_is_not_shown() -> None:
    told = refusal("rtsp://admin:12/34@camera.invalid/x")
    assert "%2F" in told
    assert not [word for word in ("12", "34", "admin") if word in told]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_source_with_tls_says_that_its_certificate_is_not_verified(tmp_path: Path, scheme: str) -> None:
    make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    part = f"Content-Type: image/jpeg\r\nContent-Length: {len(_JPEG)}\r\n\r\n".encode() + _JPEG + b"\r\n--x\r\n"

    def answer(connection: socket.socket) -> None:
        if scheme == "https":
            connection = context.wrap_socket(connection, server_side=True)
        connection.recv(1000)
        connection.sendall(_MULTIPART + 20 * part)
        connection.recv(1)

    with serving(answer) as port:
        source = open_source(f"{scheme}://127.0.0.1:{port}/cam", stall_s=60.0)
        assert source.description == "64x48" + ", certificate not verified" * (scheme == "https")
        source.close()


@pytest.mark.parametrize(
    "body",
    [_SDP, b"ffconcat version 1.0\nfile /etc/hostname\n", b"<!DOCTYPE html><p>Log in", _JPEG, b""],
    ids=["sdp", "list of files", "page", "snapshot", "nothing"],
)
def test_what_is_no_stream_is_not_opened(body: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with serving(answer) as port, pytest.raises(SourceError, match="not a stream"):
        open_source(f"http://127.0.0.1:{port}/cam", stall_s=20.0)


def test_a_description_of_two_gigabytes_is_refused_at_once() -> None:
    sent: list[int] = []

    def answer(connection: socket.socket) -> None:
        while received := connection.recv(4096):
            number = re.search(rb"CSeq: *(\d+)", received)
            head = b"RTSP/1.0 200 OK\r\nCSeq: " + (number[1] if number else b"0") + b"\r\n"
            if not received.startswith(b"DESCRIBE"):
                connection.sendall(head + b"Public: DESCRIBE, SETUP, PLAY\r\n\r\n")
                continue
            connection.sendall(head + b"Content-Type: application/sdp\r\nContent-Length: 2000000000\r\n\r\n")
            pour(connection, sent)

    with serving(answer) as port, pytest.raises(SourceError):
        open_source(f"rtsp://127.0.0.1:{port}/cam", stall_s=60.0)
    assert sum(sent) < 64 * 1024 * 1024


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Type: image/jpeg\r\n\r\n\xff\xd8\xff\xe0",
        b"Content-Type: image/jpeg\r\nContent-Length: 2000000000\r\n\r\n\xff\xd8\xff\xe0",
    ],
    ids=["no length", "two gigabytes"],
)
def test_a_picture_without_end_takes_little_memory(head: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(_MULTIPART + head)
        pour(connection, [])

    with serving(answer) as port:
        done = subprocess.run(
            [sys.executable, "-c", _READ, f"http://127.0.0.1:{port}/cam"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(done.stdout) < 450, "MB at most"
