"""What a server on the network may have this machine open, and how much memory that takes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from agent.capture.network.opening import demuxer_options
from agent.capture.source import open_source, with_login
from agent.config import CaptureConfig
from agent.config.source_uri import parse
from agent.errors import SourceError

_MULTIPART = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n--x\r\n"
_SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45678 RTP/AVP 96\n"
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


@pytest.mark.parametrize(
    "body", [_SDP, b"ffconcat version 1.0\nfile /etc/hostname\n"], ids=["sdp", "list of files"]
)
def test_a_list_of_other_addresses_is_not_opened(body: bytes) -> None:
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
