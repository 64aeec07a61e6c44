"""Which clips are shown, and which files are opened for strangers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.storage.clips.listing import clip_folders, newest_clips, open_clip
from tests.support.clip_pictures import BEGAN
from tests.support.stored_clips import begin_clip, store_clip


def test_the_newest_come_first_and_older_ones_after_them(tmp_path: Path) -> None:
    paths = [store_clip(tmp_path, at=BEGAN + timedelta(minutes=minute)) for minute in range(3)]
    store_clip(tmp_path, "cat", stream="back", at=BEGAN + timedelta(hours=1))
    names = [one.name for one in newest_clips(tmp_path, "front", most=2)]
    assert names == [paths[2].name, paths[1].name]
    assert paths[0].name in [one.name for one in newest_clips(tmp_path, "front", before=names[-1])]
    assert [one.folder for one in newest_clips(tmp_path, most=2)] == ["back", "front"]
    assert clip_folders(tmp_path) == ["back", "front"]
    newest = newest_clips(tmp_path, "front")[0]
    assert (newest.at, newest.header.occasion.label) == (BEGAN + timedelta(minutes=2), "person")
    assert newest.header.duration_s == pytest.approx(5.0, abs=0.5)
    assert newest.bytes == paths[2].stat().st_size


def test_one_that_is_being_recorded_is_among_them_as_far_as_it_plays(tmp_path: Path) -> None:
    file = begin_clip(tmp_path)
    (running,) = newest_clips(tmp_path)
    assert (running.recording, running.name, running.header.duration_s) == (True, file.path.name, None)
    assert 0 < running.bytes <= file.part.stat().st_size
    opened = open_clip(tmp_path, "front", file.path.name)
    assert opened is not None
    with opened:
        assert len(opened.read()) == file.part.stat().st_size
    file.finish(())
    (complete,) = newest_clips(tmp_path)
    assert (complete.recording, complete.name) == (False, running.name), "also before it is settled"


def test_damaged_files_and_a_missing_folder_are_no_clips(tmp_path: Path) -> None:
    assert (newest_clips(tmp_path / "none"), clip_folders(tmp_path / "none")) == ([], [])
    path = store_clip(tmp_path)
    path.with_name(f"2026-11-25T10-15-04Z-person{path.suffix}").write_bytes(b"\0" * 100)
    path.with_name(f"2026-99-99T10-15-04Z-person{path.suffix}").write_bytes(path.read_bytes())
    assert [one.name for one in newest_clips(tmp_path)] == [path.name]


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
