"""Names of clips, and retention."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.clips.store import CONTINUOUS, ClipStore, clip_path, clips_in
from agent.types import Clip, ClipReason

NOW = datetime(2026, 11, 25, 10, 15, 3, tzinfo=UTC)
MB = 1 << 20


def put(folder: Path, days_old: float, size: int = 10, stream: str = "front", label: str = "person") -> str:
    """A clip that began so long ago; gives its name."""
    began = NOW - timedelta(days=days_old)
    path = clip_path(folder, ClipReason(stream, "appeared", f"{stream}-1a-{size}", label), began)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.truncate(path, size)
    return path.name


def left(folder: Path) -> list[str]:
    return sorted(entry.path.name for entry in clips_in(folder))


def clip_store(folder: Path, **config: float) -> ClipStore:
    made = ClipStore(folder, StorageConfig(**{"clips_keep_free_bytes": 0, **config}))  # type: ignore[arg-type]
    made.scan()
    return made


def test_a_name_tells_when_and_what(tmp_path: Path) -> None:
    path = clip_path(tmp_path, ClipReason("front", "appeared", "front-1a2b3c4d-7", "person"), NOW)
    assert path == tmp_path / "front" / "2026-11-25T10-15-03Z-person-front-1a2b3c4d-7.mp4"


def test_a_clip_that_was_asked_for_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = clip_path(tmp_path, ClipReason("front", "asked"), NOW, "1a2b3c")
    assert path.name == "2026-11-25T10-15-03Z-asked-1a2b3c.mp4"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Smoke detector, smoke alarm", "Smoke-detector-smoke-alarm"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "appeared"),
        ("Füße", "F-e"),
        ("a\nb\0c", "a-b-c"),
        ("x" * 300, "x" * 48),
    ],
)
def test_a_label_is_never_more_than_a_part_of_a_name(tmp_path: Path, label: str, said: str) -> None:
    path = clip_path(tmp_path, ClipReason("front", "appeared", "7", label), NOW)
    assert path.parent == tmp_path / "front"
    assert path.name == f"2026-11-25T10-15-03Z-{said}-7.mp4"


def test_a_label_of_nothing_but_dots_leaves_the_rest_of_the_name(tmp_path: Path) -> None:
    assert clip_path(tmp_path, ClipReason("..", "appeared", "7", "../.."), NOW) == (
        tmp_path / "stream" / "2026-11-25T10-15-03Z-7.mp4"
    )


@given(st.text(), st.text(), st.text(), st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)))
def test_no_name_leaves_the_folder_of_its_stream(stream: str, label: str, track: str, at: datetime) -> None:
    folder = Path("/clips")
    path = clip_path(folder, ClipReason(stream, "appeared", track, label), at.replace(tzinfo=UTC))
    assert path.parent.parent == folder
    assert path.parent.name not in ("", ".", "..")
    assert len(path.name) < 200
    assert path.name.isascii()
    assert not set(path.name) & set("/\\\0 ")


class Case(NamedTuple):
    """Days and sizes of clips, bounds, and the ages that are left after room for `more` bytes was made."""

    clips: list[tuple[float, int]]
    max_bytes: int
    more: int
    left: list[float]


CASES = {
    "room for all": Case([(3, MB), (2, MB), (1, MB)], 4 * MB, 0, [1, 2, 3]),
    "exactly full": Case([(3, MB), (2, MB), (1, MB)], 4 * MB, MB, [1, 2, 3]),
    "one byte too many": Case([(3, MB), (2, MB), (1, MB)], 4 * MB, MB + 1, [1, 2]),
    "a bound that became smaller": Case([(3, MB), (2, MB), (1, MB)], MB, 0, [1]),
    "a large one that is old": Case([(9, 3 * MB), (2, MB), (1, MB)], 4 * MB, 0, [1, 2]),
    "a large one that is new": Case([(3, MB), (2, MB), (1, 3 * MB)], 4 * MB, 0, [1, 2]),
    "room for a large one": Case([(3, MB), (2, MB), (1, MB)], 4 * MB, 4 * MB, []),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_oldest_go_for_room(tmp_path: Path, case: Case) -> None:
    names = {days: put(tmp_path, days, size) for days, size in case.clips}
    made = clip_store(tmp_path, clips_max_bytes=case.max_bytes)
    made.make_room(case.more)
    assert left(tmp_path) == sorted(names[days] for days in case.left)
    assert made.bytes == sum(size for days, size in case.clips if days in case.left)


def test_the_oldest_of_all_streams_go_first(tmp_path: Path) -> None:
    put(tmp_path, 3, MB, "back")
    kept = [put(tmp_path, 2, MB, "front"), put(tmp_path, 1, MB, "back")]
    clip_store(tmp_path, clips_max_bytes=2 * MB).make_room(0)
    assert left(tmp_path) == sorted(kept)


@pytest.mark.parametrize(("disk_gb", "limit_mb"), [(32, 1024), (8, 819), (2, 204)])
def test_clips_may_have_a_tenth_of_the_disk_and_a_gigabyte_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_gb: int, limit_mb: int
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(total=disk_gb << 30, free=disk_gb << 29)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    made = ClipStore(tmp_path / "not" / "there", StorageConfig())
    assert made.max_bytes >> 20 == limit_mb
    assert asked == [tmp_path], "the file system that the folder is going to be on"
    with pytest.raises(StorageError, match=rf"larger than \[storage\] clips_max_bytes, {made.max_bytes} bytes"):
        made.make_room(made.max_bytes + 1)
    assert ClipStore(tmp_path, StorageConfig(clips_max_bytes=3 * MB)).max_bytes == 3 * MB


def test_what_can_never_fit_is_said(tmp_path: Path) -> None:
    put(tmp_path, 1)
    with pytest.raises(StorageError, match=r"larger than \[storage\] clips_max_bytes, 1048576 bytes"):
        clip_store(tmp_path, clips_max_bytes=MB).make_room(2 * MB)
    assert left(tmp_path) == []


def test_clips_leave_room_on_the_disk_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [put(tmp_path, days, MB) for days in (3, 2, 1)]
    usage = shutil.disk_usage(tmp_path)

    def free(folder: Path) -> object:
        return usage._replace(free=50 * MB - sum(entry.bytes for entry in clips_in(folder)))

    monkeypatch.setattr(shutil, "disk_usage", free)
    clip_store(tmp_path, clips_keep_free_bytes=48 * MB).make_room(MB // 2)
    assert left(tmp_path) == sorted(names[2:])
    with pytest.raises(StorageError, match=r"52 MB are free on the disk, and clips leave 94 MB .* make room"):
        clip_store(tmp_path, clips_keep_free_bytes=90 * MB).make_room(MB)


@pytest.mark.parametrize(
    ("days_old", "goes"),
    [(0.0, False), (6.99, False), (7.01, True), (400.0, True), (-3.0, False), (20000.0, False)],
    ids=["now", "young", "old", "older", "of a clock that was ahead", "of a clock that was not set"],
)
def test_what_is_too_old_goes(tmp_path: Path, days_old: float, goes: bool) -> None:
    put(tmp_path, days_old)
    counts = clip_store(tmp_path, clips_max_age_s=7 * 86400.0).expire(NOW)
    assert counts == ({"clips_max_age_s": 1} if goes else {})
    assert len(left(tmp_path)) == (not goes)


def test_only_clips_are_deleted(tmp_path: Path) -> None:
    put(tmp_path, 400, MB)
    others = [
        "holiday.mp4",
        "2020-01-01T00-00-00Z.mp4",
        "2020-01-01T00-00-00Z-a.txt",
        ".2020-01-01T00-00-00Z-a.mp4.part",
    ]
    for name in others:
        (tmp_path / "front" / name).write_bytes(bytes(MB))
    (tmp_path / "2020-01-01T00-00-00Z-a.mp4").write_bytes(b"")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.mp4"
    outside.write_bytes(b"")
    (tmp_path / "front" / "2020-01-01T00-00-00Z-link.mp4").symlink_to(outside)
    made = clip_store(tmp_path, clips_max_age_s=1.0, clips_max_bytes=MB)
    made.expire(NOW)
    made.make_room(0)
    assert left(tmp_path) == []
    assert {path.name for path in (tmp_path / "front").iterdir()} == {*others, "2020-01-01T00-00-00Z-link.mp4"}


def test_pieces_of_continuous_recordings_go_before_clips_and_have_an_age_of_their_own(tmp_path: Path) -> None:
    clip = put(tmp_path, 9, MB)
    pieces = []
    for days in (5, 4, 1):
        path = clip_path(tmp_path, ClipReason("front", CONTINUOUS), NOW - timedelta(days=days), f"abcde{days}")
        path.write_bytes(bytes(MB))
        pieces.append(path.name)
    made = clip_store(tmp_path, clips_max_bytes=3 * MB, recordings_max_age_s=4.5 * 86400.0)
    assert made.expire(NOW) == {"recordings_max_age_s": 1}
    assert left(tmp_path) == sorted([clip, *pieces[1:]])
    made.make_room(MB)
    assert left(tmp_path) == sorted([clip, pieces[2]])


def test_one_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    name = put(tmp_path, 3, MB)
    kept = put(tmp_path, 1, MB)
    made = clip_store(tmp_path, clips_max_bytes=MB)
    (tmp_path / "front" / name).unlink()
    made.make_room(0)
    assert left(tmp_path) == [kept]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8), st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_what_is_added_is_in_the_list_as_a_scan_finds_it(made: list[tuple[int, bool]], split: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), ClipStore(Path(name), StorageConfig())
        for number, (days, continuous) in enumerate(made):
            if number == split:
                store.scan()
            reason = (
                ClipReason("front", CONTINUOUS) if continuous else ClipReason("front", "appeared", f"{number}")
            )
            path = clip_path(folder, reason, NOW - timedelta(days=days), f"{number:06x}")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(number))
            if number >= split:
                store.add(Clip(str(path), reason, (), NOW, NOW, 0.0, 1, number))
        if split >= len(made):
            store.scan()
        again = ClipStore(folder, StorageConfig())
        again.scan()
        assert (store._entries, store.bytes) == (again._entries, again.bytes)


def test_without_a_folder_there_are_none(tmp_path: Path) -> None:
    assert clips_in(tmp_path / "nothing") == []
