"""A headless Chromium that a test talks to, by the DevTools protocol over a pipe.

with browsing() as browser:
    page = browser.open("http://127.0.0.1:9470/")
    assert page.evaluate("document.title") == "Clips of porch"
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.browser import chromium


class Browser:
    """A running browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._id, self._rest = to_browser, from_browser, 0, b""

    def open(self, url: str) -> BrowserPage:
        """Open a page, and wait until it and the beginnings of its videos are loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.call("Page.navigate", {"url": url}, session)
        page = BrowserPage(self, session)
        until = time.monotonic() + 60.0
        while page.evaluate("document.readyState + location.protocol") != "completehttp:":
            assert time.monotonic() < until, f"{url} is not loaded"
            time.sleep(0.1)
        return page

    def call(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._id += 1
        body = {"id": self._id, "method": method, "params": params}
        os.write(self._to, json.dumps(body | ({"sessionId": session} if session else {})).encode() + b"\0")
        until = time.monotonic() + 60.0
        while (answer := self._next(until)).get("id") != self._id:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            received = os.read(self._from, 1 << 16)
            assert received, "the browser has ended"
            self._rest += received
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


class BrowserPage:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, or what its promise gives."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self._browser.call("Runtime.evaluate", asked, self._session)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser while the context lasts. Skips the test without Chromium."""
    path = chromium()
    if path is None:
        pytest.skip("no browser: apt-get install chromium")
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", f"--user-data-dir={profile}"]
        # It takes the descriptors 3 and 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{read_in} 4>&{write_out}', "bash"]
        process = subprocess.Popen(
            [*shell, path, *flags, "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe"],
            pass_fds=(read_in, write_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_in)
        os.close(write_out)
        try:
            yield Browser(write_in, read_out)
        finally:
            process.terminate()
            process.wait(60)
            os.close(write_in)
            os.close(read_out)
