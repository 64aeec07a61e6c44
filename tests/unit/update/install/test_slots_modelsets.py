"""Sets of models: the one in use is never changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.update.install.slots import ModelSets


def filled(sets: ModelSets, number: int, tmp_path: Path, **files: str) -> None:
    sets.create(number)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        sets.add(tmp_path / name, number)


def test_a_set_has_what_the_one_before_had_and_more(tmp_path: Path) -> None:
    sets = ModelSets(tmp_path / "slot")
    assert sets.current == 0
    filled(sets, 1, tmp_path, person="old", dog="old")
    sets.point(1)
    filled(sets, 2, tmp_path, person="new")
    assert (tmp_path / "slot/models/person").read_text(encoding="utf-8") == "old"
    sets.point(2)
    assert sets.current == 2
    content = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "slot/models").iterdir()}
    assert content == {"person": "new", "dog": "old"}
    assert (sets.path(1) / "person").read_text(encoding="utf-8") == "old"


def test_the_one_in_use_is_not_begun_again_and_one_that_was_begun_is(tmp_path: Path) -> None:
    sets = ModelSets(tmp_path)
    filled(sets, 1, tmp_path, person="half")
    sets.create(1)
    assert list(sets.path(1).iterdir()) == []
    sets.point(1)
    with pytest.raises(StorageError, match="is in use"):
        sets.create(1)


def test_none_can_be_used_again(tmp_path: Path) -> None:
    sets = ModelSets(tmp_path)
    sets.create(1)
    sets.point(1)
    sets.point(0)
    assert sets.current == 0
    with pytest.raises(StorageError, match="no such set"):
        sets.point(5)


def test_old_sets_go_and_the_one_before_stays(tmp_path: Path) -> None:
    sets = ModelSets(tmp_path)
    for number in (1, 2, 3, 4):
        sets.create(number)
        sets.point(number)
    sets.delete_unused(3)
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == ["3", "4"]


def test_a_link_to_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/etc")
    with pytest.raises(StorageError, match="not to a set of models"):
        _ = ModelSets(tmp_path).current
    (tmp_path / "models").unlink()
    (tmp_path / "models").mkdir()
    with pytest.raises(StorageError, match="is not a link"):
        _ = ModelSets(tmp_path).current
