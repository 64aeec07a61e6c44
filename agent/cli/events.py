"""`vedette events`: select, show and export messages of the event queue, and describe them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from agent.cli.options import DEFAULT_CONFIG, config_option, moment, state_folder_option
from agent.cli.output import event_header, event_line, format_event, format_verdict
from agent.errors import StorageError
from agent.text import local_time, plain

if TYPE_CHECKING:
    from agent.storage.spool.recovery import History, HistoryEntry


_POLL_S, _MOST_FAILURES = 0.5, 10
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
        click.option(
            "--kind", default="", help="Show only new, update, end, keyword, verdicts, detections or clips."
        ),
        click.option("--stream", default="", help="Show only this stream."),
        state_folder_option,
        config_option("The daemon's configuration.", required=False),
    ):
        command = option(command)
    return command


def _history(path: Path | None, folder: Path | None) -> History:
    from agent.config import StorageConfig
    from agent.storage.spool.recovery import History
    from agent.storage.state import folder_of

    if folder is None:
        if path is None and not DEFAULT_CONFIG.exists():
            return History(folder_of(StorageConfig()))
        from agent.config.load import load

        folder = folder_of(load(path or DEFAULT_CONFIG).config.storage)
    return History(folder)


def _selected(messages: Iterable[HistoryEntry], choice: dict[str, Any]) -> Iterator[HistoryRow]:
    """Yield the messages that the options of `_selection` select."""
    since, until = choice["since"] or float("-inf"), choice["until"] or float("inf")
    for row in map(HistoryRow, messages):
        if (
            since <= row.past.stored.put_at < until
            and choice["stream"] in ("", row.stream)
            and choice["kind"] in ("", row.kind)
            and (not choice["label"] or choice["label"] in row.labels)
        ):
            yield row


@events.command()
@click.option(
    "-n", "count", type=click.IntRange(0), default=20, show_default=True, help="Number of messages at most."
)
@click.option("-f", "--follow", is_flag=True, help="Continue with new messages until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
@_selection
def tail(count: int, follow: bool, as_json: bool, path: Path | None, folder: Path | None, **choice: Any) -> None:
    """Show the newest messages of the event queue, waiting and delivered ones.

    They are kept within [storage] history_max_bytes. Messages that are only in memory are not shown.
    """
    history = _history(path, folder)
    newest = next(history.backwards(), None)
    last = newest.stored.seq if newest else 0
    found = list(islice(_selected(history.backwards(), choice), count))
    if not as_json:
        click.echo(event_header())
    for item in reversed([item for item in found if item.past.stored.seq <= last]):
        waits = "" if item.past.acknowledged else "  (waits)"
        click.echo(item.json() if as_json else item.text() + waits)
    if follow:
        for item in _selected(_new(history, last), choice):
            click.echo(item.json() if as_json else item.text())


def _new(history: History, last: int) -> Iterator[HistoryEntry]:
    """Yield messages above a number as they are queued, without end."""
    failed = 0
    while True:
        try:
            for past in history.after(last):
                yield past
                last = past.stored.seq
            failed = 0
        except StorageError:
            failed += 1
            if failed > _MOST_FAILURES:
                raise
        time.sleep(_POLL_S)


@events.command()
@click.option(
    "-o", "--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="File to write."
)
@_selection
def export(output: IO[str], path: Path | None, folder: Path | None, **choice: Any) -> None:
    """Write the messages of the event queue in the order of their numbers, as lines of JSON.

    Each has the fields that a subscriber receives, and whether the broker has acknowledged it.
    `latency_ms.publish` is 0, because it is not stored.
    """
    items = _selected(_history(path, folder).after(0), choice)
    first = next(items, None)  # a database that cannot be read leaves an old file as it is
    found = chain([first] if first else [], items)
    output.writelines(item.json() + "\n" for item in found)


class HistoryRow:
    """A message of the event queue, to select and format."""

    def __init__(self, past: HistoryEntry) -> None:
        self.past = past

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The payload as delivered, except the waiting time; empty for a damaged row."""
        import msgspec

        from agent.comms import messages

        stored = self.past.stored
        with suppress(msgspec.MsgspecError, ValueError):
            found: dict[str, Any] = msgspec.json.decode(messages.complete_spooled(stored, stored.put_at))
            return found
        return {}

    @property
    def stream(self) -> str:
        return str(self.fields.get("stream", ""))

    @property
    def kind(self) -> str:
        """Return `new`, `update`, `end` or `keyword`; for other messages the last topic level."""
        return str(self.fields.get("kind", self.past.stored.topic.rpartition("/")[2]))

    @property
    def labels(self) -> set[str]:
        things = [self.fields, self._track, *(self.fields.get("detections") or ())]
        return {str(thing["label"]) for thing in things if thing.get("label")}

    @property
    def _track(self) -> dict[str, Any]:
        """Return the track of an event; a clip has only the track's id."""
        track = self.fields.get("track") or {}
        return track if isinstance(track, dict) else {"id": track}

    def json(self) -> str:
        """Return a line of JSON: message, topic, and whether the broker has acknowledged it."""
        import msgspec

        body = {"topic": self.past.stored.topic, "acknowledged": self.past.acknowledged, **self.fields}
        return msgspec.json.encode(body).decode(errors="replace")

    def text(self) -> str:
        """Return a line of text."""
        import msgspec

        from agent.comms import messages
        from agent.structs import convert

        with suppress(msgspec.MsgspecError):
            return event_line(format_event(convert(self.fields, messages.EventMessage, strict=False)))
        with suppress(msgspec.MsgspecError):
            return event_line(format_verdict(convert(self.fields, messages.VerdictMessage, strict=False)))
        at = datetime.fromtimestamp(self.past.stored.put_at, UTC)
        text = f"{local_time(at)}  {self.stream:10}  {self.kind:19}  {', '.join(sorted(self.labels)):14}"
        return plain(f"{text}  {self.fields.get('path', '')}").rstrip()
