"""Slots and the links to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.update.install.slots import Slots, parse_slot


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    one = Slots(tmp_path)
    one.empty("a")
    one.make_ready("a", "1.0")
    one.point("current", "a")
    one.point("keeper", "a")
    return one


def test_a_link_leads_to_a_slot_and_is_changed_in_one_go(slots: Slots, tmp_path: Path) -> None:
    assert slots.target("current") == "a"
    slots.empty("b")
    slots.point("current", "b")
    assert (slots.target("current"), slots.target("keeper")) == ("b", "a")
    assert (tmp_path / "current").resolve() == tmp_path / "slots/b"


def test_a_slot_in_use_is_neither_spare_nor_emptied(slots: Slots) -> None:
    assert slots.spare() == "b"
    slots.empty("b")
    slots.point("current", "b")
    with pytest.raises(StorageError, match="both slots are in use"):
        slots.spare()
    for slot in ("a", "b"):
        with pytest.raises(StorageError, match="is in use"):
            slots.empty(parse_slot(slot))


def test_a_version_is_there_only_when_all_of_it_is(slots: Slots) -> None:
    folder = slots.empty("b")
    (folder / "venv").mkdir()
    assert slots.version("b") == ""
    slots.make_ready("b", "2.0")
    assert slots.version("b") == "2.0"
    assert list(slots.empty("b").iterdir()) == []


def test_a_link_to_no_slot_is_refused(slots: Slots, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such slot"):
        slots.point("current", "b")
    (tmp_path / "current").unlink()
    assert slots.target("current") is None
    (tmp_path / "current").symlink_to("elsewhere")
    with pytest.raises(StorageError, match="found elsewhere"):
        slots.target("current")
    (tmp_path / "current").unlink()
    (tmp_path / "current").mkdir()
    with pytest.raises(StorageError, match="is not a link"):
        slots.target("current")
    with pytest.raises(StorageError, match="cannot be changed"):
        slots.point("current", "a")


def test_a_link_in_the_place_of_a_slot_is_not_followed(slots: Slots, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    slots.path("b").symlink_to(tmp_path / "precious")
    slots.empty("b")
    assert (tmp_path / "precious/file").exists()


def test_no_other_name_is_a_slot() -> None:
    with pytest.raises(StorageError, match="not the name of a slot"):
        parse_slot("c")
