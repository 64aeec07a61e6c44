"""The schema of the configuration says of every key what it is for, as the structs' docstrings do."""

from __future__ import annotations

import pytest
from msgspec import Struct

from agent.cli.config_view import described, schema, struct_of


def test_every_table_and_every_key_has_a_description() -> None:
    rooms = schema()["$defs"]
    assert len(rooms) > 10
    about = {name: room.get("description", "") for name, room in rooms.items()}
    keys = {f"{name}.{key}": one for name, room in rooms.items() for key, one in room["properties"].items()}
    about |= {name: one.get("description", "") for name, one in keys.items()}
    assert [name for name, text in about.items() if not text or "Attributes:" in text] == []


@pytest.mark.parametrize("name", sorted(schema()["$defs"]))
def test_no_docstring_tells_of_a_key_that_is_not_there(name: str) -> None:
    struct = struct_of(name)
    assert struct is not None
    assert set(described(struct)[1]) == set(struct.__struct_fields__)


class _Room(Struct):
    """A room.

    With two paragraphs.

    Attributes:
        wide, high: its size, m: without
            the walls.
        name: of it.
    """

    wide: float
    high: float
    name: str


def test_entries_may_be_shared_and_go_on_in_the_next_line() -> None:
    size = "its size, m: without the walls."
    assert described(_Room) == (
        "A room. With two paragraphs.",
        {"wide": size, "high": size, "name": "of it."},
    )
