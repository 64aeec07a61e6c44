"""`vedette fleet rollout`: plan, live table and report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from agent.cli.fleet_tables import RolloutLines, RolloutTable
from agent.cli.json_output import print_json
from agent.cli.live import is_terminal
from agent.errors import StorageError
from agent.storage.files import write_atomic
from agent.update.bundle.signing import signature_of
from agent.update.fleet.inventory import check_place, read_inventory
from agent.update.fleet.ledger import Ledger, RolloutProgress
from agent.update.fleet.policy import Batch
from agent.update.fleet.report import check_free, render, verdict
from agent.update.fleet.rollout import Rollout, read_wanted
from agent.update.fleet.ssh import check_pinned

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
        FleetError, BundleError, StorageError: it cannot be begun, or not gone on with; see `Rollout`.
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
    kept = Ledger(ledger)
    rollout = Rollout(inventory, wanted, kept)
    if dry_run:
        _print_plan(rollout.planned(boards), as_json=as_json)
        _tell_left_out(kept)
        return _WELL
    with kept.owned():
        standing = rollout.begin(boards)
        _tell_left_out(kept)
        standing = _go(rollout, standing, bundle.name, ledger, err=as_json)
    return _end(standing, ledger, report, as_json=as_json)


def _tell_left_out(ledger: Ledger) -> None:
    if ledger.left_out:
        lines = "line is" if ledger.left_out == 1 else "lines are"
        name = click.format_filename(ledger.path)
        click.echo(f"{name}: {ledger.left_out} {lines} damaged or cut off, and left out", err=True)


def _go(rollout: Rollout, standing: RolloutProgress, title: str, ledger: Path, *, err: bool) -> RolloutProgress:
    try:
        return _show(rollout, standing, title, err=err)
    except KeyboardInterrupt:
        click.echo(_INTERRUPTED.format(ledger=click.format_filename(ledger)), err=True)
        raise


def _show(rollout: Rollout, standing: RolloutProgress, title: str, *, err: bool) -> RolloutProgress:
    if err or not is_terminal():
        lines = RolloutLines(err)
        return asyncio.run(rollout.run(standing, lines.watch, lines.show))
    from rich.live import Live

    table = RolloutTable(title, standing.begun.batches, standing.outcomes)
    with Live(table, refresh_per_second=4):
        return asyncio.run(rollout.run(standing, table.watch, table.show))


def _print_plan(batches: Sequence[Batch], *, as_json: bool) -> None:
    if as_json:
        print_json(batches)
        return
    for number, batch in enumerate(batches):
        click.echo(f"{'canary' if number == 0 else f'batch {number}':<9} {', '.join(batch)}")


def _end(standing: RolloutProgress, ledger: Path, report: Path, *, as_json: bool) -> int:
    """Print the result even if the HTML report cannot be written."""
    trouble, code = "", _code(standing)
    try:
        write_atomic(report, render(standing).encode())
    except StorageError as error:
        trouble, code = f"; there is no report: {error}", _FAILED
    _print_end(standing, as_json=as_json)
    places = f"ledger {ledger}{trouble}" if trouble else f"ledger {ledger}, report {report}"
    click.echo(click.format_filename(places), err=as_json or bool(trouble))
    if not standing.complete:
        click.echo("run the same command again to continue", err=as_json)
    return code


def _print_end(standing: RolloutProgress, *, as_json: bool) -> None:
    if as_json:
        for outcome in standing.outcomes.values():
            print_json(outcome)
    click.echo(verdict(standing), err=as_json)


def _code(standing: RolloutProgress) -> int:
    if standing.complete:
        return _WELL
    bad = standing.reason or any(
        one.kind != "unreachable" for one in standing.outcomes.values() if not one.is_good
    )
    return _FAILED if bad else _UNREACHABLE
