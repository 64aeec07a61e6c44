"""Results on disk, so that an interrupted run continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """Result of one test.

    Attributes:
        name: unique.
        group: table of the test.
        planned: such as the state in which the power is cut.
        met: such as the state that was found.
        outcome: what became of it.
        proved: whether that is as it has to be.
        why: not, or the reason that the board gives.
        seconds: from the cut until the board was well, or of the whole update.
        events: that were heard since.
        lost: of them, those that never came though the board had them.
    """

    name: str
    group: str
    planned: str = ""
    met: str = ""
    outcome: str = ""
    proved: bool = False
    why: str = ""
    seconds: float = 0.0
    events: int = 0
    lost: int = 0


class Results:
    """Rows in a file, one JSON object a line."""

    def __init__(self, path: Path, stamp: str) -> None:
        """Read the file.

        Args:
            path: of the file.
            stamp: of what is tried: results of something else are dropped.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        if lines[:1] != [stamp]:
            path.write_text(f"{stamp}\n")
            lines = []
        rows = [msgspec.json.decode(line, type=Row) for line in lines[1:]]
        self._rows = {row.name: row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def of(self, group: str) -> list[Row]:
        """Return the rows of a group in order."""
        return [row for row in self if row.group == group]

    def add(self, row: Row) -> None:
        """Store a row."""
        self._rows[row.name] = row
        with self._path.open("a") as file:
            file.write(f"{msgspec.json.encode(row).decode()}\n")
