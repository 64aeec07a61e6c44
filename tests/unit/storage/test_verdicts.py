"""Verdicts on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.storage.verdicts import Verdicts

KEY = "0123456789abcdef" * 4


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    assert verdicts.read("nanodet", KEY) == b""
    assert list(tmp_path.iterdir()) == []
    verdicts.write("nanodet", KEY, b"one")
    verdicts.write("nanodet", KEY, b"two")
    assert verdicts.read("nanodet", KEY) == b"two"
    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == ["nanodet-0123456789abcdef.json"]


def test_a_models_name_stays_in_the_folder(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "state")
    (tmp_path / "state").mkdir()
    verdicts.write("../../etc/passwd\0", KEY, b"x")
    (file,) = (tmp_path / "state" / "verdicts").iterdir()
    assert file.name.startswith("------etc-passwd-")
    assert verdicts.read("../../etc/passwd\0", KEY) == b"x"


def test_what_cannot_be_kept_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "verdicts").write_text("a file where a folder should be")
    verdicts = Verdicts(tmp_path)
    with pytest.raises(StorageError, match="verdicts"):
        verdicts.write("nanodet", KEY, b"x")
    with pytest.raises(StorageError, match="cannot be read"):
        verdicts.read("nanodet", KEY)


def test_a_file_that_has_grown_is_not_read(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    verdicts.write("nanodet", KEY, b"x" * (1024**2 + 1))
    with pytest.raises(StorageError, match="at most 1048576"):
        verdicts.read("nanodet", KEY)
