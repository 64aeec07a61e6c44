"""A camera over HTTP that shows a street, and a gate that the test opens and closes."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from agent.models.files import ZOO
from agent.types import Box

REGION: Box = (0.3, 0.2, 0.6, 0.7)
"""Where the gate is in the picture."""


class GateCamera:
    """A camera over HTTP: a street, and a gate of planks that is `open` or `closed`, or behind `a lorry`.

    Attributes:
        shows: what the gate is. light: 1: day, 0: none. uri: of the camera.
    """

    def __init__(self, fps: float = 10.0) -> None:
        self.shows, self.light = "open", 1.0
        self._fps = fps
        street = cv2.imread(str(ZOO / "walkers.jpg"))
        assert street is not None
        self._street = cv2.resize(street, (640, 480))
        self._random = np.random.default_rng(1)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False  # so that they are joined: one in OpenCV would end the process badly
        self._is_over = False

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self.server.shutdown()
        self.server.server_close()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/video"

    def picture(self) -> np.ndarray[Any, Any]:
        picture = self._street.copy()
        left, top, right, bottom = (round(edge * size) for edge, size in zip(REGION, (640, 480) * 2, strict=True))
        if self.shows == "closed":
            picture[top:bottom, left:right] = (40, 90, 150)
            picture[top:bottom:24, left:right] = 20
        elif self.shows == "a lorry":
            picture[top - 40 : bottom + 40, left - 60 : right + 60] = (230, 230, 230)
            cv2.circle(picture, ((left + right) // 2, (top + bottom) // 2), 70, (30, 30, 200), 25)
        noise = self._random.normal(0, 3, picture.shape)
        return np.asarray(np.clip(picture * self.light + noise, 0, 255).astype(np.uint8))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scene = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                    self.end_headers()
                    while not scene._is_over:
                        jpeg = cv2.imencode(".jpg", scene.picture())[1].tobytes()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        time.sleep(1.0 / scene._fps)
                except OSError:
                    pass  # the viewer has gone

            def log_message(self, *args: object) -> None:
                """Nothing."""

        return Handler
