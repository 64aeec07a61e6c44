from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.board.proc import DiskUsage, read_disk


def test_a_folder_that_is_not_there_yet_lies_where_its_parent_does(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "not" / "yet")
    assert disk is not None
    assert disk.at == tmp_path
    assert 0 < disk.free_mb <= disk.total_mb


def test_a_file_system_that_is_full_of_files_and_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(
        f_blocks=1000, f_frsize=2**20, f_bavail=10, f_files=100, f_favail=0, f_flag=os.ST_RDONLY
    )
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert read_disk(Path("/x")) == DiskUsage(Path("/x"), 1000, 10, 0, True)
    found.f_files = 0
    disk = read_disk(Path("/x"))
    assert disk is not None
    assert disk.files_left is None


def test_nothing_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "statvfs", refuse)
    assert read_disk(Path("/x/y")) is None
