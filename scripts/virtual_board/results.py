"""What has been found so far, on the disk: a run that was cut off goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """One thing that was tried.

    Attributes:
        name: of it, and of no other.
        group: of the table that it stands in.
        planned: what was to be met, such as the state that the power is cut in.
        met: what was met.
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
    """In one file, a JSON object in each line."""

    def __init__(self, path: Path, stamp: str) -> None:
        """Read what is there.

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
        """Rows of a group, in the order in which they were found."""
        return [row for row in self if row.group == group]

    def add(self, row: Row) -> None:
        """Keep a row."""
        self._rows[row.name] = row
        with self._path.open("a") as file:
            file.write(f"{msgspec.json.encode(row).decode()}\n")
