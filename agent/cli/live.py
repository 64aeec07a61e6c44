"""Show messages as they arrive: as a live table in a terminal, else as a line for each event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import click
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.cli.output import EVENT_COLUMNS, EVENT_RIGHT, event_header, event_line, format_event, is_terminal
from agent.cli.roster import MOST, STATUS_COLOURS, DeviceStatus, FleetTable, Roster, lines
from agent.comms.consumer.subscribe import ReceivedMessage, SequenceGap
from agent.comms.messages import EventMessage
from agent.text import local_time, plain

_ROWS, _AROUND = 16, 7
"""Rows at most, and terminal lines reserved around them."""
_WIDE = 100
"""With fewer columns the gaps are narrower, so that all columns fit into 80."""
_DATED = 125
"""With fewer columns only the time of day is shown."""
_BREAKS = ("stream", "event", "what", "zones")
"""Columns whose text may wrap."""
_LONGEST = 40
"""Longest count that is shown, characters."""
_FOOTER = 4
"""Lines of the footer at most."""
_GAP = "   "
_COLOURS = {"new": "green", "update": "cyan", "end": "magenta", "keyword": "yellow"}


class EventTable:
    """Live table of the newest events, above it a row for each device if there are several, below it counts."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._events: deque[EventMessage] = deque(maxlen=_ROWS)
        self._roster = Roster()
        self._fleet = FleetTable(self._roster)
        self._counts: dict[str, str] = {}

    def add(self, message: ReceivedMessage) -> None:
        self._roster.add(message)
        if (event := message.event()) is not None:
            self._events.append(event)
        elif message.kind == "count":
            key = f"{message.device}/{message.stream} {message.topic.rsplit('/', 1)[-1]}"
            if not message.payload:  # the stream was removed
                self._counts.pop(key, None)
            elif key in self._counts or len(self._counts) < MOST:
                self._counts[key] = plain(message.payload[:_LONGEST].decode(errors="replace"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        several = len(self._roster) > 1
        if several:
            self._fleet.height = console.height // 2 - 1
            yield self._fleet
        table = Table(
            title=self._title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1 if options.max_width >= _WIDE else 0, 0, 0),
        )
        room = (console.height - self._fleet.height - 1 if several else console.height) - _AROUND
        events = list(self._events)[-max(1, room) :]
        # Without zones the column is left out.
        shown = [name for name in EVENT_COLUMNS if name != "zones" or any(event.track.zones for event in events)]
        for name in shown:
            table.add_column(
                name,
                justify="right" if name in EVENT_RIGHT else "left",
                no_wrap=name not in _BREAKS,
                overflow="fold",
            )
        for event in events:
            row = format_event(event)
            if options.max_width < _DATED:
                row["time"] = row["time"][len("2026-11-27 ") : -len("+01:00")]
            if several:
                row["stream"] = f"{plain(event.device)}/{row['stream']}"
            table.add_row(*(_text(event, name, row[name]) for name in shown))
        yield table
        yield self._footer(options.max_width)

    def _footer(self, width: int) -> Text:
        lines, items = [Text()], list(self._items())
        for number, item in enumerate(items):
            if lines[-1] and lines[-1].cell_len + len(_GAP) + item.cell_len > width:
                if len(lines) == _FOOTER:
                    lines.append(Text(f"and {len(items) - number} more", "dim"))
                    break
                lines.append(Text())
            lines[-1].append(_GAP if lines[-1] else "").append_text(item)
        return Text("\n").join(lines)

    def _items(self) -> Iterator[Text]:
        if len(self._roster) == 1:
            yield from self._about(*self._roster)
        several = len(self._roster) > 1
        for key, count in sorted(self._counts.items()):
            if several and count == "0":  # of a fleet only counts above 0
                continue
            yield Text(f"{plain(key)}: {count}", "dim" if count == "0" else "bold")

    def _about(self, device: DeviceStatus) -> Iterator[Text]:
        """Yield status and health of the only device."""
        colour = STATUS_COLOURS.get(device.status, "white")
        yield Text(f"{plain(device.name)} ").append(device.status or "unknown", colour)
        if device.numbers.lost:
            yield Text(f"lost {device.numbers.lost}", "red")
        if device.health is not None:
            row = device.cells()
            for name in ("streams", "fps", "temp", "waiting", "version"):
                yield Text(f"{name} {row[name]}", "dim")


def _text(event: EventMessage, name: str, cell: str) -> Text:
    return Text(cell, _COLOURS[event.kind] if name == "event" else "")


def follow(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    """Show messages until there are no more: as a live table in a terminal, else as a line for each event."""
    (_as_table if is_terminal() else _as_lines)(messages, title)


def _as_table(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    table = EventTable(title)
    with Live(table, refresh_per_second=8):
        for message in messages:
            if message is not None:
                table.add(message)


def _as_lines(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    click.echo(title)
    click.echo(event_header())
    roster = Roster()
    for message in messages:
        if message is None:
            continue
        for gap in roster.add(message):
            click.echo(_missing(message.device, gap))
        if text := _line(message):
            click.echo(text)


def _missing(device: str, gap: SequenceGap) -> str:
    numbers = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    why = "no loss: the device restarted and skipped numbers" if gap.restart else "lost"
    return f"{local_time(datetime.now(UTC))}  {plain(device)} {numbers}: {why}"


def _line(message: ReceivedMessage) -> str:
    if (event := message.event()) is not None:
        return event_line(format_event(event))
    if message.kind == "status":
        status = plain(message.payload.decode(errors="replace"))
        return f"{local_time(datetime.now(UTC))}  {plain(message.device)} {status}"
    return ""


def follow_fleet(messages: Iterable[ReceivedMessage | None]) -> None:
    """Show a row for each device: live in a terminal, else once after the last message."""
    roster = Roster()
    if not is_terminal():
        try:
            for message in messages:
                if message is not None:
                    roster.add(message)
        finally:
            click.echo("\n".join(lines(roster)))
        return
    with Live(FleetTable(roster), refresh_per_second=4):
        for message in messages:
            if message is not None:
                roster.add(message)
