"""FFmpeg in a process of its own whose pictures come through a pipe, as Frigate reads a camera for its detector.

The arguments are Frigate's: its global ones, `preset-rtsp-restream`, the scaling of software decoding at five
pictures a second, and the output of the role `detect` (`frigate/config/camera/ffmpeg.py`, `ffmpeg_presets.py`).
`preset-rtsp-generic` puts the time of arrival in the place of the camera's time stamps: the program then repeats
pictures where it is late, and how much it has decoded could not be counted. Frigate's capture process reads each
picture from the pipe and copies it into shared memory (`frigate/video.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Self

FPS, SIZE = 5, (640, 360)
"""Pictures per second that are read, and their size, px: a small one, for larger ones cost the pipe more."""
_GLOBAL = ["-hide_banner", "-loglevel", "warning", "-threads", "2"]
_INPUT = ["-user_agent", "FFmpeg Frigate", "-rtsp_transport", "tcp", "-timeout", "10000000"]
_OUTPUT = ["-r", f"{FPS}", "-vf", f"fps={FPS},scale={SIZE[0]}:{SIZE[1]}"]
_OUTPUT += ["-threads", "2", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:"]
_FRAME = SIZE[0] * SIZE[1] * 3 // 2
_BUFFERED = 10
"""Pictures that the reader's end of the pipe may hold."""


def version() -> str:
    """Return the version of the program that is installed; empty: there is none."""
    if shutil.which("ffmpeg") is None:
        return ""
    told = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout
    return told.split()[2]


class Pipe:
    """The program at work on one camera. One thread reads its pictures."""

    def __init__(self, uri: str) -> None:
        self._memory = SharedMemory(create=True, size=_FRAME)
        self._process = subprocess.Popen(
            ["ffmpeg", *_GLOBAL, *_INPUT, "-i", uri, *_OUTPUT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=_BUFFERED * _FRAME,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._memory.close()
        self._memory.unlink()

    def cpu_s(self) -> float:
        """Return the processor time that the process has used, user and system, s; 0: it has ended."""
        clock = ~self._process.pid << 3 | 2  # clock_getcpuclockid(3) of Linux
        with suppress(OSError):
            return time.clock_gettime(clock)
        return 0.0

    def read(self) -> bool:
        """Read the next picture into shared memory. Return False at the end."""
        assert self._process.stdout is not None
        assert self._memory.buf is not None
        picture = self._process.stdout.read(_FRAME)
        if len(picture) < _FRAME:
            return False
        self._memory.buf[:_FRAME] = picture
        return True
