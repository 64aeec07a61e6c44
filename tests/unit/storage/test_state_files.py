"""A small file in the state folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage import state as module
from agent.storage.state import StateFile


def test_what_was_written_last_is_read_and_an_empty_content_leaves_no_file(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "overrides.json")
    assert file.read() is None
    file.write(b"one")
    file.write(b"two")
    assert StateFile(file.path).read() == b"two"
    file.write(b"")
    assert (file.read(), list(tmp_path.iterdir())) == (None, [])
    file.write(b"")


def test_a_power_cut_while_it_is_written_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(tmp_path / "overrides.json")
    file.write(b"old")

    def cut(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(StorageError, match="cannot be written"):
        file.write(b"new")
    assert file.read() == b"old"


def test_what_cannot_be_used_is_told_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(tmp_path / "overrides.json")
    file.path.mkdir()
    for attempt in (file.read, lambda: file.write(b"x"), lambda: file.write(b"")):
        with pytest.raises(StorageError, match=r"overrides\.json"):
            attempt()
    file.path.rmdir()
    file.write(b"12345")
    monkeypatch.setattr(module, "_LARGEST", 4)
    with pytest.raises(StorageError, match="too large: at most 4 bytes are read"):
        file.read()


def test_a_damaged_one_is_kept_for_people(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "overrides.json")
    file.write(b"{")
    aside = file.set_aside()
    assert (aside.read_bytes(), file.read()) == (b"{", b"{"), "a power cut now leaves it where it was"
    file.write(b"new")
    assert (aside.read_bytes(), file.read()) == (b"{", b"new")
    file.write(b"")
    assert file.set_aside() == aside, "there is nothing to set aside"
    assert aside.read_bytes() == b"{"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_at_once_and_can_be_set_aside(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    file = StateFile(tmp_path / "overrides.json")
    make(file.path)
    with pytest.raises(StorageError, match="where a file is expected"):
        file.read()
    file.set_aside()
    assert file.read() is None
