"""FFmpeg in a process of its own whose pictures come through a pipe, as Frigate reads a camera for its detector.

The arguments are Frigate's: its global ones, `preset-rtsp-generic`, the scaling of software decoding at five
pictures a second, and the output of the role `detect` (`frigate/config/camera/ffmpeg.py`, `ffmpeg_presets.py`).
Its capture process reads each picture from the pipe and copies it into shared memory (`frigate/video.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory

FPS, SIZE = 5, (640, 360)
"""Pictures per second that are read, and their size, px: what Frigate's documentation advises for a sub-stream."""
_GLOBAL = ["-hide_banner", "-loglevel", "warning", "-threads", "2"]
_INPUT = ["-user_agent", "FFmpeg Frigate", "-avoid_negative_ts", "make_zero", "-fflags", "+genpts+discardcorrupt"]
_INPUT += ["-rtsp_transport", "tcp", "-timeout", "10000000", "-use_wallclock_as_timestamps", "1"]
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
    """The program at work on one camera. One thread reads its pictures.

    Attributes:
        arguments: what it was started with.
    """

    def __init__(self, uri: str) -> None:
        self.arguments = ["ffmpeg", *_GLOBAL, *_INPUT, "-i", uri, *_OUTPUT]
        self._process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=_BUFFERED * _FRAME,
        )

    def cpu_s(self) -> float:
        """Return the processor time that the process has used, user and system, s."""
        clock = ~self._process.pid << 3 | 2  # clock_getcpuclockid(3) of Linux
        with suppress(OSError):  # it has ended
            return time.clock_gettime(clock)
        return 0.0

    def read(self, into: memoryview) -> bool:
        """Read the next picture into memory of its size. Return False at the end."""
        assert self._process.stdout is not None
        picture = self._process.stdout.read(_FRAME)
        if len(picture) < _FRAME:
            return False
        into[:_FRAME] = picture
        return True

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def opened(uri: str) -> Iterator[tuple[Pipe, Callable[[], bool]]]:
    """Give the program and a function that reads its next picture into shared memory, False at the end."""
    pipe, shared = Pipe(uri), SharedMemory(create=True, size=_FRAME)
    assert shared.buf is not None
    memory = shared.buf
    try:
        yield pipe, lambda: pipe.read(memory)
    finally:
        pipe.stop()
        del memory
        shared.close()
        shared.unlink()
