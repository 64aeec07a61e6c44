"""Files that are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import StorageError, TrustError
from agent.storage.files import read_regular, refuse_special


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


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a pipe"), (Path.mkdir, "a folder"), (lambda path: path.symlink_to("/dev/zero"), "a device")],
)
def test_what_lies_at_a_path_that_somebody_gave_is_told_of_what_a_link_leads_to(
    tmp_path: Path, make: Callable[[Path], object], kind: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(TrustError, match=f"{path}: is {kind} where a file is expected"):
        refuse_special(path, TrustError)


def test_a_file_and_what_is_missing_are_nothing_special(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "none"):
        refuse_special(tmp_path / name)
    with pytest.raises(StorageError, match="link: is a link where a file is expected"):
        refuse_special(tmp_path / "link", StorageError, follow=False)
