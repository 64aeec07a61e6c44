"""Which clips are shown, and which files are opened for strangers."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.storage.clips.file import ClipHeader, read_header
from agent.storage.clips.store import Entry, clip_folders, newest_clips, open_clip
from tests.support.clip_pictures import BEGAN
from tests.support.stored_clips import begin_clip, store_clip


def names(shown: list[tuple[Entry, ClipHeader]]) -> list[str]:
    return [entry.path.name for entry, _ in shown]


def test_the_newest_come_first_and_older_ones_after_them(tmp_path: Path) -> None:
    paths = [store_clip(tmp_path, at=BEGAN + timedelta(minutes=minute)) for minute in range(3)]
    store_clip(tmp_path, "cat", stream="back", at=BEGAN + timedelta(hours=1))
    newest = names(newest_clips(tmp_path, "front", most=2))
    assert newest == [paths[2].name, paths[1].name]
    assert paths[0].name in names(newest_clips(tmp_path, "front", before=newest[-1]))
    assert [entry.path.parent.name for entry, _ in newest_clips(tmp_path, most=2)] == ["back", "front"]
    assert clip_folders(tmp_path) == ["back", "front"]
    entry, header = newest_clips(tmp_path, "front")[0]
    assert (entry.at, header.label.occasion.label) == (BEGAN + timedelta(minutes=2), "person")
    assert header.duration_s == pytest.approx(5.0, abs=0.5)
    assert entry.bytes == paths[2].stat().st_size


def test_one_that_is_being_recorded_is_among_them_as_far_as_it_plays(tmp_path: Path) -> None:
    file = begin_clip(tmp_path)
    ((running, header),) = newest_clips(tmp_path)
    assert (running.recording, running.path.name, header.duration_s) == (True, file.path.name, None)
    assert 0 < running.bytes <= file.part.stat().st_size
    opened = open_clip(tmp_path, "front", file.path.name)
    assert opened is not None
    with opened:
        assert len(opened.read()) == file.part.stat().st_size
    file.finish(())
    ((complete, _),) = newest_clips(tmp_path)
    assert (complete.recording, complete.path) == (False, running.path), "also before it is settled"


def test_damaged_files_and_a_missing_folder_are_no_clips(tmp_path: Path) -> None:
    assert (newest_clips(tmp_path / "none"), clip_folders(tmp_path / "none")) == ([], [])
    path = store_clip(tmp_path)
    path.with_name(f"2026-11-25T10-15-04Z-person{path.suffix}").write_bytes(b"\0" * 100)
    path.with_name(f"2026-99-99T10-15-04Z-person{path.suffix}").write_bytes(path.read_bytes())
    assert names(newest_clips(tmp_path)) == [path.name]


def test_damaged_ones_hide_no_others(tmp_path: Path) -> None:
    path = store_clip(tmp_path)
    for number in range(60):
        path.with_name(f"2027-01-01T00-00-{number:02}Z-person{path.suffix}").write_bytes(b"")
    assert names(newest_clips(tmp_path, most=2)) == [path.name]


def test_only_those_that_are_shown_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for minute in range(9):
        store_clip(tmp_path, at=BEGAN + timedelta(minutes=minute))
    opened, real = list[Path](), read_header

    def read(one: Path) -> ClipHeader:
        opened.append(one)
        return real(one)

    monkeypatch.setattr("agent.storage.clips.store.read_header", read)
    shown = newest_clips(tmp_path, most=3)
    assert [one.name for one in opened] == names(shown)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_clip(tmp_path)
    real = os.scandir

    def scan(place: Path) -> object:
        if place.name == "front":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(place)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(StorageError, match="cannot be read: Permission denied"):
        newest_clips(tmp_path)


def test_a_pipe_that_is_named_like_a_clip_is_none(tmp_path: Path) -> None:
    path = store_clip(tmp_path)
    os.mkfifo(path.with_name(f"2027-01-01T00-00-00Z-person{path.suffix}"))
    assert names(newest_clips(tmp_path)) == [path.name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return store_clip(tmp_path_factory.mktemp("whole")).read_bytes()


@given(
    names=st.dictionaries(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b"])), st.booleans(), max_size=40)
)
@settings(max_examples=30, deadline=None)
def test_all_are_found_in_order_whatever_is_damaged(whole: bytes, names: dict[tuple[int, str], bool]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for (number, place), is_damaged in names.items():
            path = Path(name) / place / f"2026-01-01T00-00-{number:02}Z-person.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"" if is_damaged else whole)
        found = [(entry.path.name, entry.path.parent.name) for entry, _ in newest_clips(Path(name), most=3)]
        left = (place for place, is_damaged in names.items() if not is_damaged)
        expected = sorted(((f"2026-01-01T00-00-{n:02}Z-person.mp4", place) for n, place in left), reverse=True)
        assert found == expected[:3]
        every = [(entry.path.name, entry.path.parent.name) for entry, _ in newest_clips(Path(name), most=100)]
        assert every == expected


def test_no_link_is_followed_and_nothing_else_is_opened(tmp_path: Path) -> None:
    clips, secret = tmp_path / "clips", tmp_path / "2026-11-25T10-15-03Z-secret.mp4"
    path = store_clip(clips)
    secret.write_bytes(b"secret")
    (path.parent / secret.name).symlink_to(secret)
    (clips / "linked").symlink_to(path.parent)
    (clips / "front" / "2026-11-25T10-15-03Z-folder.mp4").mkdir()
    for stream, name in (
        ("front", secret.name),
        ("linked", path.name),
        ("front", "2026-11-25T10-15-03Z-folder.mp4"),
        ("..", secret.name),
        (".", path.name),
        ("front", f"../../{secret.name}"),
        ("front", f".{path.name}.part"),
    ):
        assert open_clip(clips, stream, name) is None, (stream, name)
    opened = open_clip(clips, "front", path.name)
    assert opened is not None
    opened.close()


@given(stream=st.text(max_size=20), name=st.text(max_size=60))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_opened_whatever_a_stranger_asks_for(tmp_path: Path, stream: str, name: str) -> None:
    assert open_clip(tmp_path, stream, name) is None
