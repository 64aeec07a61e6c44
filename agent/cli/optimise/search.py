"""`vedette optimise search`: search a space of networks for those that no other beats."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.cli.optimise.options import DATA, JSON, command_line, study_place
from agent.cli.options import PATH, duration
from agent.cli.output import console, open_table, print_json, show_progress, tell
from agent.errors import ModelError, ReportedError
from agent.optimise.inputs import inputs_of, refuse_inside
from agent.optimise.report import short_number
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.optimise.search.results import SearchResult, State


_WIDTH = 110


_WORDS: dict[State, str] = {
    "complete": "trained to the end",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
}


def _seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    return None if text is None else duration(text)


@click.command()
@click.argument("recipe", type=PATH)
@click.option(
    "--study", required=True, callback=study_place, metavar="FOLDER|URL", help="Where the trials are kept."
)
@click.option("--files", type=PATH, help="Folder for the networks; of a folder it is the study's own.")
@click.option("--trials", type=click.IntRange(min=1), help="End when the study has so many.")
@click.option("--for", "seconds", metavar="TIME", callback=_seconds, help="End after this time, such as 60m.")
@click.option("--board", default="", metavar="USER@HOST", help="Measure the latency there, over SSH.")
@DATA
@JSON
def search(as_json: bool, **options: Any) -> None:
    """Search a space of networks for those that no other beats in accuracy, latency and size.

    RECIPE has a section [search], see `vedette optimise recipe search train data`. Its function runs with your
    rights. The latency is that of one thread of this machine, or what `vedette bench` finds on the board.

    The study is a folder, which may be a shared one; the networks lie in it as trials/NUMBER/int8.tflite, with
    manifest and report. Or it is a database, and --files the folder for these: postgresql://USER@HOST/NAME,
    sqlite:///FILE, redis://HOST, or Optuna's server grpc://HOST:PORT. The same command on another machine, or in
    another terminal, joins the search; given again, it goes on with one that was interrupted.

    Without --trials and --for it ends when all networks of the space have been tried, or by Ctrl-C.
    """
    check_extra()
    from agent.optimise.search import run

    request = run.SearchRequest(command=command_line(), **options)
    if request.files is None and "://" in request.study:
        raise click.UsageError("--files: name the folder for the networks, which all workers share")
    refuse_inside([request.folder / "trials"], inputs_of(data=request.data, recipe=request.recipe))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trial is put back, as by Ctrl-C
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the user's code may print
            found = run.search(request, show_progress, tell)
    except KeyboardInterrupt:
        if request.folder.exists():  # else the study is not begun yet
            tell(f"interrupted: the same command goes on from {request.study}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        show_progress("")
    _print_json(found) if as_json else _print(found)
    if reason := found.reason_of_none:
        raise ReportedError(f"{found.study}: {reason}")


def check_extra() -> None:
    """Raise ModelError if the extra of the workshop is missing."""
    try:
        import optuna
        import torch
    except ImportError as error:
        raise ModelError(f"a search needs pip install '.[optimise]' in the clone: {error}") from error
    del optuna, torch


def _print_json(found: SearchResult) -> None:
    print_json({**msgspec.to_builtins(found), "front": [one.number for one in found.front]})


def _print(found: SearchResult) -> None:
    figures = ("accuracy %", "ms", "kB")
    table = open_table("trial", "parameters", *figures, right=("trial", *figures))
    for one in found.front:
        parameters = ", ".join(f"{name} = {value}" for name, value in one.parameters.items())
        values = short_number(one.accuracy, 100.0), short_number(one.latency_ms), short_number(one.size, 1e-3)
        table.add_row(str(one.number), plain(parameters), *values)
    console(_WIDTH, markup=False).print(table)
    states = Counter(one.state for one in found.trials)
    counted = ", ".join(f"{states[state]} {words}" for state, words in _WORDS.items() if states[state])
    click.echo(f"{plural(len(found.trials), 'trial')}: {counted}; no other beats {len(found.front)} of them")
