"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.files import write_atomic


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new and longer", mode=0o600)
        assert reader.read() == b"old", "who has it open keeps the old one"
    assert path.read_bytes() == b"new and longer"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir() else "file")
        sync(descriptor)

    def note_rename(source: Path, target: Path, **folders: int | None) -> None:
        order.append("rename")
        rename(source, target, **folders)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_atomic(tmp_path / "state", b"x")
    assert order == ["file", "rename", "folder"]


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "full").touch()
    with pytest.raises(StorageError, match=r"state: cannot be written: "):
        write_atomic(tmp_path / "state", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]
    with pytest.raises(StorageError, match=r"nowhere/state: cannot be written: No such file"):
        write_atomic(tmp_path / "nowhere" / "state", b"x")


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "state", tmp_path / "elsewhere" / "real"
    link.symlink_to(target)
    for data in (b"new", b"newer"):
        write_atomic(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert list(target.parent.iterdir()) == [target]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name in ("pipe", "null", "round"):
        with pytest.raises(StorageError, match=f"{name}: cannot be written: "):
            write_atomic(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert Path(os.devnull).is_char_device()


def test_a_passing_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomic(tmp_path / "health.json", b"old", follow=False, durable=False)
    write_atomic(tmp_path / "health.json", b"new", follow=False, durable=False)
    assert (tmp_path / "health.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]
    with pytest.raises(StorageError, match=r"gone/health\.json: cannot be written: No such file"):
        write_atomic(tmp_path / "gone" / "health.json", b"new", follow=False, durable=False)
