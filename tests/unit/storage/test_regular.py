"""Files that are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.regular import read_regular


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(StorageError, match=f"{path}: is too large: at most 4 bytes are read"):
        read_regular(path, 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a link"),
        (lambda path: path.symlink_to(path.name), "a link"),
    ],
)
def test_what_is_no_file_is_named_at_once(tmp_path: Path, make: Callable[[Path], object], kind: str) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(StorageError, match=f"{path}: is {kind} where a file is expected: remove it"):
        read_regular(path, 5)
