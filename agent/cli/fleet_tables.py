"""Output of `vedette fleet`: a live table in a terminal, else lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import click
from msgspec import Struct
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from agent.cli.console import output
from agent.cli.json_output import print_json
from agent.text import plain
from agent.update.fleet.board import STRANGE, BoardState, parse_state
from agent.update.fleet.parallel import BoardAnswer
from agent.update.fleet.policy import Batch, BoardOutcome, counted, how_many
from agent.update.fleet.report import size

COLOURS = {
    "updated": "green",
    "current": "green",
    "refused": "yellow",
    "rolled_back": "yellow",
    "failed": "red",
    "unreachable": "magenta",
}
_AROUND = 5
_LONGEST = 200


class RolloutTable:
    """Live table of a rollout: boards at work first, then failed ones, as many as fit."""

    def __init__(self, title: str, batches: Sequence[Batch], outcomes: dict[str, BoardOutcome]) -> None:
        self._title = title
        self._batches = {name: number for number, batch in enumerate(batches) for name in batch}
        self._outcomes = dict(outcomes)
        self._steps: dict[str, tuple[str, float]] = {}

    def watch(self, board: str, step: str) -> None:
        """Show the step that a board is at."""
        began = self._steps.get(board, ("", time.monotonic()))[1]
        self._steps[board] = (step, began)
        self._outcomes.pop(board, None)

    def show(self, outcome: BoardOutcome) -> None:
        """Show a board's outcome."""
        self._steps.pop(outcome.board, None)
        self._outcomes[outcome.board] = outcome

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table."""
        names = sorted(self._batches, key=self._rank)
        room = max(1, console.height - _AROUND)
        yield Text(f"{self._title}  {self._summary()}", "bold")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for column in ("board", "batch", "outcome", "runs", "time", "sent"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("time", "sent") else "left")
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for name in names[:room]:
            table.add_row(*self._cells(name))
        yield table
        if len(names) > room:
            yield Text(f"and {len(names) - room} more", "dim")

    def _rank(self, name: str) -> tuple[int, int]:
        if name in self._steps:
            return (0, self._batches[name])
        one = self._outcomes.get(name)
        if one is not None and not one.is_good:
            return (1, self._batches[name])
        return (3 if one else 2, self._batches[name])

    def _cells(self, name: str) -> Iterator[Text | str]:
        number = self._batches[name]
        yield Text(name)
        yield "canary" if number == 0 else str(number)
        if name in self._steps:
            step, began = self._steps[name]
            yield from (Text("at work", "cyan"), "", f"{time.monotonic() - began:.0f} s", "", Text(plain(step)))
            return
        one = self._outcomes.get(name)
        if one is None:
            yield from (Text("waiting", "dim"), "", "", "", "")
            return
        yield Text(one.kind.replace("_", " "), COLOURS[one.kind])
        yield from (Text(plain(one.version)), f"{one.seconds:.0f} s", size(one.sent), Text(plain(one.reason)))

    def _summary(self) -> str:
        told = [f"{count} {kind.replace('_', ' ')}" for kind, count in counted(self._outcomes.values()).items()]
        return ", ".join([*told, how_many(len(self._batches))])


class RolloutLines:
    """Like the table, but prints a line for each change."""

    def __init__(self, err: bool) -> None:
        self._err = err
        self._told: dict[str, str] = {}

    def watch(self, board: str, step: str) -> None:
        """Show the step that a board is at."""
        if self._told.get(board) != step:
            self._told[board] = step
            click.echo(f"{board:<16} {plain(step)[:_LONGEST]}", err=self._err)

    def show(self, outcome: BoardOutcome) -> None:
        """Show a board's outcome."""
        why = f": {plain(outcome.reason)}" if outcome.reason else ""
        took = f"{outcome.seconds:.0f} s, {size(outcome.sent)} sent"
        kind = click.style(outcome.kind.replace("_", " "), fg=COLOURS[outcome.kind])
        click.echo(f"{outcome.board:<16} {kind} ({took}){why}", err=self._err)


# What `vedette fleet status` shows: a row for each board.

_COLUMNS = ("board", "version", "counter", "previous", "daemon", "update")


class BoardRow(Struct, frozen=True):
    """Row of one board.

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
        """Return the cells in the order of the columns."""
        if self.state is None:
            return (self.board, "", "", "", self.fault, self.reason)
        update = self.state.update
        newest = ""
        if (one := update.at_hand) is not None:
            newest = f"{one.version or one.file} {one.state}{': ' if one.reason else ''}{one.reason}"
        counter = str(update.counter) if update.counter else ""
        return (self.board, update.version, counter, update.previous, self.state.told(), newest)


def rows(answers: Sequence[BoardAnswer]) -> list[BoardRow]:
    """Build the table of answers to `status`."""
    found = []
    for one in answers:
        state = None if one.fault else parse_state(one.out)
        fault, reason = one.fault or "", one.reason
        if not fault and state is None:
            fault, reason = "failed", STRANGE
        found.append(BoardRow(one.board, fault, reason, state))
    return found


def print_rows(found: Sequence[BoardRow], *, as_json: bool) -> None:
    """Print answers as lines of JSON or as a table."""
    if as_json:
        for row in found:
            print_json(row)
        return
    table = Table(*_COLUMNS, box=box.SIMPLE_HEAD, show_edge=False)
    for row in found:
        colour = "red" if row.fault else ""
        table.add_row(*(Text(plain(cell), colour) for cell in row.cells()))
    output(160).print(table)
