"""Small clips and pictures, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.media import Media
from agent.types import Image
from tests.support import packet_camera

_OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=30:min-keyint=30:scenecut=0"}


def picture(number: int, width: int = 64, height: int = 48) -> Image:
    """A picture that shows its number as its brightness."""
    return np.full((height, width, 3), number % 250, np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Thirty pictures at 50 a second; picture n has the grey level 8·n."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (64, 48))
    for number in range(30):
        writer.write(picture(8 * number))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of three kinds, one file that is none, one that is damaged."""
    path = tmp_path / "images"
    path.mkdir()
    for number, name in enumerate(["a.jpg", "b.png", "c.bmp", "e.JPG"]):
        cv2.imwrite(str(path / name), picture(50 * number))
    (path / "d.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (path / "notes.txt").write_text("not looked at")
    return path


@pytest.fixture(scope="session")
def h264() -> bytes:
    """A clip of 60 pictures at 15 per second, with a key frame each 30."""
    units = packet_camera.encode(packet_camera.pattern(60, 640, 480), fps=15, options=_OPTIONS)
    return b"".join(unit.data for unit in units)


@pytest.fixture
def media(tmp_path: Path, h264: bytes) -> Iterator[Media]:
    path = tmp_path / "clip.h264"
    path.write_bytes(h264)
    opened = Media(f"file:{path}", {})
    opened.video.codec_context.copy_opaque = True
    yield opened
    opened.close()
