"""Checks of the folder for clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.clips.store import check_saving


def test_nothing_is_left_of_the_attempt(tmp_path: Path) -> None:
    check_saving(tmp_path, StorageConfig(clips_keep_free_bytes=0), 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["gone", "file", "/proc/self", "/dev/full"])
def test_where_nothing_can_be_written_the_reason_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=f"{tmp_path / place}: clips cannot be saved there: "):
        check_saving(tmp_path, StorageConfig(clips_keep_free_bytes=0), 0, tmp_path / place)


def test_clips_that_could_go_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "2026-01-01T00-00-00Z-person-front-1-1.mp4").write_bytes(bytes(3000))

    def usage(path: Path) -> tuple[int, int, int]:
        return usage_type(10_000, 9000, 1000)

    import shutil

    usage_type = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    config = StorageConfig(clips_keep_free_bytes=2000)
    check_saving(tmp_path, config, 2000, tmp_path)
    with pytest.raises(StorageError, match="MB are free on the disk, and clips leave"):
        check_saving(tmp_path, config, 2001, tmp_path)
    check_saving(tmp_path / "gone", StorageConfig(clips_keep_free_bytes=1000), 0, tmp_path)
