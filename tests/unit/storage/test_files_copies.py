"""Copies, renames and lines that a power cut does not harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.files import (
    add_line,
    delete_folder,
    keep_newest,
    owned_file,
    read_lines,
    remove,
    rename,
    take_copy,
)


def test_lines_are_added_and_read(tmp_path: Path) -> None:
    path = tmp_path / "history"
    assert read_lines(path) == []
    add_line(path, b"one")
    add_line(path, b"two")
    assert read_lines(path) == [b"one", b"two"]
    with path.open("ab") as file:
        file.write(b"hal")
    add_line(path, b"three")
    assert read_lines(path) == [b"one", b"two", b"hal", b"three"]


def test_of_a_long_history_the_newest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"".join(b"%08d\n" % number for number in range(600_000)))
    lines = read_lines(path)
    assert lines[-1] == b"00599999"
    assert all(len(line) == 8 for line in lines)
    assert len(lines) < 600_000


def test_of_too_long_a_file_the_newest_half_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history"
    keep_newest(path, 100)
    assert not path.exists()
    path.write_bytes(b"".join(b"%04d\n" % number for number in range(20)))
    keep_newest(path, 100)
    assert len(read_lines(path)) == 20
    add_line(path, b"last")
    keep_newest(path, 100)
    lines = read_lines(path)
    assert lines == [b"%04d" % number for number in range(12, 20)] + [b"last"]


def test_a_copy_is_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    take_copy(source, tmp_path / "deep/copy")
    assert (tmp_path / "deep/copy").read_bytes() == source.read_bytes()
    assert (tmp_path / "deep/copy").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("name", "why"), [("missing", "cannot be copied"), (".", "cannot be copied"), ("pipe", "is a pipe")]
)
def test_what_cannot_be_copied_leaves_nothing(tmp_path: Path, name: str, why: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match=why):
        take_copy(tmp_path / name, tmp_path / "deep/copy")
    assert not list((tmp_path / "deep").glob("*"))


def test_files_and_folders_go(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    rename(tmp_path / "a", tmp_path / "b")
    remove(tmp_path / "b", tmp_path / "never", tmp_path / "no/folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder/in").mkdir(parents=True)
    delete_folder(tmp_path / "folder")
    delete_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for attempt in (
        lambda: rename(tmp_path / "missing", tmp_path / "b"),
        lambda: remove(tmp_path / "folder"),
        lambda: add_line(tmp_path / "folder", b"x"),
        lambda: read_lines(tmp_path / "folder"),
    ):
        with pytest.raises(StorageError, match=str(tmp_path)):
            attempt()


def test_a_file_has_one_owner_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with owned_file(path), pytest.raises(StorageError, match="in use by another vedette"), owned_file(path):
        pass
    with owned_file(path):
        add_line(path, b"mine")
    assert read_lines(path) == [b"mine"]
    with pytest.raises(StorageError, match="cannot be written: Not a directory"), owned_file(path / "y"):
        pass
