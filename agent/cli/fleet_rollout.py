"""`vedette fleet rollout`: plan, live table in a terminal or lines, and report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.cli.output import is_terminal, print_json
from agent.errors import StorageError
from agent.storage.files import write_atomic
from agent.text import plain
from agent.update.bundle.signing import signature_of
from agent.update.fleet import check_place, read_inventory
from agent.update.fleet.board import BoardOutcome, count_by_kind, how_many
from agent.update.fleet.report import check_free, render, size, verdict
from agent.update.fleet.rollout import Batch, Ledger, Rollout, RolloutProgress, read_wanted
from agent.update.fleet.ssh import check_pinned

_INTERRUPTED = """\
interrupted: boards that are updating continue by themselves; progress is in {ledger}
run the same command again to continue"""
_WELL, _FAILED, _UNREACHABLE = 0, 1, 3


def roll_out(
    bundle: Path,
    path: Path,
    names: tuple[str, ...],
    ledger: Path | None,
    report: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Update boards of the inventory `path` to a bundle's version, and return the exit code.

    `names` selects boards (empty: all). The default ledger is beside the inventory, the default report beside it.

    Raises:
        FleetError, BundleError, StorageError: the rollout cannot begin or continue; see `Rollout`.
    """
    inventory = read_inventory(path)
    boards = inventory.chosen(names)
    wanted = read_wanted(bundle)
    check_pinned(inventory.known_hosts, boards.values())
    ledger = ledger or inventory.path.absolute().parent / f"{bundle.name}.ledger"
    report = report or ledger.with_name(f"{ledger.name}.html")
    read = (bundle, signature_of(bundle), inventory.path, inventory.known_hosts)
    check_place(ledger, read, "name another --ledger")
    check_place(report, (*read, ledger), "name another --report")
    check_free(report)
    progress = Ledger(ledger)
    rollout = Rollout(inventory, wanted, progress)
    if dry_run:
        _print_plan(rollout.planned(boards), as_json=as_json)
        _warn_of_damage(progress)
        return _WELL
    with progress.owned():
        state = rollout.begin(boards)
        _warn_of_damage(progress)
        state = _run(rollout, state, bundle.name, ledger, err=as_json)
    return _end(state, ledger, report, as_json=as_json)


def _warn_of_damage(ledger: Ledger) -> None:
    if ledger.left_out:
        lines = "line is" if ledger.left_out == 1 else "lines are"
        name = click.format_filename(ledger.path)
        click.echo(f"{name}: {ledger.left_out} {lines} damaged or incomplete, and ignored", err=True)


def _run(rollout: Rollout, state: RolloutProgress, title: str, ledger: Path, *, err: bool) -> RolloutProgress:
    try:
        return _show(rollout, state, title, err=err)
    except KeyboardInterrupt:
        click.echo(_INTERRUPTED.format(ledger=click.format_filename(ledger)), err=True)
        raise


def _show(rollout: Rollout, state: RolloutProgress, title: str, *, err: bool) -> RolloutProgress:
    if err or not is_terminal():
        lines = RolloutLines(err)
        return asyncio.run(rollout.run(state, lines.watch, lines.show))
    table = RolloutTable(title, state.begun.batches, state.outcomes)
    with Live(table, refresh_per_second=4):
        return asyncio.run(rollout.run(state, table.watch, table.show))


def _print_plan(batches: Sequence[Batch], *, as_json: bool) -> None:
    if as_json:
        print_json(batches)
        return
    for number, batch in enumerate(batches):
        click.echo(f"{'canary' if number == 0 else f'batch {number}':<9} {', '.join(batch)}")


def _end(state: RolloutProgress, ledger: Path, report: Path, *, as_json: bool) -> int:
    """Print the result even if the HTML report cannot be written."""
    trouble, code = "", _code(state)
    try:
        write_atomic(report, render(state).encode())
    except StorageError as error:
        trouble, code = f"; there is no report: {error}", _FAILED
    _print_end(state, as_json=as_json)
    places = f"ledger {ledger}{trouble}" if trouble else f"ledger {ledger}, report {report}"
    click.echo(click.format_filename(places), err=as_json or bool(trouble))
    if not state.complete:
        click.echo("run the same command again to continue", err=as_json)
    return code


def _print_end(state: RolloutProgress, *, as_json: bool) -> None:
    if as_json:
        for outcome in state.outcomes.values():
            print_json(outcome)
    click.echo(verdict(state), err=as_json)


def _code(state: RolloutProgress) -> int:
    if state.complete:
        return _WELL
    bad = state.reason or any(one.kind != "unreachable" for one in state.outcomes.values() if not one.is_good)
    return _FAILED if bad else _UNREACHABLE


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
    """Live table of a rollout: boards that are updating first, then failed ones, as many as fit."""

    def __init__(self, title: str, batches: Sequence[Batch], outcomes: dict[str, BoardOutcome]) -> None:
        self._title = title
        self._batches = {name: number for number, batch in enumerate(batches) for name in batch}
        self._outcomes = dict(outcomes)
        self._steps: dict[str, tuple[str, float]] = {}

    def watch(self, board: str, step: str) -> None:
        began = self._steps.get(board, ("", time.monotonic()))[1]
        self._steps[board] = (step, began)
        self._outcomes.pop(board, None)

    def show(self, outcome: BoardOutcome) -> None:
        self._steps.pop(outcome.board, None)
        self._outcomes[outcome.board] = outcome

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
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
            yield from (Text("updating", "cyan"), "", f"{time.monotonic() - began:.0f} s", "", Text(plain(step)))
            return
        one = self._outcomes.get(name)
        if one is None:
            yield from (Text("waiting", "dim"), "", "", "", "")
            return
        yield Text(one.kind.replace("_", " "), COLOURS[one.kind])
        yield from (Text(plain(one.version)), f"{one.seconds:.0f} s", size(one.sent), Text(plain(one.reason)))

    def _summary(self) -> str:
        counts = [
            f"{count} {kind.replace('_', ' ')}" for kind, count in count_by_kind(self._outcomes.values()).items()
        ]
        return ", ".join([*counts, how_many(len(self._batches))])


class RolloutLines:
    """Like the table, but prints a line for each change."""

    def __init__(self, err: bool) -> None:
        self._err = err
        self._shown: dict[str, str] = {}

    def watch(self, board: str, step: str) -> None:
        if self._shown.get(board) != step:
            self._shown[board] = step
            click.echo(f"{board:<16} {plain(step)[:_LONGEST]}", err=self._err)

    def show(self, outcome: BoardOutcome) -> None:
        why = f": {plain(outcome.reason)}" if outcome.reason else ""
        took = f"{outcome.seconds:.0f} s, {size(outcome.sent)} sent"
        kind = click.style(outcome.kind.replace("_", " "), fg=COLOURS[outcome.kind])
        click.echo(f"{outcome.board:<16} {kind} ({took}){why}", err=self._err)
