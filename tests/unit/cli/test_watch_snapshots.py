"""Received snapshots are saved or skipped, and control neither the terminal nor the disk."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.source import jpeg_size
from agent.cli.watch import SnapshotSaver, snapshot_name, watch
from agent.comms.consumer import ReceivedMessage
from agent.errors import StorageError


def jpeg(width: int = 64, height: int = 48, *flags: int) -> bytes:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2] = (0, 0, 255)  # red above, blue below
    picture[height // 2 :] = (255, 0, 0)
    return cv2.imencode(".jpg", picture, list(flags))[1].tobytes()


def snapshot(body: bytes, device: str = "porch", stream: str = "front") -> ReceivedMessage:
    return ReceivedMessage(f"vedette/{device}/{stream}/snapshot", device, stream, "snapshot", body, 0, False)


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 4)])
def test_the_size_of_a_jpeg_is_in_its_header(flags: tuple[int, ...]) -> None:
    assert jpeg_size(jpeg(64, 48, *flags)) == (64, 48)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_a_size_is_read_or_not(data: bytes) -> None:
    for given_bytes in (data, b"\xff\xd8" + data, b"\xff\xd8\xff\xe0\x00\x00" + data):
        size = jpeg_size(given_bytes)
        assert size is None or min(size) > 0


@given(st.text(), st.text(), st.text(), st.text())
def test_names_of_files_are_safe_and_each_stream_has_its_own(a: str, b: str, c: str, d: str) -> None:
    for name in (snapshot_name(a, b), snapshot_name(c, d)):
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.jpg", name)
        assert len(name) < 200
    assert (snapshot_name(a, b) == snapshot_name(c, d)) == ((a, b) == (c, d))


def test_names_that_are_as_they_should_be_stay() -> None:
    assert snapshot_name("porch", "front-door_2") == "porch.front-door_2.jpg"


def test_the_newest_of_each_stream_is_kept(tmp_path: Path) -> None:
    first, second = jpeg(), jpeg(32, 32)
    kept = SnapshotSaver(tmp_path)
    messages = [snapshot(first), None, snapshot(first, stream="back"), snapshot(second), snapshot(b"")]
    assert list(kept.tap(messages)) == messages
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "porch.front.jpg": second,
        "porch.back.jpg": first,
    }


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kept = SnapshotSaver(tmp_path / "in")
    for name in ("..", "../../x", "a\0b", "-rf", ".bashrc", "x" * 5000, "ä", "con"):
        kept.save(snapshot(jpeg(), name, name))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert len(list((tmp_path / "in").iterdir())) == 8


def test_made_up_streams_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.watch.MAX_FILES", 3)
    kept = SnapshotSaver(tmp_path)
    for number in range(9):
        kept.save(snapshot(jpeg(), stream=f"s{number}"))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "no JPEG"),
        (b"\xff\xd8\xff", "no JPEG"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20), "65535x65535"),
        (b"\xff\xd8" + bytes(8_000_001), "8000003 bytes"),
    ],
)
def test_a_payload_that_no_camera_sends_is_skipped_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes, why: str
) -> None:
    SnapshotSaver(tmp_path).save(snapshot(body, "por\x1bch"))
    out, err = capsys.readouterr()
    assert why in err
    assert "por\\x1bch/front" in err
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("above", [b"a file", None])
def test_a_folder_for_pictures_that_cannot_be_made_is_told(tmp_path: Path, above: bytes | None) -> None:
    wanted = tmp_path / "new" / "pictures"
    if above:
        wanted.parent.write_bytes(above)
    else:
        wanted = Path("/proc/pictures")
    result = CliRunner().invoke(watch, ["--picture-dir", str(wanted)])
    assert isinstance(result.exception, StorageError)
    assert str(result.exception).startswith(f"{wanted}: cannot be used as a folder: ")


def test_one_thing_at_a_time() -> None:
    result = CliRunner().invoke(watch, ["--json", "--fleet"])
    assert result.exit_code == 2
    assert "--json and --fleet" in " ".join(result.output.split())
