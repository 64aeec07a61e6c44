"""`vedette events`: show and export published messages, and describe them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.options import moment
from agent.cli.run import DEFAULT_CONFIG
from agent.errors import StorageError

if TYPE_CHECKING:
    from agent.cli.history import HistoryQuery, HistoryRow
    from agent.storage.spool.history import History, Past


# `--folder` of the verbs that look into a state folder, and a word when it is another one.

F = TypeVar("F", bound=Callable[..., Any])

_MARKS = ("lock", "spool.db", "clips")
"""Files of which a state folder has at least one."""
_CLIP = re.compile(r"\.?\d{4}-\d\d-\d\dT.*\.mkv(\.part)?")


def state_folder_option(verb: F) -> F:
    """Add the option `--folder`, passed as `folder`: the state folder, or None."""
    return click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        callback=_checked,
        help="State folder, in place of the configured one.",
    )(verb)


def _checked(context: click.Context, option: click.Parameter, folder: Path | None) -> Path | None:
    if folder is not None and (why := _objection(folder)):
        raise click.BadParameter(why, context, option)
    return folder


def _objection(folder: Path) -> str:
    """Return why a folder is no state folder; empty if it may be one."""
    if not os.access(folder, os.R_OK | os.X_OK):  # whoever opens what is in it says what is missing
        return ""
    if any(os.path.lexists(folder / mark) for mark in _MARKS):
        return ""
    full = folder.resolve()
    if _has_clips(full):
        return f"{folder} is the folder of a stream's clips: give the state folder, {full.parent.parent}"
    if full.name == "clips" or any(_has_clips(stream) for stream in full.iterdir() if stream.is_dir()):
        return (
            f"{folder} is a folder of clips: give the state folder, {full.parent}; where [storage] clips_folder "
            "is elsewhere, give the configuration with -c"
        )
    return f"{folder} is no state folder of vedette: it has none of {', '.join(_MARKS)}"


def _has_clips(folder: Path) -> bool:
    try:
        return any(_CLIP.fullmatch(file.name) for file in folder.iterdir())
    except OSError:
        return False


_LOOK_S, _PATIENCE = 0.5, 10
"""Pause between polls, s; and polls that may fail in a row, as while a damaged database is replaced."""


@click.group()
def events() -> None:
    """Show or export published messages, or describe them."""


@events.command()
def schema() -> None:
    """Print the JSON Schema of every message."""
    import msgspec

    from agent.comms import messages as payload

    click.echo(msgspec.json.format(msgspec.json.encode(payload.schema()), indent=2))


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select messages."""
    when = "2h, 7d, a date, or a time of ISO 8601."
    for option in (
        click.option("--until", type=moment, metavar="WHEN", help=f"Show only messages before: {when}"),
        click.option("--since", type=moment, metavar="WHEN", help=f"Show only messages since: {when}"),
        click.option("--label", default="", help="Show only this label."),
        click.option("--kind", default="", help="Show only new, update, end, keyword, detections or clips."),
        click.option("--stream", default="", help="Show only this stream."),
        state_folder_option,
        click.option(
            "-c",
            "--config",
            "path",
            type=click.Path(path_type=Path),
            help=f"The daemon's configuration.  [default: {DEFAULT_CONFIG}, if it is there]",
        ),
    ):
        command = option(command)
    return command


def _history(path: Path | None, folder: Path | None) -> History:
    from agent.config.device import StorageConfig
    from agent.storage.files import folder_of
    from agent.storage.spool.history import History

    if folder is None:
        if path is None and not DEFAULT_CONFIG.exists():
            return History(folder_of(StorageConfig()))
        from agent.config.load import load

        folder = folder_of(load(path or DEFAULT_CONFIG).config.storage)
    return History(folder)


def _wanted(choice: dict[str, Any]) -> HistoryQuery:
    from agent.cli.history import HistoryQuery

    return HistoryQuery(**{name: value for name, value in choice.items() if value is not None})


def _items(messages: Iterable[Past], wanted: HistoryQuery) -> Iterator[HistoryRow]:
    from agent.cli.history import HistoryRow

    return (item for item in map(HistoryRow, messages) if item in wanted)


@events.command()
@click.option(
    "-n", "count", type=click.IntRange(0), default=20, show_default=True, help="Number of messages at most."
)
@click.option("-f", "--follow", is_flag=True, help="Continue with new messages until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
@_selection
def tail(count: int, follow: bool, as_json: bool, path: Path | None, folder: Path | None, **choice: Any) -> None:
    """Show the newest messages of the event queue, waiting and delivered ones.

    They are kept for as long as [storage] history_max_bytes and history_max_age_s say. What lies in memory only
    is not among them.
    """
    from itertools import islice

    from agent.cli.row import COLUMNS, line

    history, wanted = _history(path, folder), _wanted(choice)
    newest = next(history.backwards(), None)
    last = newest.stored.seq if newest else 0
    found = list(islice(_items(history.backwards(), wanted), count))
    if not as_json:
        click.echo(line(dict(zip(COLUMNS, COLUMNS, strict=True))))
    for item in reversed([item for item in found if item.past.stored.seq <= last]):
        waits = "" if item.past.acknowledged else "  (waits)"
        click.echo(item.json() if as_json else item.text() + waits)
    if follow:
        for item in _items(_new(history, last), wanted):
            click.echo(item.json() if as_json else item.text())


def _new(history: History, last: int) -> Iterator[Past]:
    """Yield messages above a number as they are put into the queue, for ever."""
    failed = 0
    while True:
        try:
            for past in history.after(last):
                yield past
                last = past.stored.seq
            failed = 0
        except StorageError:
            failed += 1
            if failed > _PATIENCE:
                raise
        time.sleep(_LOOK_S)


@events.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "-o", "--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="File to write."
)
@_selection
def export(form: str, output: IO[str], path: Path | None, folder: Path | None, **choice: Any) -> None:
    """Write the messages of the event queue in the order of their numbers; see `tail`.

    A line has what the subscriber gets, and whether it is noted that the broker has it. `publish` of the latency,
    the time that it waited, is 0: it is not kept.
    """
    import csv
    from itertools import chain

    from agent.cli.history import COLUMNS

    items = _items(_history(path, folder).after(0), _wanted(choice))
    first = next(items, None)  # a database that cannot be read leaves an old file as it is
    found = chain([first] if first else [], items)
    if form == "csv":
        table = csv.writer(output, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(item.row() for item in found)
    else:
        output.writelines(item.json() + "\n" for item in found)
