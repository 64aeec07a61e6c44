from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.grabber import Grabber
from agent.capture.source import open_source
from agent.config import CaptureConfig
from agent.errors import SourceError
from tests.support.house import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.running import ROOT, Vedette, health, states
from tests.support.running import camera as camera_of


class Camera(BaseHTTPRequestHandler):
    """Sends JPEGs one after the other, as many network cameras do; `/short` ends after ten."""

    def do_GET(self) -> None:
        if self.path not in ("/video", "/short"):
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
                time.sleep(0.02)
        except OSError:
            pass  # the viewer has gone

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_http_camera_gives_frames(camera: str) -> None:
    grabber = Grabber("shed", f"{camera}/video", CaptureConfig(stall_s=3), on_change=print)
    grabber.start()
    frames = [grabber.take(5) for _ in range(10)]
    grabber.stop()
    assert all(frame is not None and frame.image.shape == (48, 64, 3) for frame in frames)
    assert frames[0] is not None
    assert abs(float(frames[0].image.mean()) - 90) < 3


def test_an_http_camera_that_ends_is_lost_and_opened_again(camera: str) -> None:
    news: list[str] = []
    config = CaptureConfig(stall_s=3, reopen_max_s=0.2)
    grabber = Grabber("shed", f"{camera}/short", config, on_change=lambda state, _: news.append(state))
    grabber.start()
    deadline = time.monotonic() + 20
    while "running" not in news:
        assert time.monotonic() < deadline
        grabber.take(0.1)
    grabber.stop()
    assert news[:2] == ["lost", "running"]


def test_a_path_that_is_not_there_is_named(camera: str) -> None:
    with pytest.raises(SourceError, match="answers 404: it has no such path"):
        open_source(f"{camera}/nothing", stall_s=3)


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
        said = vedette.wait_said("answers 404")
        messages.wait(lambda m: states(m).get("front") == "lost")
        told = health(messages)
    server.shutdown()
    server.server_close()
    assert told is not None
    assert "answers 404" in told.streams["front"].detail
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
        told += [(tmp_path / "health.json").read_text(), *vedette.said()]
        for verb in (("config", "show"), ("config", "check")):
            command = [sys.executable, "-m", "agent", *verb, str(vedette.file)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            told += [done.stdout, done.stderr]
    told += [f"{message.topic} {message.payload!r}" for message in messages]
    assert not [one for one in told for secret in ("annie", "Zx9", "qq7") if secret in one]
