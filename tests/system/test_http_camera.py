from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from agent.capture.grabber import Grabber
from agent.capture.source import open_source
from agent.config import CaptureConfig
from agent.errors import SourceError


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
    with pytest.raises(SourceError, match="404 Not Found: it has no such path"):
        open_source(f"{camera}/nothing", stall_s=3)
