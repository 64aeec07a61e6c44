from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.capture.source import header_size, open_source
from agent.errors import SourceError
from agent.types import Array


def test_pictures_come_in_order_of_their_names_and_a_damaged_one_is_skipped(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(f"dir:{folder}", stall_s=1)
    levels = []
    with caplog.at_level(logging.WARNING):
        while (picture := source.read(None)) is not None:
            levels.append(round(float(picture.mean()) / 50))
    assert levels == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"dir:{folder}: d.jpg is no picture that can be decoded: skipped"
    ]
    source.close()


def test_a_loop_warns_once_of_a_damaged_picture(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(f"dir:{folder}?loop=1&fps=5&pace=realtime", stall_s=1)
    assert source.pace_s == 0.2
    with caplog.at_level(logging.WARNING):
        for _ in range(13):
            assert source.read(None) is not None
    assert len(caplog.records) == 1


def test_memory_is_reused_where_it_fits(folder: Path) -> None:
    source = open_source(f"dir:{folder}", stall_s=1)
    image = source.read(None)
    assert image is not None
    assert source.read(image) is image
    assert source.read(np.zeros((1, 1, 3), np.uint8)) is not image


@pytest.mark.parametrize(
    ("make", "wants"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.touch(), "is a file; write file:"),
        (lambda path: path.mkdir(), "expected jpg, png or bmp files"),
    ],
)
def test_a_folder_without_pictures_is_an_error(tmp_path: Path, make, wants: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "images")
    with pytest.raises(SourceError, match=wants):
        open_source(f"dir:{tmp_path / 'images'}", stall_s=1)


def test_a_folder_that_cannot_be_read_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        open_source(f"dir:{folder}", stall_s=1)


def test_a_folder_of_damaged_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "c.jpg").mkdir()
    source = open_source(f"dir:{tmp_path}?loop=1", stall_s=1)
    with pytest.raises(SourceError, match="none of the 3 files"):
        source.read(None)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_the_header_tells_the_size(suffix: str) -> None:
    done, data = cv2.imencode(suffix, np.zeros((480, 641, 3), np.uint8))
    assert done
    assert header_size(data.tobytes()) == (641, 480)
    for length in range(30):
        assert header_size(data.tobytes()[:length]) in (None, (641, 480))


def test_a_picture_that_is_too_large_is_skipped_before_it_is_decoded(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.glob("?.*"):
        if path.name != "a.jpg":
            path.unlink()
    cv2.imwrite(str(folder / "b.png"), np.zeros((8000, 8000), np.uint8))
    decoded, decode = [], cv2.imdecode

    def counted(data: Array, how: int) -> Array | None:
        decoded.append(len(data))
        return decode(data, how)

    monkeypatch.setattr(cv2, "imdecode", counted)
    source = open_source(f"dir:{folder}", stall_s=1)
    assert source.read(None) is not None
    assert source.read(None) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"dir:{folder}: b.png: its pictures have 8000x8000 pixels, 64 megapixels; expected at most 50 megapixels;"
        " choose a smaller size: skipped"
    ]
    assert len(decoded) == 1
