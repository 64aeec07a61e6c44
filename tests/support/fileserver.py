"""An HTTP server on loopback that sends files, also in pieces, and can misbehave."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Files by path, and what was asked for.

    Attributes:
        files: content by path, such as `/a.tflite`.
        redirects: where a path leads.
        cuts: number of answers that break off after `cut_after` bytes.
        cut_after: see `cuts`.
        fails: number of answers of 503.
        ranges: whether a part can be asked for.
        lengths: whether the length is told before.
        drip_s: time after each byte that is sent, s; 0: all are sent at once.
        asked: the header Range of each request, or empty.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.cuts, self.cut_after, self.fails, self.ranges, self.lengths = 0, 1000, 0, True, True
        self.drip_s = 0.0
        self.asked: list[str] = []
        self.url = ""


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    served = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.path = self.path.partition("?")[0]
            served.asked.append(self.headers.get("Range", ""))
            if served.fails:
                served.fails -= 1
                self.send_error(503)
            elif self.path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[self.path])
                self.end_headers()
            elif self.path in served.files:
                self.send_file(served.files[self.path])
            else:
                self.send_error(404)

        def send_file(self, content: bytes) -> None:
            asked, first = self.headers.get("Range", ""), 0
            if asked and served.ranges:
                first = int(asked.removeprefix("bytes=").rstrip("-"))
                if first >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if served.lengths:
                self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            end = len(content)
            if served.cuts:
                served.cuts -= 1
                end = min(end, first + served.cut_after)
            if served.drip_s:
                self.send_slowly(content[first:end])
                return
            self.wfile.write(content[first:end])

        def send_slowly(self, content: bytes) -> None:
            with contextlib.suppress(OSError):
                for at in range(len(content)):
                    self.wfile.write(content[at : at + 1])
                    time.sleep(served.drip_s)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
