"""Files as players see them: written whole, read back by FFmpeg."""

from __future__ import annotations

import tempfile
from itertools import accumulate
from pathlib import Path

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.storage.clips.file import ClipFile, read_header
from agent.storage.clips.matroska import Totals, head
from agent.types import Clip, ClipReason
from tests.support.clip_pictures import BEGAN, number_of, pictures, play

PERSON = ClipReason("front", "appeared", "front-1a-1", "person")


def clip(folder: Path, times_s: list[float], *, at_once: int = 5) -> Clip:
    """Write one, a few pictures at a time."""
    shown = pictures(times_s)
    file = ClipFile(folder / "clip.mkv", PERSON, shown[0])
    for begin in range(0, len(shown), at_once):
        file.append(shown[begin : begin + at_once])
    return file.finish(("front-1a-1",))


def test_a_clip_plays_with_every_picture_in_its_place(tmp_path: Path) -> None:
    made = clip(tmp_path, [number / 5 for number in range(50)])
    played = play(tmp_path / "clip.mkv")
    assert played.numbers == list(range(50))
    assert played.times_s == pytest.approx([number / 5 for number in range(50)], abs=0.002)
    assert played.length_s == pytest.approx(10.0, abs=0.2)
    assert (made.frames, made.duration_s) == (50, 10.0)
    assert made.bytes == (tmp_path / "clip.mkv").stat().st_size


def test_a_rate_that_changes_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.2, 0.4, 0.41, 0.42, 3.0, 3.001, 40.0, 40.2, 75.5]
    clip(tmp_path, times)
    played = play(tmp_path / "clip.mkv")
    assert played.numbers == list(range(10))
    assert played.times_s == pytest.approx(times, abs=0.002)
    assert played.length_s == pytest.approx(75.5 * 10 / 9, abs=0.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 3000), min_size=1, max_size=20), st.integers(1, 20))
def test_any_rhythm_plays_as_it_was(gaps_ms: list[int], at_once: int) -> None:
    times = [ms / 1e3 for ms in accumulate(gaps_ms, initial=0)]
    with tempfile.TemporaryDirectory() as folder:
        clip(Path(folder), times, at_once=at_once)
        played = play(Path(folder) / "clip.mkv")
    assert played.numbers == list(range(len(times)))
    assert played.times_s == pytest.approx(times, abs=0.002)


def test_a_player_jumps_to_a_time(tmp_path: Path) -> None:
    clip(tmp_path, [number / 5 for number in range(50)])
    capture = cv2.VideoCapture(str(tmp_path / "clip.mkv"), cv2.CAP_FFMPEG)
    capture.set(cv2.CAP_PROP_POS_MSEC, 7000.0)
    assert number_of(capture.read()[1]) == pytest.approx(35, abs=1)


def test_a_clip_of_one_picture_plays(tmp_path: Path) -> None:
    assert clip(tmp_path, [0.0]).duration_s == 1.0
    assert play(tmp_path / "clip.mkv").numbers == [0]


def test_a_clip_says_what_it_was_made_for(tmp_path: Path) -> None:
    clip(tmp_path, [0.0, 0.5, 1.0])
    label = read_header(tmp_path / "clip.mkv")
    assert (label.occasion, label.began_at, label.duration_s) == (PERSON, BEGAN, 1.5)
    assert (label.width, label.height) == (64, 48)


@given(st.floats(1.0, 1e9), st.integers(1, 10**6), st.integers(300, 2**40), st.integers(300, 2**40))
def test_a_head_has_one_length_whatever_it_says(ms: float, count: int, cues_at: int, size: int) -> None:
    tags = {"TITLE": "person at front", "VEDETTE": "{}"}
    blank = head(1280, 720, BEGAN, tags)
    full = head(1280, 720, BEGAN, tags, Totals(ms, count, cues_at, size))
    assert len(blank) == len(full)
    assert sum(a != b for a, b in zip(blank, full, strict=True)) > 8
