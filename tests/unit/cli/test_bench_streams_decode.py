from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.capture.decoder_trial import encode_clip
from agent.cli.main import vedette


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mkv"
    path.write_bytes(encode_clip("h264"))
    return path


def test_each_decoder_is_measured_on_a_file(clip: Path) -> None:
    done = CliRunner().invoke(vedette, ["bench", "--decode", str(clip), "--seconds", "2", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["codec"], told["width"], told["height"]) == ("h264", 640, 480)
    assert 25 <= told["pictures"] <= 35
    assert [one["name"] for one in told["measured"]] == ["software", "h264_v4l2m2m"]
    assert told["measured"][0]["pictures"] == told["pictures"]
    assert told["measured"][0]["cpu_ms"] > 0


def test_the_table_tells_why_a_decoder_is_refused(clip: Path) -> None:
    done = CliRunner().invoke(vedette, ["bench", "--decode", f"file:{clip}"])
    assert done.exit_code == 0, done.output
    assert "h264, 640x480, 60 pictures" in done.stdout
    assert "h264_v4l2m2m: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nanodet", "--decode", "x.mp4"], "MODEL"),
        (["nanodet", "--seconds", "3"], "--seconds"),
        (["--decode", "x.mp4", "--streams", "2"], "--streams"),
        (["--decode", "x.mp4", "--variant", "256"], "--variant"),
        (["--decode", "x.mp4", "--backend", "cpu"], "--backend"),
        (["--decode", "x.mp4", "--sustained", "10m"], "--sustained"),
        (["--decode", "x.mp4", "--board", "pi4b"], "--board"),
        (["--decode", "x.mp4", "--loadgen"], "--loadgen"),
        ([], "MODEL"),
    ],
)
def test_a_model_and_a_video_are_two_measurements(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(vedette, ["bench", *arguments])
    assert done.exit_code == 2
    assert named in done.stderr


@pytest.mark.parametrize(
    "source", ["nothing.mp4", "", "/tmp", "v4l2:/dev/video0", "file:/dev/null", "rtsp://127.0.0.1:9/x"]
)
def test_a_source_without_encoded_video_is_refused(source: str) -> None:
    done = CliRunner().invoke(vedette, ["bench", "--decode", source])
    assert done.exit_code != 0
    assert done.exception is not None


def test_a_file_that_is_no_video_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no video")
    done = CliRunner().invoke(vedette, ["bench", "--decode", f"file:{path}"])
    assert "found 8 bytes that cannot be read" in str(done.exception)
