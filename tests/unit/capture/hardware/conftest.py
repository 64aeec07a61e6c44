from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.capture.hardware.trial import encode_clip
from agent.capture.media import Media


@pytest.fixture(scope="session")
def h264() -> bytes:
    """A clip of 60 pictures at 15 per second, with a key frame each 30."""
    return encode_clip("h264")


@pytest.fixture
def media(tmp_path: Path, h264: bytes) -> Iterator[Media]:
    path = tmp_path / "clip.mkv"
    path.write_bytes(h264)
    opened = Media(f"file:{path}", {})
    opened.video.codec_context.copy_opaque = True
    yield opened
    opened.close()
