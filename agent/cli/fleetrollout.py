"""What `vedette fleet rollout` does: the plan, the table while it goes on, the report at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from agent.cli.fleettable import RolloutLines, RolloutTable
from agent.cli.live import is_terminal
from agent.fleet.inventory import read_inventory
from agent.fleet.ledger import Ledger, Standing
from agent.fleet.pinning import check_pinned
from agent.fleet.plan import Batch, plan
from agent.fleet.report import render, verdict
from agent.fleet.rollout import Rollout, check_there, read_wanted
from agent.storage.durable import write_atomic

_INTERRUPTED = """\
interrupted: boards that are at the update go on with it by themselves; what was done is in {ledger}
the same command again goes on"""
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
    """Take boards to a version; gives the exit code.

    Args:
        bundle: that brings it.
        path: of the inventory.
        names: of the boards; none: all.
        ledger: file of what has been done.
        report: file of the page.
        dry_run: show the plan only.
        as_json: print JSON.

    Raises:
        FleetError, BundleError, StorageError: see `Rollout`.
    """
    inventory = read_inventory(path)
    boards = inventory.chosen(names)
    if dry_run:
        check_there(bundle)
        policy = inventory.policy
        _print_plan(plan(list(boards), policy.canary, policy.batches), as_json=as_json)
        return _WELL
    wanted = read_wanted(bundle)
    check_pinned(inventory.known_hosts, boards.values())
    ledger = ledger or inventory.path.absolute().parent / f"{bundle.name}.ledger"
    report = report or ledger.with_name(f"{ledger.name}.html")
    kept = Ledger(ledger)
    with kept.owned():
        rollout = Rollout(inventory, wanted, kept)
        standing = rollout.begin(boards)
        try:
            standing = _go(rollout, standing, bundle.name, err=as_json)
        except KeyboardInterrupt:
            click.echo(_INTERRUPTED.format(ledger=click.format_filename(ledger)), err=True)
            raise
    write_atomic(report, render(standing).encode())
    _print_end(standing, ledger, report, as_json=as_json)
    return _code(standing)


def _go(rollout: Rollout, standing: Standing, title: str, *, err: bool) -> Standing:
    """A table where there is a terminal for it, lines elsewhere."""
    if err or not is_terminal():
        lines = RolloutLines(err)
        return asyncio.run(rollout.run(standing, lines.watch, lines.show))
    from rich.live import Live

    table = RolloutTable(title, standing.begun.batches, standing.outcomes)
    with Live(table, refresh_per_second=4):
        return asyncio.run(rollout.run(standing, table.watch, table.show))


def _print_plan(batches: Sequence[Batch], *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(batches).decode())
        return
    for number, batch in enumerate(batches):
        click.echo(f"{'canary' if number == 0 else f'batch {number}':<9} {', '.join(batch)}")


def _print_end(standing: Standing, ledger: Path, report: Path, *, as_json: bool) -> None:
    if as_json:
        for outcome in standing.outcomes.values():
            click.echo(msgspec.json.encode(outcome).decode())
    err = as_json
    click.echo(verdict(standing), err=err)
    click.echo(f"ledger {click.format_filename(ledger)}, report {click.format_filename(report)}", err=err)
    if not standing.complete:
        click.echo("do it again to go on with what is left", err=err)


def _code(standing: Standing) -> int:
    if standing.complete:
        return _WELL
    bad = standing.reason or any(
        one.kind != "unreachable" for one in standing.outcomes.values() if not one.is_good
    )
    return _FAILED if bad else _UNREACHABLE
