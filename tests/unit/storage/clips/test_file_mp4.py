"""Clips from the packets of real encoders, as players decode them."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from agent.errors import StorageError
from agent.storage.clips.file import ClipFile, ClipLabel, Mp4Muxer, pack_units, part_of, read_boxes, recover
from agent.types import ClipReason, MediaTrack
from tests.support.clip_pictures import BEGAN
from tests.support.media import FPS, beep_at, make_video, number_in, packets_of, timed, video_of

LABEL = ClipLabel(ClipReason("front", "appeared"), BEGAN)


def record(folder: Path, source: Path, begin: int = 0, sound: bool = True) -> Path:
    """A clip of all packets of a file from the so-many-th picture on, which is a key frame."""
    packets = packets_of(source)
    first = video_of(packets)[begin]
    some = timed(packets[packets.index(first) :])
    heard = next((one.packet.track for one in some if not one.is_video), None) if sound else None
    file = ClipFile(folder / "clip.mp4", LABEL, some[0], heard)
    for at in range(0, len(some), 30):
        file.append(some[at : at + 30])
    file.finish(())
    return file.path


def shown_in(path: Path) -> list[tuple[int, float]]:
    """Numbers and times of the pictures, s; as players do it, one that is cut off is left out."""
    found = []
    with av.open(str(path)) as file:
        for packet in file.demux(video=0):
            with suppress(av.error.InvalidDataError, av.error.EOFError):
                shown = packet.decode()
                found += [(number_in(one), round(one.time or 0.0, 3)) for one in shown]
    return found


def loud_at(path: Path) -> list[tuple[float, bool]]:
    """Each piece of sound: when, s, and whether there is a tone in its middle."""
    found = []
    with av.open(str(path)) as file:
        for one in file.decode(audio=0):
            wave: Any = one.to_ndarray().astype(np.float32)
            wave = wave / (32768.0 if one.format.name.startswith("s16") else 1.0)
            middle = wave[0, wave.shape[1] // 3 : wave.shape[1] * 2 // 3]
            found.append(
                ((one.time or 0.0) + one.samples / one.sample_rate / 2, bool(np.abs(middle).max() > 0.1))
            )
    return found


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("between", [0, 2], ids=["", "with B-frames"])
def test_a_copy_has_the_pictures_of_the_camera_at_their_times(tmp_path: Path, codec: str, between: int) -> None:
    source = make_video(tmp_path / "camera.mp4", 4.0, codec=codec, between=between)
    shown = shown_in(record(tmp_path, source))
    assert [number for number, _ in shown] == [number % 60 for number in range(100)]
    times = np.array([at for _, at in shown])
    assert times - times[0] == pytest.approx(np.arange(100) / FPS, abs=0.002)
    assert times[0] <= (between + 1) / FPS, "time stamps begin at 0, but for the order of decoding"


@pytest.mark.parametrize("container", ["mkv", "ts"], ids=["lengths", "start codes"])
def test_packets_of_either_form_are_copied(tmp_path: Path, container: str) -> None:
    source = make_video(tmp_path / f"camera.{container}", 2.0)
    assert [number for number, _ in shown_in(record(tmp_path, source))] == list(range(50))


@pytest.mark.parametrize("begin", [0, 25, 75])
def test_the_sound_of_the_camera_is_in_step(tmp_path: Path, begin: int) -> None:
    source = make_video(tmp_path / "camera.mp4", 5.0, sound="aac", between=2)
    clip = record(tmp_path, source, begin)
    shown = shown_in(clip)
    assert shown[0][0] == begin % 60
    wrong = [at for at, loud in loud_at(clip) if loud != beep_at(at - shown[0][1] + begin / FPS)]
    # A piece at the edge of a tone of 0.2 s each second may be either.
    assert all(min(abs((at - shown[0][1]) % 1.0 - edge) for edge in (0.0, 0.2, 1.0)) < 0.05 for at in wrong)
    assert len(loud_at(clip)) > 60


def test_a_copy_cut_off_at_any_byte_plays_up_to_there_once_it_has_its_name(tmp_path: Path) -> None:
    clip = record(tmp_path, make_video(tmp_path / "camera.mp4", 8.0, sound="aac", between=2))
    data, chance = clip.read_bytes(), random.Random(7)
    clip.unlink()
    with part_of(clip).open("rb") as file:
        ends = [box.end for box in read_boxes(file) if box.type == b"mdat"]
    for _ in range(40):
        length = chance.randint(ends[0], ends[-1] - 1)
        part_of(clip).write_bytes(data[:length])
        made = recover(part_of(clip))
        assert made is not None
        whole = sum(end <= length for end in ends)
        assert made.frames >= whole * FPS - 4
        assert [number for number, _ in shown_in(clip)] == [number % 60 for number in range(made.frames)]
        clip.unlink()


def test_each_fragment_is_a_second_long_at_most(tmp_path: Path) -> None:
    clip = record(tmp_path, make_video(tmp_path / "camera.mp4", 8.0, group=200))
    with clip.open("rb") as file:
        kinds = [box.type for box in read_boxes(file)]
    assert kinds[:3] == [b"ftyp", b"moov", b"uuid"]
    assert kinds[-1] == b"uuid"
    assert 8 <= kinds.count(b"moof") == kinds.count(b"mdat") <= 9


def test_a_codec_that_mp4_cannot_hold_is_an_error(tmp_path: Path) -> None:
    first = timed(packets_of(make_video(tmp_path / "camera.mp4", 1.0)))[0]
    with pytest.raises(StorageError, match="cannot be stored in MP4"):
        Mp4Muxer(MediaTrack("video", "rv40", (1, 1000), b"", 64, 48), None, first)


def test_start_codes_become_lengths() -> None:
    assert pack_units(b"\0\0\0\1\x67ab\0\0\1\x68c\0\0\0\1\x65d") == (
        b"\0\0\0\3\x67ab" + b"\0\0\0\2\x68c" + b"\0\0\0\2\x65d"
    )
