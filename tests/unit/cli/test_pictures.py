"""Snapshots of strangers: shown, kept, or left out, and never in command of the terminal or of the disk."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.image_size import read_size
from agent.cli import pictures
from agent.cli.pictures import SnapshotSaver, TerminalImage, decoded, file_name, graphics, iterm2, kitty
from agent.cli.watch import watch
from agent.comms.consumer.subscribe import ReceivedMessage
from agent.errors import StorageError
from agent.types import Image


def jpeg(width: int = 64, height: int = 48, *flags: int) -> bytes:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2] = (0, 0, 255)  # red above, blue below
    picture[height // 2 :] = (255, 0, 0)
    return cv2.imencode(".jpg", picture, list(flags))[1].tobytes()


def snapshot(body: bytes, device: str = "porch", stream: str = "front") -> ReceivedMessage:
    return ReceivedMessage(f"vedette/{device}/{stream}/snapshot", device, stream, "snapshot", body, 0, False)


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 4)])
def test_the_size_of_a_jpeg_is_in_its_header(flags: tuple[int, ...]) -> None:
    assert read_size(jpeg(64, 48, *flags)) == (64, 48)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_a_size_is_read_or_not(data: bytes) -> None:
    for given_bytes in (data, b"\xff\xd8" + data, b"\xff\xd8\xff\xe0\x00\x00" + data):
        size = read_size(given_bytes)
        assert size is None or min(size) > 0


@given(st.text(), st.text(), st.text(), st.text())
def test_names_of_files_are_safe_and_each_stream_has_its_own(a: str, b: str, c: str, d: str) -> None:
    for name in (file_name(a, b), file_name(c, d)):
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.jpg", name)
        assert len(name) < 200
    assert (file_name(a, b) == file_name(c, d)) == ((a, b) == (c, d))


def test_names_that_are_as_they_should_be_stay() -> None:
    assert file_name("porch", "front-door_2") == "porch.front-door_2.jpg"


def test_the_newest_of_each_stream_is_kept(tmp_path: Path) -> None:
    first, second = jpeg(), jpeg(32, 32)
    kept = SnapshotSaver(None, tmp_path)
    messages = [snapshot(first), None, snapshot(first, stream="back"), snapshot(second), snapshot(b"")]
    assert list(kept.tap(messages)) == messages
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "porch.front.jpg": second,
        "porch.back.jpg": first,
    }


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kept = SnapshotSaver(None, tmp_path / "in")
    for name in ("..", "../../x", "a\0b", "-rf", ".bashrc", "x" * 5000, "ä", "con"):
        kept.take(snapshot(jpeg(), name, name))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert len(list((tmp_path / "in").iterdir())) == 8


def test_made_up_streams_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_FILES", 3)
    kept = SnapshotSaver(None, tmp_path)
    for number in range(9):
        kept.take(snapshot(jpeg(), stream=f"s{number}"))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "is no JPEG"),
        (b"\xff\xd8\xff", "is no JPEG"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20), "65535x65535 is left out"),
        (b"\xff\xd8" + bytes(8_000_001), "8000003 bytes is left out"),
    ],
)
def test_what_no_camera_sends_is_left_out_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes, why: str
) -> None:
    SnapshotSaver(TerminalImage("blocks"), tmp_path).take(snapshot(body, "por\x1bch"))
    out, err = capsys.readouterr()
    assert why in err
    assert "por\\x1bch/front" in err
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_a_header_without_a_picture_cannot_be_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    SnapshotSaver(TerminalImage("blocks"), None).take(snapshot(jpeg()[:200] + b"\xff\xd9"))
    assert capsys.readouterr().err in ("", "porch/front: cannot be decoded\n"), "as the library sees it"
    SnapshotSaver(TerminalImage("blocks"), None).take(
        snapshot(b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10" + bytes(20))
    )
    assert "porch/front: cannot be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "xterm"}, "iterm2"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
    ],
)
def test_the_environment_tells_what_the_terminal_can(environment: dict[str, str], how: str) -> None:
    assert graphics(environment) == how


def big() -> Image:
    return np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8)


def test_kitty_gets_a_png_in_pieces() -> None:
    commands = list(kitty(big(), 40))
    assert len(commands) > 2
    found = [re.fullmatch(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", command) for command in commands]
    keys = [match[1] for match in found if match]
    assert keys[0] == "a=T,f=100,q=2,c=40,m=1"
    assert keys[1:] == ["m=1"] * (len(commands) - 2) + ["m=0"]
    data = base64.b64decode("".join(match[2] for match in found if match))
    sent = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert sent is not None
    assert np.array_equal(sent[..., ::-1], big()), "a PNG of the same colours"
    assert max(len(match[2]) for match in found if match) <= 4096


def test_iterm2_gets_a_jpeg_in_the_line() -> None:
    (command,) = iterm2(big(), 40)
    match = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=40;preserveAspectRatio=1:([^\a]+)\a", command
    )
    assert match
    data = base64.b64decode(match[2])
    assert len(data) == int(match[1])
    assert read_size(data) == (400, 300)


def test_other_terminals_get_half_blocks_in_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "16")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert TerminalImage("blocks").show("porch/front", jpeg(64, 48))
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "porch/front"
    assert len(rows) == 6, "16 columns of a picture of 4 to 3, two lines in each"
    colours = [[tuple(map(int, found)) for found in re.findall(r"38;2;(\d+);(\d+);(\d+)", row)] for row in rows]
    assert all(r > 200 and b < 60 for r, _, b in colours[0])
    assert all(b > 200 and r < 60 for r, _, b in colours[-1])
    assert rows[0].count("▀") == 16


def test_a_tall_picture_does_not_fill_the_terminal_for_ever() -> None:
    shown = decoded(jpeg(8, 4000), 4)
    assert shown is not None
    assert shown.shape[0] <= 16


def test_pictures_need_a_terminal_or_a_folder() -> None:
    result = CliRunner().invoke(watch, ["--picture"])
    assert result.exit_code == 2
    assert "--picture-dir DIR writes them" in " ".join(result.output.split())


@pytest.mark.parametrize("above", [b"a file", None])
def test_a_folder_for_pictures_that_cannot_be_made_is_told(tmp_path: Path, above: bytes | None) -> None:
    wanted = tmp_path / "shelf" / "pictures"
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
    assert "--json and --fleet fill the output" in " ".join(result.output.split())
