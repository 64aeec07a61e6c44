"""`vedette optimise search` and `search-export`: progress, the table of the front, and the files."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.cli.output import console, open_table, print_json, show_progress, tell
from agent.errors import ModelError, ReportedError
from agent.models.writer import check_first, write_first
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


def search_and_print(*, as_json: bool, **options: Any) -> None:
    """Search, and print the front.

    Args:
        as_json: print JSON.
        options: see `agent.optimise.search.run.SearchRequest`.

    Raises:
        VedetteError: no trial was trained to the end, or see `agent.optimise.search.run.search`.
    """
    _check_extra()
    from agent.optimise.search.run import SearchRequest, search

    request = SearchRequest(**options)
    _files(request.study, request.files)
    refuse_inside([request.folder / "trials"], inputs_of(data=request.data, recipe=request.recipe))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trial is put back, as by Ctrl-C
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the user's code may print
            found = search(request, show_progress, tell)
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


def _files(study: str, files: Path | None) -> Path:
    """Return the folder of the networks of a study."""
    if files is None and "://" in study:
        raise click.UsageError("--files: name the folder for checkpoints and networks, which all workers share")
    return files or Path(study)


def export_and_print(
    study: str, number: int, out: Path, *, files: Path | None, command: str, force: bool, as_json: bool
) -> None:
    """Write the INT8 file of a trial with manifest and report, and print a line, or the report as JSON.

    Raises:
        ModelError: there is no such trial, it was not trained to the end, or a file is there already.
        StorageError: the study cannot be read, or a file not be written.
    """
    _check_extra()
    from agent.optimise.search.results import read_candidate

    folder = _files(study, files)
    kept = [path for pattern in ("*", "trials/*/*") for path in folder.glob(pattern)]
    check_first(out, force=force, inputs=kept)
    found = read_candidate(study, folder, number, command)
    write_first(out, found.content, found.keys, msgspec.to_builtins(found.report), force=force)
    score = found.report.steps[0].score or 0.0
    if as_json:
        print_json(found.report)
        return
    click.echo(
        f"{plain(str(out))}: {len(found.content)} bytes, {score:.2%} on examples that decided nothing; "
        "manifest and report beside it"
    )


def _check_extra() -> None:
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
