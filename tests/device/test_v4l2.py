"""Every V4L2 camera that this board has."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture.source import open_source
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.errors import SourceError

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not any(Path("/dev").glob("video*")), reason="this machine has no /dev/video*"),
]


def cameras() -> list[str]:
    """Devices that give pictures; the others are metadata nodes, codecs and scalers."""
    found = []
    for device in sorted(Path("/dev").glob("video*")):
        try:
            open_source(f"v4l2:{device}", stall_s=5).close()
        except SourceError:
            continue
        found.append(str(device))
    return found


def test_every_camera_gives_frames_again_and_again() -> None:
    devices = cameras()
    if not devices:
        pytest.skip("no /dev/video* gives pictures")
    for device in devices:
        for _ in range(2):
            grabber = FrameStream("cam", f"v4l2:{device}?size=640x480", CaptureConfig(), on_change=print)
            grabber.start()
            frames = [grabber.take(5) for _ in range(5)]
            grabber.stop()
            assert all(frame is not None and frame.image.ndim == 3 for frame in frames), device
