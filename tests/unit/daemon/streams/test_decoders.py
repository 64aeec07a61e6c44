from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from agent.capture.hardware_decoder import SOFTWARE, DecoderTrial
from agent.daemon.streams.decoders import DecoderSelection

NAME = "h264_v4l2m2m"
GOOD = (
    DecoderTrial(SOFTWARE, "h264", 60, 5.0, 5.0),
    DecoderTrial(NAME, "h264", 60, 5.0, 1.0, 0.0),
    DecoderTrial("hevc_v4l2m2m", "h264", refused="there is no such device"),
)
POOR = (GOOD[0], DecoderTrial(NAME, "h264", 60, 5.0, 1.0, 90.0, "its pictures are wrong"), GOOD[2])


class Board:
    """Pretends to measure, and counts how often."""

    def __init__(self, trials: tuple[DecoderTrial, ...]) -> None:
        self.trials, self.measured = trials, list[str]()

    def measure(self, codec: str) -> tuple[DecoderTrial, ...]:
        self.measured.append(codec)
        return self.trials


def best(selection: DecoderSelection, codec: str = "h264") -> str:
    """Ask, wait for the measurement, and ask again."""
    assert selection.best(codec) == "", "nobody waits for a measurement"
    for thread in threading.enumerate():
        if thread.name.startswith("decoders-"):
            thread.join(60.0)
    return selection.best(codec)


def test_the_best_decoder_is_measured_once_and_kept(tmp_path: Path) -> None:
    board = Board(GOOD)
    assert best(DecoderSelection(tmp_path, board.measure)) == NAME
    assert best(DecoderSelection(tmp_path, board.measure)) == NAME
    assert board.measured == ["h264"]


def test_a_refusal_is_logged_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert best(DecoderSelection(tmp_path, Board(POOR).measure)) == ""
    assert "h264_v4l2m2m: its pictures are wrong; hevc_v4l2m2m: there is no such device" in caplog.text


def test_other_codecs_are_not_measured(tmp_path: Path) -> None:
    board = Board(GOOD)
    assert best(DecoderSelection(tmp_path, board.measure), "mjpeg") == ""
    assert board.measured == []


@pytest.mark.parametrize("content", [b"", b"nonsense", b'{"version":1,"about":"x","trials":[]}'])
def test_a_damaged_or_outdated_file_is_measured_again(tmp_path: Path, content: bytes) -> None:
    board = Board(GOOD)
    best(DecoderSelection(tmp_path, board.measure))
    (file,) = (tmp_path / "decoders").iterdir()
    file.write_bytes(content)
    assert best(DecoderSelection(tmp_path, board.measure)) == NAME
    assert board.measured == ["h264", "h264"]


def test_a_state_folder_that_cannot_be_written_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    assert best(DecoderSelection(tmp_path / "state", Board(GOOD).measure)) == NAME
    assert "measuring again" in caplog.text
