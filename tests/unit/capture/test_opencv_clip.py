from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.source import open_source
from agent.errors import SourceError


def levels(uri: str, limit: int = 1000) -> list[int]:
    """Which pictures a clip gives, by their grey level."""
    source = open_source(uri, stall_s=1)
    found: list[int] = []
    image = source.read(None)
    while image is not None and len(found) < limit:
        found.append(round(float(image.mean()) / 8))
        again = source.read(image)
        assert again is None or again is image, "memory was not reused"
        image = again
    source.close()
    source.close()
    return found


def test_a_clip_gives_every_picture_in_order(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert levels(f"file:{clip}?pace=fast") == list(range(30))
    assert not caplog.records


def test_a_loop_begins_again(clip: Path) -> None:
    assert levels(f"file:{clip}?loop=1&pace=fast", limit=70) == [*range(30), *range(30), *range(10)]


def test_the_pace_is_the_clips_own(clip: Path) -> None:
    source = open_source(f"file:{clip}", stall_s=1)
    assert source.pace_s == pytest.approx(0.02)
    assert source.description == "64x48 at 50 fps"
    assert not source.live


def test_a_clip_that_was_cut_off_is_told_from_a_clean_end(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = clip.read_bytes().split(b"00dc")
    clip.write_bytes(b"00dc".join(chunks[:11]))
    with caplog.at_level(logging.WARNING):
        found = levels(f"file:{clip}?pace=fast&loop=1", limit=40)
    assert found[:9] == list(range(9))
    assert found[9] == 0, "the loop goes on with what there is"
    assert len(caplog.records) == 1
    assert "of 30 pictures: the file is cut off or damaged" in caplog.text


def test_a_clip_without_a_single_picture_is_an_error(clip: Path) -> None:
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(SourceError, match="cut off"):
        levels(f"file:{clip}?pace=fast")


@pytest.mark.parametrize(
    ("make", "wants"),
    [
        (lambda path: None, "there is no /"),
        (lambda path: path.mkdir(), "for pictures write dir:"),
        (lambda path: path.touch(), "found an empty file"),
        (lambda path: path.write_text("<html>not found</html>"), "found 22 bytes that are none"),
    ],
)
def test_what_is_no_clip_is_an_error(tmp_path: Path, make, wants: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "clip.mp4")
    with pytest.raises(SourceError, match=wants):
        open_source(f"file:{tmp_path / 'clip.mp4'}", stall_s=1)


def test_a_clip_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied; check its owner and mode"):
        open_source(f"file:{tmp_path / 'clip.mp4'}", stall_s=1)


def test_a_clip_of_too_large_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (8192, 6144))
    writer.write(np.zeros((6144, 8192, 3), np.uint8))
    writer.release()
    with pytest.raises(SourceError, match=r"8192x6144 pixels, 50.3 megapixels; expected at most 50 megapixels"):
        open_source(f"file:{path}", stall_s=1)
