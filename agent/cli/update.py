"""`vedette update`: apply a signed bundle on trial, or roll back."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.output import print_json
from agent.errors import InUseError, StorageError, UpdateError
from agent.text import PlainFormatter, plain

if TYPE_CHECKING:
    from agent.update.install.health_check import Systemd
    from agent.update.install.journal import Order, Update
    from agent.update.install.slots import Paths


_FAILED = 1
_LOG = "%(message)s"


@click.group()
def update() -> None:
    """Update this board from a signed bundle, or roll it back.

    \b
    received → verified → staged → tested [→ shadow] → switching → trial → committed | rolled_back
    Before the switch, any fault refuses the bundle, and the running version continues. Then the new version is on
    trial: it stays only if every stream that inferred before infers again. After a power cut the board starts the
    old version or the new one.
    """  # noqa: D301


@update.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--here",
    is_flag=True,
    help="Do the work in this process instead of the unit; do not interrupt it.",
)
@click.pass_context
def apply(ctx: click.Context, file: Path, here: bool) -> None:
    """Update this board from the bundle FILE; its signature FILE.sig is beside it.

    The unit vedette-update.service does the work: this command only shows it, and may be interrupted. Exit code:
    0 committed, 1 refused or rolled back.
    """
    from agent.update.install.health_check import Systemd
    from agent.update.install.updater import Updater

    where = _paths()
    with _locked(where):
        Updater(where, Systemd(), _print_line).receive(file)
    done = _continue(where, here=here)
    ctx.exit(0 if done is not None and done.state == "committed" else _FAILED)


@update.command()
def resume() -> None:
    """Continue an interrupted update to its end; do nothing if there is none."""
    from agent.update.install.health_check import Systemd

    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(_LOG))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _work(_paths(), Systemd())


def _work(where: Paths, service: Systemd) -> Update | None:
    from agent.update.install.updater import Updater

    with _locked(where):
        return Updater(where, service, _print_line).resume()


def _continue(where: Paths, *, here: bool = False) -> Update | None:
    """Show the unit's work until it is done; without systemd, do it in this process."""
    from agent.update.install.health_check import Systemd
    from agent.update.install.journal import follow

    if here or not Systemd.is_there():
        return _work(where, Systemd())
    Systemd().hand_over()
    try:
        return follow(where, _print_line, idle=Systemd().idle)
    except KeyboardInterrupt:
        click.echo("the update continues by itself: see `vedette update status`", err=True)
        raise


@update.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def status(as_json: bool) -> None:
    """Show the version that runs, the version before, and the current update."""
    from agent.update.install.journal import status as update_status

    found = update_status(_paths())
    if as_json:
        print_json(found, indent=2)
        return
    for line in found.lines():
        click.echo(plain(line))


@update.command()
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON instead of a table.")
@click.option(
    "-n", "count", type=click.IntRange(1), default=20, show_default=True, help="Number of newest updates to show."
)
def history(as_json: bool, count: int) -> None:
    """Show the outcome of every update, with its reason."""
    from agent.update.install.journal import Journal, history_line

    found = Journal(_paths()).history()[-count:]
    if not found and not as_json:
        click.echo("no update yet")
    for one in found:
        if as_json:
            print_json(one)
        else:
            click.echo(plain(history_line(one)))


@update.command()
@click.option("--once", is_flag=True, help="Do nothing if the last operation was this rollback (safe to retry).")
@click.pass_context
def rollback(ctx: click.Context, once: bool) -> None:
    """End the running update, or roll back to the previous version or models.

    If the previous version is not ready within two minutes, the present one returns. A version that was refused
    or failed its trial is never rolled back to. Exit code: 0 rolled back, or the running update was told to end;
    1 failed.
    """
    from agent.update.install.health_check import Systemd
    from agent.update.install.journal import Journal
    from agent.update.install.switch import Rollback, already_rolled_back

    where = _paths()
    if once and (done_already := already_rolled_back(Journal(where))):
        click.echo(plain(done_already))
        return
    if _send_order(where, "rollback"):
        return
    with _locked(where):
        Rollback(where, Systemd(), Journal(where), _print_line).begin()
    done = _continue(where)
    ctx.exit(0 if done is not None and done.by == "operator" else _FAILED)


@update.command()
def confirm() -> None:
    """Commit what is on trial, without waiting for the trial's end.

    Models in the shadow state go on trial.
    """
    if not _send_order(_paths(), "confirm", but=("received", "verified", "staged", "tested")):
        raise UpdateError("nothing is on trial: see `vedette update status`")


def _send_order(where: Paths, order: Order, but: Collection[str] = ()) -> bool:
    """Store an order for the current update; return False if there is none, or it is in one of these states."""
    from agent.update.install.health_check import Systemd
    from agent.update.install.journal import Journal

    try:
        at_hand = Journal(where).read()
    except UpdateError:  # the next operation sets the damaged journal aside
        return False
    if at_hand is None or at_hand.finished or at_hand.state in but:
        return False
    Journal(where).order(order)
    if Systemd.is_there() and Systemd().idle():  # its process has died
        Systemd().hand_over()
    click.echo(f"{order} requested: see `vedette update status`")
    return True


@update.command(hidden=True)
@click.argument("models", type=click.Path(path_type=Path))
def selftest(models: Path) -> None:
    """Run a set of models on their golden inputs before it is used."""
    import agent.daemon.daemon  # noqa: F401  # what the daemon needs can be imported
    from agent.update.bundle.golden import selftest as run_golden

    click.echo("the daemon can be imported")
    for line in run_golden(models):
        click.echo(plain(line))


@update.command(hidden=True)
@click.argument("slot", type=click.Choice(["a", "b"]))
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Bundle of the slot's content.")
@click.option("--source", default="", help="File that the bundle is a copy of.")
@click.option("--owned", is_flag=True, help="The caller holds the lock of the update folder.")
def adopt(slot: str, bundle: Path | None, source: str, owned: bool) -> None:
    """Register a slot that scripts/install has filled."""
    from agent import __version__
    from agent.update.install.slots import parse_slot
    from agent.update.install.stage import adopt as register

    where = _paths()
    with nullcontext() if owned else _locked(where):
        register(where, parse_slot(slot), __version__, bundle, source)


def _paths() -> Paths:
    """Return the update paths of this board.

    Raises:
        StorageError: this user may not read the state folder.
    """
    from agent.update.install.slots import board_paths

    where = board_paths()
    if where.state.is_dir() and not os.access(where.state, os.R_OK | os.X_OK):
        raise StorageError(f"{where.state}: only root may read it: try `sudo vedette update …`")
    return where


@contextmanager
def _locked(where: Paths) -> Iterator[None]:
    """Lock the updates of this board.

    Raises:
        UpdateError: another process has locked them. StorageError: this user may not write the state folder.
    """
    from agent.storage.files import make_folder
    from agent.storage.state import OwnedFolder

    if os.geteuid() and not os.access(where.state.parent, os.W_OK):
        raise StorageError(f"{where.state}: only root updates a board: try `sudo vedette update …`")
    make_folder(where.state)
    try:
        with OwnedFolder(where.state):
            yield
    except InUseError as error:
        raise UpdateError(
            "an update is running: see `vedette update status`; `vedette update rollback` ends it"
        ) from error


def _print_line(line: str) -> None:
    try:
        click.echo(plain(line))
    except BrokenPipeError:  # the reader has closed the pipe; the update must not stop for that
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
