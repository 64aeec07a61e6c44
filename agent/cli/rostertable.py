"""The live table of devices that `watch` shows for a fleet, and the same as lines."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from agent.cli.roster import COLUMNS, RIGHT, Device, Roster

_AROUND = 4
"""Lines around the rows: summary, header, rule, and what is left out."""
_WIDE = 100
STATUS_COLOURS = {"online": "green", "stopped": "yellow", "offline": "red"}


class FleetTable:
    """The devices of a roster, as many as there is room for: those that somebody should look at come first."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.height = 0
        """Lines at most; 0: as many as the terminal has."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as rich draws it."""
        room = max(1, (self.height or console.height) - _AROUND)
        devices = list(self._roster)
        yield Text(self._roster.summary(), "bold")
        if devices:
            yield _table(devices[:room], narrow=options.max_width < _WIDE)
        if (left := len(devices) - room) > 0:
            yield Text(f"and {left} more", "dim")


def _table(devices: list[Device], *, narrow: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if narrow else 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True, overflow="ellipsis")
    for device in devices:
        table.add_row(*(_text(device, name, cell) for name, cell in device.cells().items()))
    return table


def _text(device: Device, name: str, cell: str) -> Text:
    """As `Text`: square brackets in a name are no markup."""
    if name == "status":
        return Text(cell, STATUS_COLOURS.get(device.status, "white"))
    return Text(cell, "red" if name == "streams" and device.trouble else "")


def lines(roster: Roster) -> Iterator[str]:
    """The whole roster as lines of text, without a terminal."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(device.cells() for device in roster)]
    widths = {name: max(len(row[name]) for row in rows) for name in COLUMNS}
    for row in rows:
        cells = (
            cell.rjust(widths[name]) if name in RIGHT else cell.ljust(widths[name]) for name, cell in row.items()
        )
        yield "  ".join(cells).rstrip()
    yield roster.summary()
