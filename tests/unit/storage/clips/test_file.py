"""A clip's file, cut off at any byte."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.storage.clips import file as clipfile
from agent.storage.clips.file import NAME, ClipFile, ClipLabel, free_path, part_of, read_header, recover, settle
from agent.storage.clips.packets import TimedPacket
from agent.types import ClipReason
from tests.support.clip_pictures import BEGAN, SECOND, play
from tests.support.examples import examples
from tests.support.media import Encoder, timed

PERSON = ClipReason("front", "appeared", "front-1a-1", "person")
TIMES = [number / 2 for number in range(20)]


@functools.cache
def shown() -> list[TimedPacket]:
    """Twenty-one pictures; each fourth is a key frame."""
    encoder = Encoder()
    return timed([encoder.packet(number, number * SECOND // 2) for number in range(21)])


def begun(folder: Path) -> ClipFile:
    """Twenty pictures, of which all but the last two are in fragments that are written."""
    file = ClipFile(folder / "clip.mp4", ClipLabel(PERSON, BEGAN), shown()[0], None)
    for begin in range(0, 20, 4):
        file.append(shown()[begin : begin + 4])
    return file


def cut(folder: Path, length: int, tail: bytes = b"") -> Path:
    """As a power cut at this length leaves it, with what the file system puts behind."""
    file = begun(folder)
    data = file.part.read_bytes()
    file.drop()
    file.part.write_bytes(data[:length] + tail)
    return file.part


WHOLE = 1 << 30
WRITTEN = 18
"""A fragment is written when the next begins."""


def test_a_clip_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    file = begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".clip.mp4.part"]
    file.finish(())
    assert (tmp_path / "clip.mp4").samefile(file.part), "until it is told of"
    settle(tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert stat.S_IMODE((tmp_path / "clip.mp4").stat().st_mode) & 0o007 == 0


def test_one_that_was_cut_off_plays_even_before_it_has_its_name(tmp_path: Path) -> None:
    part = cut(tmp_path, WHOLE)
    assert play(part).numbers == list(range(WRITTEN))


def test_one_that_was_cut_off_gets_its_name(tmp_path: Path) -> None:
    made = recover(cut(tmp_path, WHOLE))
    assert made is not None
    assert (made.frames, made.repaired, made.occasion, made.tracks) == (WRITTEN, True, PERSON, ("front-1a-1",))
    assert (made.began_at, made.duration_s) == (BEGAN, WRITTEN / 2)
    played = play(tmp_path / "clip.mp4")
    assert played.numbers == list(range(WRITTEN))
    assert played.times_s == pytest.approx(TIMES[:WRITTEN], abs=0.002)
    assert read_header(tmp_path / "clip.mp4").duration_s == WRITTEN / 2


def test_one_that_was_complete_and_not_told_of_is_as_it_was(tmp_path: Path) -> None:
    file = begun(tmp_path)
    made = file.finish(("front-1a-1",))
    before = (tmp_path / "clip.mp4").read_bytes()
    assert recover(file.part) == made
    assert (tmp_path / "clip.mp4").read_bytes() == before
    assert not made.repaired


def refuse(self: Path, target: Path) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_file_system_without_links_takes_clips_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    begun(tmp_path).finish(())
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "cut off"])
def test_no_clip_takes_the_name_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, is_complete: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    other, file = tmp_path / "clip.mp4", begun(tmp_path)
    other.write_bytes(b"another")
    if is_complete:
        made = file.finish(())
    else:
        file._file.close()
        recovered = recover(file.part)
        assert recovered is not None
        made = recovered
    settle(Path(made.path))
    assert other.read_bytes() == b"another"
    assert play(Path(made.path)).numbers[:WRITTEN] == list(range(WRITTEN))
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", Path(made.path).name}
    assert NAME.fullmatch(f"2026-11-25T10-15-03Z-{Path(made.path).name}")


def test_a_partial_name_of_other_contents_is_not_removed(tmp_path: Path) -> None:
    file = begun(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"another")
    settle(tmp_path / "clip.mp4")
    assert file.part.exists()
    (tmp_path / "clip.mp4").unlink()
    settle(tmp_path / "clip.mp4")
    assert file.part.exists()
    file.drop()


def test_a_path_that_is_free_is_taken_and_one_like_it_else(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert free_path(path) == path
    part_of(path).write_bytes(b"")
    part_taken = free_path(path)
    assert part_taken != path
    assert part_taken.suffix == path.suffix
    part_of(path).rename(path)
    assert free_path(path) not in (path, part_taken)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1.0), st.sampled_from([(0, 0), (5000, 0), (700, 255)]))
def test_cut_anywhere_it_has_what_was_whole_or_is_removed(where: float, tail: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = begun(folder)
        size = file.bytes
        file.drop()
        length = round(size * where)
        try:
            made = recover(cut(folder, length, bytes([tail[1]]) * tail[0]))
        except ValueError:
            assert where < 0.5, "the first pictures are lost only with the first fragment"
            return
        assert made is not None
        assert made.frames % 2 == 0
        # Of a fragment whose last bytes alone are lost a picture may be damaged.
        sure = made.frames - 2 * bool(tail[0])
        assert play(folder / "clip.mp4").numbers[:sure] == list(range(sure))


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_damaged_head_is_an_error_and_no_more(changes: list[tuple[int, int]], complete: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = begun(Path(name))
        if complete:
            file.finish(())
        data = bytearray(file.part.read_bytes())
        for offset, value in changes:
            data[offset] = value
        file.part.write_bytes(data)
        file._file.close()
        try:
            made = recover(file.part)
        except ValueError:
            return
        assert made is not None
        assert 0 < made.frames <= 20


def test_a_fragment_that_ends_in_zeros_was_never_written(tmp_path: Path) -> None:
    part = cut(tmp_path, WHOLE)
    data = part.read_bytes()
    part.write_bytes(data[:-100] + bytes(100))
    made = recover(part)
    assert made is not None
    assert made.frames == WRITTEN - 2
    assert play(tmp_path / "clip.mp4").numbers == list(range(WRITTEN - 2))


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"<html>", b"\0\0\0\x1cftypiso5", os.urandom(3000)])
def test_what_is_no_clip_is_an_error(tmp_path: Path, content: bytes) -> None:
    part = tmp_path / ".clip.mp4.part"
    part.write_bytes(content)
    with pytest.raises(ValueError, match="its head is damaged"):
        recover(part)


def test_one_that_is_being_written_by_another_process_is_let_alone(tmp_path: Path) -> None:
    part = cut(tmp_path, WHOLE)
    with part.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        before = part.read_bytes()
        assert recover(part) is None
        assert part.read_bytes() == before


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = begun(tmp_path)
    real = file._file

    class Slow:
        def write(self, data: memoryview) -> int:
            return real.write(data[: max(1, len(data) // 2)])

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    monkeypatch.setattr(file, "_file", Slow())
    file.append(shown()[20:])
    assert file.finish(()).frames == 21
    assert play(tmp_path / "clip.mp4").numbers == list(range(21))


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    class Nothing:
        def write(self, data: memoryview) -> int:
            return 0

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        clipfile._write_all(Nothing(), b"abc")  # type: ignore[arg-type]


def test_a_damaged_clip_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"RIFF....AVI ")
    with pytest.raises(StorageError, match=r"clip\.mp4: is not a clip of Vedette's"):
        read_header(path)
    with pytest.raises(StorageError, match="No such file"):
        read_header(tmp_path / "gone.mp4")
