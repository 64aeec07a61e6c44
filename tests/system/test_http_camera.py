from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.source import open_source
from agent.capture.streams import FrameStream
from agent.cli.checks import network
from agent.config import CaptureConfig, Config, StreamConfig
from agent.config.servers import MqttConfig
from agent.errors import SourceError
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import wait_for
from tests.support.running import ROOT, Vedette, health, states
from tests.support.running import camera as camera_of

OTHERS = {
    "/page": ("text/html", b"<!DOCTYPE html><html><p>Please log in</html>"),
    "/rubbish": ("image/jpeg", b"\x01\x02\x03\x04\x05"),
    "/picture": ("image/jpeg", cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()),
}
"""Responses that are no stream: content type and body."""


class Camera(BaseHTTPRequestHandler):
    """Sends JPEGs one after the other, as many network cameras do; `/short` ends after ten.

    `/gaps` sends an empty part after each picture.
    `/picture` is the URL of a snapshot, unless `server.streams` is set; `/moved` redirects to `/video`.
    """

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/video")
            self.end_headers()
            return
        self.server.asked = getattr(self.server, "asked", 0) + 1  # type: ignore[attr-defined]
        if self.path in OTHERS and not getattr(self.server, "streams", False):
            self.send_response(200)
            self.send_header("Content-Type", OTHERS[self.path][0])
            self.end_headers()
            self.wfile.write(OTHERS[self.path][1])
            return
        if self.path not in ("/video", "/short", "/gaps", *OTHERS):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        try:
            for _ in range(10 if self.path == "/short" else 2000):
                self.wfile.write(head + jpeg + b"\r\n")
                if self.path == "/gaps":
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 0\r\n\r\n\r\n")
                time.sleep(0.02)
        except OSError:
            pass  # the viewer has gone

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def camera(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(10):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("path", ["video", "gaps"])
def test_an_http_camera_gives_frames(camera: str, path: str) -> None:
    grabber = FrameStream("shed", f"{camera}/{path}", CaptureConfig(stall_s=20.0), on_change=print)
    grabber.start()
    frames = [grabber.take(5) for _ in range(10)]
    grabber.stop()
    assert all(frame is not None and frame.image.shape == (48, 64, 3) for frame in frames)
    assert frames[0] is not None
    assert abs(float(frames[0].image.mean()) - 90) < 3


def test_an_http_camera_that_ends_is_lost_and_opened_again(camera: str) -> None:
    news: list[str] = []
    config = CaptureConfig(stall_s=20.0, reopen_max_s=0.2)
    grabber = FrameStream("shed", f"{camera}/short", config, on_change=lambda state, _: news.append(state))
    grabber.start()
    deadline = time.monotonic() + 60
    while "running" not in news:
        assert time.monotonic() < deadline
        grabber.take(0.1)
    grabber.stop()
    assert news[:2] == ["lost", "running"]


def test_a_path_that_is_not_there_is_named(camera: str) -> None:
    with pytest.raises(SourceError, match="Server returned 404 Not Found"):
        open_source(f"{camera}/nothing", stall_s=20.0)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/video", ""),
        ("/moved", ""),
        ("/page", "not a stream"),
        ("/rubbish", "not a stream"),
        (
            "/picture",
            "not a stream that can be read; check scheme, port and path, and use the camera's MJPEG",
        ),
    ],
)
def test_the_doctor_and_a_run_agree(camera: str, tmp_path: Path, path: str, why: str) -> None:
    config = Config({"shed": StreamConfig(f"{camera}{path}", "nanodet")}, mqtt=MqttConfig(port=1))
    (told,) = [one for one in network.check_network(config, tmp_path) if one.name == "stream shed"]
    assert (told.state, why in told.value) == ("problem" if why else "ok", True)
    news: list[tuple[str, str]] = []
    grabber = FrameStream(
        "shed", f"{camera}{path}", CaptureConfig(stall_s=20.0), on_change=lambda *one: news.append(one)
    )
    grabber.start()
    deadline = time.monotonic() + 60
    while not (news if why else grabber.stats.frames > 3):
        assert time.monotonic() < deadline
        grabber.take(0.1)
    grabber.stop()
    assert [state for state, _ in news] == (["lost"] if why else [])
    assert all(why in reason for _, reason in news)


def test_the_url_of_a_snapshot_is_told_once_until_it_streams(server: ThreadingHTTPServer, camera: str) -> None:
    news: list[str] = []
    config = CaptureConfig(stall_s=20.0, reopen_max_s=0.05)
    grabber = FrameStream("shed", f"{camera}/picture", config, on_change=lambda state, _: news.append(state))
    grabber.start()

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            grabber.take(0.05)

    wait(lambda: getattr(server, "asked", 0) >= 5)
    assert news == ["lost"]
    assert grabber.stats.frames == 0
    server.streams = True  # type: ignore[attr-defined]
    wait(lambda: grabber.stats.state == "running")
    grabber.stop()
    assert news == ["lost", "running"]


class Large(BaseHTTPRequestHandler):
    """Sends pictures of 8000x8000 pixels; at `/later` after five small ones."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        small, large = (
            cv2.imencode(".jpg", np.zeros((side, side), np.uint8))[1].tobytes() for side in (64, 8000)
        )
        with suppress(OSError):
            for number in itertools.count():
                jpeg = small if self.path == "/later" and number < 5 else large
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("path", ["/", "/later"])
def test_a_camera_whose_pictures_are_too_large_is_lost_and_told(path: str) -> None:
    news: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Large)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}{path}"
    grabber = FrameStream("shed", uri, CaptureConfig(stall_s=20.0), on_change=lambda *one: news.append(one))
    grabber.start()
    wait_for(lambda: news)
    grabber.stop()
    server.shutdown()
    server.server_close()
    assert news[0][0] == "lost"
    assert "8000x8000 pixels, 64 megapixels; expected at most 50 megapixels" in news[0][1]
    assert bool(grabber.stats.frames) == (path == "/later")


class Huge(BaseHTTPRequestHandler):
    """Sends pictures whose head says 65520x65520 pixels."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = bytearray(cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes())
        at = jpeg.index(b"\xff\xc0")
        jpeg[at + 5 : at + 9] = b"\xff\xf0\xff\xf0"
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        with suppress(OSError):
            while True:
                self.wfile.write(head + jpeg + b"\r\n")
                time.sleep(0.02)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def test_pictures_that_the_decoder_refuses_for_their_size_are_told() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Huge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = open_source(f"http://127.0.0.1:{server.server_address[1]}/", stall_s=20.0)
    with pytest.raises(SourceError, match=r"65520x65520 pixels, .* expected at most 50 megapixels"):
        source.read(None)
    source.close()
    server.shutdown()
    server.server_close()


def test_a_camera_that_keeps_silent_holds_up_no_other_source(camera: str, clip: Path) -> None:
    news: list[tuple[str, str]] = []

    def grabber(uri: str) -> FrameStream:
        return FrameStream("shed", uri, CaptureConfig(stall_s=2), on_change=lambda *one: news.append(one))

    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = grabber(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        hanging.start()
        with silent.accept()[0] as connection:
            assert connection.recv(1), "the opening has begun"
            others = [grabber(f"{camera}/video"), grabber(f"file:{clip}?loop=true")]
            for other in others:
                other.start()
            first = [other.take(1.0) for other in others]
            for one in (*others, hanging):
                one.stop(wait=False)
    assert all(frame is not None for frame in first)
    assert news == []


def test_the_exact_reason_of_an_outage_is_told_when_it_is_known() -> None:
    news: list[tuple[str, str]] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = CaptureConfig(stall_s=0.5, reopen_max_s=0.1)
        grabber = FrameStream(
            "shed", f"http://127.0.0.1:{port}/", config, on_change=lambda *one: news.append(one)
        )
        grabber.start()
        wait_for(lambda: news)
        until_opened_twice = grabber._camera.supervisor  # type: ignore[union-attr]
        wait_for(lambda: until_opened_twice._opened > 2)
        grabber.stop(wait=False)
    assert [state for state, _ in news] == ["lost"]
    assert "no stream comes in time; is the camera on" in news[0][1]


class Hostile(BaseHTTPRequestHandler):
    """Answers with escape codes in its status line."""

    def handle(self) -> None:
        self.connection.recv(1000)
        self.connection.sendall(b"HTTP/1.0 404 \x1b]0;owned\x07\x1b[31mRED\x1b[2J\r\n\r\n")


def test_a_camera_that_sends_escape_codes_commands_no_terminal(tmp_path: Path, broker: Mosquitto) -> None:
    messages = broker.subscribe("vedette/#")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}/x"
    with Vedette(tmp_path, broker, front=camera_of(person_model(tmp_path), uri)) as vedette:
        said = vedette.wait_said("404 Not Found")
        messages.wait(lambda m: states(m).get("front") == "lost")
        told = health(messages)
    server.shutdown()
    server.server_close()
    assert told is not None
    assert "404 Not Found" in told.streams["front"].detail
    assert told.streams["front"].detail.isprintable()
    assert said.isprintable()
    assert all(line.isprintable() for line in vedette.said())


@pytest.mark.parametrize(
    "uri",
    ["http://annie:Zx9@qq7@127.0.0.1:1/x", "http://127.0.0.1:1/user=annie_password=Zx9?qq7"],
    ids=["account", "path"],
)
def test_no_secret_of_a_camera_is_told(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """Not in the log, in what is published, in files that others may read, in arguments or the environment."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    messages = broker.subscribe("#")
    vedette = Vedette(tmp_path, broker, front=camera_of(person_model(tmp_path), uri))
    with vedette:
        messages.wait(lambda m: states(m).get("front") == "lost")
        proc = Path(f"/proc/{vedette.process.pid}")
        told = [(proc / name).read_text() for name in ("cmdline", "environ")]
        wait_for((tmp_path / "health.json").is_file)
        told += [(tmp_path / "health.json").read_text(), *vedette.said()]
        for verb in (("config", "show"), ("config", "check")):
            command = [sys.executable, "-m", "agent", *verb, str(vedette.file)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            told += [done.stdout, done.stderr]
    told += [f"{message.topic} {message.payload!r}" for message in messages]
    assert not [one for one in told for secret in ("annie", "Zx9", "qq7") if secret in one]
