"""A real RTSP server on the loopback that can be frozen, killed and started again."""

from __future__ import annotations

import functools
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_SERVER = Path(__file__).parent.parent / "system" / "rtsp_server.py"
_PYTHON = "/usr/bin/python3"
"""Debian's: its python3-gi is not in the environment."""

_NEEDED = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,ugly}"
_PROBE = """
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert all(Gst.ElementFactory.find(name) for name in ("videotestsrc", "x264enc", "rtph264pay"))
"""


@functools.cache
def _works() -> bool:
    try:
        return subprocess.run([_PYTHON, "-c", _PROBE], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


def has_element(name: str) -> bool:
    """Return True if GStreamer has an element."""
    probe = f"{_PROBE}assert Gst.ElementFactory.find({name!r})"
    return _works() and not subprocess.run([_PYTHON, "-c", probe], capture_output=True, timeout=60).returncode


class RtspServer:
    """One camera at `uri`. Skips the test where Debian's packages are missing.

    At `sounding` with `pcma`, `aac` or `opus` behind it the camera has sound: a tone of 440 Hz.
    """

    def __init__(self, *account: str) -> None:
        if not _works():
            pytest.skip(f"no RTSP server: apt-get install {_NEEDED}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.uri = f"rtsp://127.0.0.1:{self.port}/cam"
        self.sounding = f"rtsp://127.0.0.1:{self.port}/"
        self._account = account
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Serve; returns when it listens."""
        command = [_PYTHON, str(_SERVER), str(self.port), *self._account]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def freeze(self) -> None:
        """Keep every connection, and send nothing: a camera whose program hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Gone, as without power."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
