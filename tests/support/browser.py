"""A real browser that plays files: headless Chromium, which takes them from a server on the loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

_PAGE = """<body><script>
const one = name => new Promise(done => {
  const video = document.createElement("video");
  const timer = setTimeout(() => done([name, "too slow", 0, 0]), 10000);
  const end = (why, at) => { clearTimeout(timer); video.remove(); done([name, why, video.duration || 0, at]); };
  video.muted = true; video.preload = "auto";
  video.onerror = () => end(video.error.message || "error", 0);
  video.onloadeddata = () => { video.onseeked = () => end("", video.currentTime);
    video.currentTime = Math.min(1, video.duration / 2); };
  video.src = "/" + name; document.body.appendChild(video); video.load(); });
(async () => { const names = await (await fetch("/names")).json(), found = [];
  for (const name of names) found.push(await one(name));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)}); })();
</script>"""


class Shown(NamedTuple):
    """What the browser made of a file: why it cannot play it, length, s, and the time it has jumped to, s."""

    name: str
    error: str
    length_s: float
    at_s: float


class _Handler(BaseHTTPRequestHandler):
    def __init__(
        self, files: dict[str, Path], found: list[list[object]], done: threading.Event, *args: object
    ) -> None:
        self._files, self._found, self._done = files, found, done
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "names":
            self._send(json.dumps(list(self._files)).encode(), "application/json")
        elif name in self._files:
            self._send_part(self._files[name].read_bytes())
        else:
            self._send(_PAGE.encode(), "text/html")

    def do_POST(self) -> None:
        self._found += json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(b"", "text/plain")
        self._done.set()

    def _send_part(self, data: bytes) -> None:
        """Answer a request of a range, without which browsers cannot jump."""
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        begin, end = int(asked[0]), int(asked[1] or len(data) - 1) if len(asked) > 1 else len(data) - 1
        part = data[begin : end + 1]
        self.send_response(206)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with suppress(ConnectionError):  # it has enough
            self.wfile.write(part)

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def chromium() -> str | None:
    """Path of the browser; None: there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def play_in_browser(paths: Sequence[Path], timeout_s: float = 60.0) -> list[Shown]:
    """Load each file, and jump into it. Skips the test without Chromium."""
    browser = chromium()
    if browser is None:
        pytest.skip("no browser: apt-get install chromium")
    files = {f"{number}.mp4": path for number, path in enumerate(paths)}
    found, done = list[list[object]](), threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files, found, done)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
            process = subprocess.Popen(
                [browser, *flags, f"http://127.0.0.1:{server.server_port}/"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert done.wait(timeout_s), "the browser did not answer"
            finally:
                process.terminate()
                process.wait(60)
        server.shutdown()
    return [Shown(str(name), str(error), float(str(length)), float(str(at))) for name, error, length, at in found]
