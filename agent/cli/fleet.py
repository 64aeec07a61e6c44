"""`vedette fleet`: update many boards over SSH from a workstation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import console, open_table, print_json
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.update.fleet import FleetBoard, Inventory
    from agent.update.fleet.board import BoardOutcome, BoardState
    from agent.update.fleet.rollout import RolloutProgress
    from agent.update.fleet.ssh import BoardAnswer


_PATH = click.Path(path_type=Path)
_WELL, _FAILED, _UNREACHABLE = 0, 1, 3
_STEP_MAX = 200
"""Characters of a step that are shown: a board may send any text."""
_ROLLBACK_S = 1200.0
"""Timeout of a rollback, s. A board starts the previous version (600 s at most) and watches it (130 s); if it
fails, the board restarts the present version (60 s for each call of systemd). Only then it answers."""


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for inventory, boards and output."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each board."),
        click.option("--board", "names", multiple=True, help="Only this board; repeatable."),
        click.option(
            "-i",
            "--inventory",
            "path",
            type=_PATH,
            default="fleet.toml",
            show_default=True,
            help="Inventory of the boards; `known_hosts` is beside it.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def fleet() -> None:
    """Update many boards over SSH, and show their status.

    \b
    The inventory is TOML, and Ansible reads it, too:
        [boards.hosts]
        porch = { ansible_host = "192.168.1.20" }
        [boards.vars]
        vedette_canary = ["porch"]
        vedette_batches = [2, "25%"]

    Exit code: 0 all is well, 1 something failed, 3 boards cannot be reached and nothing else is wrong.
    """  # noqa: D301


@fleet.command()
@_common
@click.pass_context
def status(ctx: click.Context, path: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Show the version, the daemon's state and the newest update of each board."""
    inventory, boards = _boards(path, names)
    found = rows(_ask(inventory, boards, "status"))
    print_rows(found, as_json=as_json)
    ctx.exit(_exit_code(found))


@fleet.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True)
@_common
@click.pass_context
def exec_(ctx: click.Context, words: tuple[str, ...], path: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Run COMMAND on every board: doctor, status, or update status, history, apply, confirm or rollback.

    Options come before COMMAND; what follows its first word is passed to the board:

    \b
        vedette fleet exec --json doctor     a line of JSON for each board, with its output
        vedette fleet exec doctor --json     each board prints JSON

    The update key permits no other command (see vedette-ssh).
    """  # noqa: D301
    inventory, boards = _boards(path, names)
    answers = _ask(inventory, boards, " ".join(words), lambda one: _print_answer(one, as_json=as_json))
    ctx.exit(_exit_code(answers))


@fleet.command()
@_common
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def rollback(ctx: click.Context, path: Path, names: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Roll every board, or those named, back to the previous version.

    A running update is ended. Boards that were rolled back since their last update are left as they are: repeat
    the command when some boards could not be reached.
    """
    inventory, boards = _boards(path, names)
    if not yes:
        click.confirm(f"Roll {plural(len(boards), 'board')} back to the previous version?", abort=True, err=True)
    answers = _ask(
        inventory,
        boards,
        "update rollback --once",
        lambda one: _print_answer(one, as_json=as_json),
        patience_s=_ROLLBACK_S,
    )
    ctx.exit(_exit_code(answers))


@fleet.command()
@click.argument("names", nargs=-1)
@click.option("-i", "--inventory", "path", type=_PATH, default="fleet.toml", show_default=True)
@click.option("--yes", is_flag=True, help="Accept the keys that the boards present, without asking.")
def pin(names: tuple[str, ...], path: Path, yes: bool) -> None:
    """Pin the host keys of boards.

    Compare each with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the board.
    """
    from agent.update.fleet import read_inventory
    from agent.update.fleet.ssh import pin as pin_key
    from agent.update.fleet.ssh import scan, unpinned

    inventory = read_inventory(path)
    missing = unpinned(inventory.known_hosts, inventory.chosen(names).values())
    for board in missing:
        key = scan(board)
        click.echo(f"{board.name:<16} {plain(key.fingerprint)}")
        if yes or click.confirm("Is this the board's key?"):
            pin_key(inventory.known_hosts, key)
    if not missing:
        click.echo("all host keys are pinned")


@fleet.command()
@click.argument("bundle", type=_PATH)
@_common
@click.option("--ledger", type=_PATH, help="Progress file; default: BUNDLE.ledger beside the inventory.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and do nothing.")
@click.pass_context
def rollout(
    ctx: click.Context,
    bundle: Path,
    path: Path,
    names: tuple[str, ...],
    ledger: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Update every board to BUNDLE: canary first, then in batches.

    The rollout stops when a canary, or more than the permitted share of a batch, does not keep the version;
    unreachable boards do not count as failed. The same command again continues with the boards that are left or
    failed.
    """
    import asyncio

    from agent.update.fleet import read_inventory
    from agent.update.fleet.rollout import Ledger, Rollout, read_wanted, verdict
    from agent.update.fleet.ssh import check_pinned

    inventory = read_inventory(path)
    boards, wanted = inventory.chosen(names), read_wanted(bundle)
    check_pinned(inventory.known_hosts, boards.values())
    ledger = ledger or inventory.path.absolute().parent / f"{bundle.name}.ledger"
    progress = Ledger(ledger)
    work = Rollout(inventory, wanted, progress)
    if dry_run:
        _print_plan(work.planned(boards), as_json=as_json)
        return
    lines = RolloutLines(err=as_json)
    with progress.owned():
        state = work.begin(boards)
        try:
            state = asyncio.run(work.run(state, lines.watch, lines.show))
        except KeyboardInterrupt:
            click.echo("interrupted: boards that are updating continue by themselves", err=True)
            click.echo(f"run the same command again to continue; ledger {_shown(ledger)}", err=True)
            raise
    for outcome in state.outcomes.values() if as_json else ():
        print_json(outcome)
    click.echo(f"{verdict(state)}\nledger {_shown(ledger)}", err=as_json)
    if not state.complete:
        click.echo("run the same command again to continue", err=as_json)
    ctx.exit(_rollout_code(state))


def _shown(path: Path) -> str:
    return click.format_filename(path)


def _print_plan(batches: Sequence[tuple[str, ...]], *, as_json: bool) -> None:
    if as_json:
        print_json(batches)
        return
    for number, batch in enumerate(batches):
        click.echo(f"{'canary' if number == 0 else f'batch {number}':<9} {', '.join(batch)}")


def _rollout_code(state: RolloutProgress) -> int:
    if state.complete:
        return _WELL
    bad = state.reason or any(one.kind != "unreachable" for one in state.outcomes.values() if not one.is_good)
    return _FAILED if bad else _UNREACHABLE


class RolloutLines:
    """Prints a line for each step of a board, and for its outcome; to stderr if `err`."""

    def __init__(self, err: bool) -> None:
        self._err = err
        self._steps: dict[str, str] = {}

    def watch(self, board: str, step: str) -> None:
        if self._steps.get(board) != step:
            self._steps[board] = step
            click.echo(f"{board:<16} {plain(step)[:_STEP_MAX]}", err=self._err)

    def show(self, outcome: BoardOutcome) -> None:
        from agent.update.fleet.rollout import size

        why = f": {plain(outcome.reason)}" if outcome.reason else ""
        took = f"{outcome.seconds:.0f} s, {size(outcome.sent)} sent"
        kind = click.style(outcome.kind.replace("_", " "), fg="green" if outcome.is_good else "red")
        click.echo(f"{outcome.board:<16} {kind} ({took}){why}", err=self._err)


def _boards(path: Path, names: tuple[str, ...]) -> tuple[Inventory, list[FleetBoard]]:
    """Return the selected boards, each with a pinned host key."""
    from agent.update.fleet import read_inventory
    from agent.update.fleet.ssh import check_pinned

    inventory = read_inventory(path)
    boards = list(inventory.chosen(names).values())
    check_pinned(inventory.known_hosts, boards)
    return inventory, boards


def _ask(
    inventory: Inventory,
    boards: list[FleetBoard],
    command: str,
    show: Callable[[BoardAnswer], None] = lambda answer: None,
    patience_s: float = 120.0,
) -> list[BoardAnswer]:
    import asyncio

    from agent.update.fleet.ssh import Transport, ask_all

    transport = Transport(inventory.known_hosts)
    at_once = inventory.policy.at_once
    asking = ask_all(transport, boards, command, at_once=at_once, patience_s=patience_s, show=show)
    return asyncio.run(asking)


def _print_answer(one: BoardAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(one)
        return
    state = "" if one.fault is None else f"  {one.fault}: {plain(one.reason)}"
    click.secho(f"── {one.board}{state}", bold=True, fg="red" if one.fault else None)
    if one.out:
        click.echo(plain(one.out.rstrip(), keep="\n"))


def _exit_code(answers: Sequence[BoardAnswer | BoardRow]) -> int:
    faults = {one.fault for one in answers}
    return _FAILED if "failed" in faults else _UNREACHABLE if "unreachable" in faults else _WELL


_COLUMNS = ("board", "version", "counter", "previous", "daemon", "update")


@dataclass(frozen=True)
class BoardRow:
    """Row of one board.

    Attributes:
        board: name.
        fault: `failed` or `unreachable`; empty: it has answered. reason: of the fault.
        state: None: no valid answer.
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
        return (self.board, update.version, counter, update.previous, self.state.describe(), newest)


def rows(answers: Sequence[BoardAnswer]) -> list[BoardRow]:
    """Build the table of answers to `status`."""
    from agent.update.fleet.board import STRANGE, parse_state

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
    from rich.text import Text

    if as_json:
        for row in found:
            print_json(row)
        return
    table = open_table(*_COLUMNS)
    for row in found:
        colour = "red" if row.fault else ""
        table.add_row(*(Text(plain(cell), colour) for cell in row.cells()))
    console(160).print(table)
