"""Files that are written together: all, or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.files import write_together


def test_files_are_renamed_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[str] = []
    real = os.replace

    def replace(source: Path, target: Path, **options: int | None) -> None:
        renamed.append(Path(target).name)
        assert len(list(tmp_path.glob(".*.tmp"))) == 3 - len(renamed) + 1
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    write_together({tmp_path / name: name.encode() for name in ("b", "a", "c")})
    assert renamed == ["b", "a", "c"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_disk_that_refuses_one_leaves_nothing_new(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, real = [0], getattr(os, call)

    def refuse(*args: object, **options: object) -> object:
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match="No space left"):
        write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed_and_folders_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_together({tmp_path / "link": b"new"})
    assert (tmp_path / "target").read_bytes() == b"new"
    with pytest.raises(StorageError, match="is a folder"):
        write_together({tmp_path / "new": b"", tmp_path: b""})
    assert not (tmp_path / "new").exists()
