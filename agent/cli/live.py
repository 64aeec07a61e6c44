"""Show messages as they arrive: a live table in a terminal, else a line for each event."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

import click

from agent.cli.roster import Roster
from agent.cli.row import COLUMNS, format_event, line
from agent.comms.consumer.subscribe import ReceivedMessage, SequenceGap
from agent.text import local_time, plain


def is_terminal() -> bool:
    """Return True if stdout is a terminal with cursor control."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def follow(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    """Show messages until there are no more: as a live table in a terminal, else as a line for each event."""
    (_as_table if is_terminal() else _as_lines)(messages, title)


def _as_table(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    from rich.live import Live

    from agent.cli.table import EventTable

    table = EventTable(title)
    with Live(table, refresh_per_second=8):
        for message in messages:
            if message is not None:
                table.add(message)


def _as_lines(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    click.echo(title)
    click.echo(line(dict(zip(COLUMNS, COLUMNS, strict=True))))
    roster = Roster()
    for message in messages:
        if message is None:
            continue
        for gap in roster.take(message):
            click.echo(_missing(message.device, gap))
        if text := _line(message):
            click.echo(text)


def _missing(device: str, gap: SequenceGap) -> str:
    numbers = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    why = (
        "no loss on the way: it was cut off, and begins above what it may have given out"
        if gap.restart
        else "lost on the way"
    )
    return f"{local_time(datetime.now(UTC))}  {plain(device)} {numbers}: {why}"


def _line(message: ReceivedMessage) -> str:
    if (event := message.event()) is not None:
        return line(format_event(event))
    if message.kind == "status":
        status = plain(message.payload.decode(errors="replace"))
        return f"{local_time(datetime.now(UTC))}  {plain(message.device)} {status}"
    return ""


def follow_fleet(messages: Iterable[ReceivedMessage | None]) -> None:
    """Show a row for each device: live in a terminal, else once after the last message."""
    from agent.cli.roster import FleetTable, lines

    roster = Roster()
    if not is_terminal():
        try:
            for message in messages:
                if message is not None:
                    roster.take(message)
        finally:
            click.echo("\n".join(lines(roster)))
        return
    from rich.live import Live

    with Live(FleetTable(roster), refresh_per_second=4):
        for message in messages:
            if message is not None:
                roster.take(message)
