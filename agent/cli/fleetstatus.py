"""What `vedette fleet status` shows: a row for each board."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from rich import box
from rich.table import Table
from rich.text import Text

from agent.cli.console import output
from agent.cli.jsonoutput import print_json
from agent.fleet.asking import Answer
from agent.fleet.boardstate import STRANGE, BoardState, parse_state
from agent.plaintext import plain

_COLUMNS = ("board", "version", "counter", "previous", "daemon", "update")


class Row(Struct, frozen=True):
    """Of one board.

    Attributes:
        board: its name.
        fault: empty: it has answered. reason: in words.
        state: what it tells; None: nothing that is understood.
    """

    board: str
    fault: str
    reason: str
    state: BoardState | None

    def cells(self) -> tuple[str, ...]:
        """In the order of the columns."""
        if self.state is None:
            return (self.board, "", "", "", self.fault, self.reason)
        update = self.state.update
        newest = ""
        if (one := update.at_hand) is not None:
            newest = f"{one.version or one.file} {one.state}{': ' if one.reason else ''}{one.reason}"
        counter = str(update.counter) if update.counter else ""
        return (self.board, update.version, counter, update.previous, self.state.told(), newest)


def rows(answers: Sequence[Answer]) -> list[Row]:
    """Of the answers to `status`."""
    found = []
    for one in answers:
        state = None if one.fault else parse_state(one.out)
        fault, reason = one.fault or "", one.reason
        if not fault and state is None:
            fault, reason = "failed", STRANGE
        found.append(Row(one.board, fault, reason, state))
    return found


def print_rows(found: Sequence[Row], *, as_json: bool) -> None:
    """As lines of JSON, or as a table."""
    if as_json:
        for row in found:
            print_json(row)
        return
    table = Table(*_COLUMNS, box=box.SIMPLE_HEAD, show_edge=False)
    for row in found:
        colour = "red" if row.fault else ""
        table.add_row(*(Text(plain(cell), colour) for cell in row.cells()))
    output(160).print(table)
