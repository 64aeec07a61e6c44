"""Printing for all verbs: JSON, tables, progress, and events as table rows or lines of text."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from agent.text import TIME_WIDTH, attribute_texts, local_time, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from agent.comms.messages import EventMessage, VerdictMessage
    from agent.types import Box, Track


EVENT_COLUMNS = ("time", "stream", "event", "what", "score", "where %", "zones", "infer", "total")
EVENT_RIGHT = ("score", "infer", "total")
_WIDTHS = (TIME_WIDTH, 10, 19, 14, 5, 13, 10, 7, 7)
"""Column widths of a line, in characters."""
NO_VALUE = "–"


def console(width: int, *, markup: bool = True) -> Console:
    """Return a rich console that writes to stdout, as wide as the terminal.

    Args:
        width: columns where stdout is no terminal.
        markup: interpret rich's markup, such as `[red]`.
    """
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; `agent.cli.main` exits with 0

    return Output(width=None if sys.stdout.isatty() else width, highlight=False, markup=markup)


def open_table(*columns: str, right: Collection[str] = ()) -> Table:
    """Return a table without frame whose cells wrap; columns in `right` are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table


def print_json(value: Any, *, indent: int = 0) -> None:
    r"""Print a value as JSON.

    Bytes of a file name that are not UTF-8, which JSON cannot hold, are written as escapes, such as `\xff`.

    Args:
        value: what msgspec encodes.
        indent: spaces of each level; 0: everything on one line.
    """
    import msgspec

    try:
        text = msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = msgspec.json.encode(_escaped(msgspec.to_builtins(value)))
    click.echo((msgspec.json.format(text, indent=indent) if indent else text).decode())


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {_escaped(key): _escaped(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(one) for one in value]
    return plain(value) if isinstance(value, str) else value


_SILENT_S, _MINUTE_S = 10.0, 60.0
"""Longest time without a line in a log; and times below which seconds are told."""
_told_at = [time.monotonic()]
_SHARE = re.compile(r"(\d+(?:\.\d+)?)(?: ?%| of (\d+(?:\.\d+)?))")
_KNOWN_S = 5.0
"""Time of a pass after which the rest is foreseen."""
_pass: list[tuple[str, float, float]] = [("", 0.0, 0.0)]
"""Of the pass that is shown: its words, when it was first shown, and the share that was done then."""


def show_progress(what: str) -> None:
    """Show on one terminal line what is being done; an empty text clears it.

    In a log there is a line where nothing was told for 10 s. Where the text says "40 %" or "12 of 30", the time
    that is left is added.
    """
    now = time.monotonic()
    what += _time_left(what, now)
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{f'{plain(what)} …' if what else ''}", err=True, nl=False)
        return
    is_due = bool(what) and now - _told_at[0] >= _SILENT_S
    if is_due:
        click.echo(f"{plain(what)} …", err=True)
    if is_due or not what:
        _told_at[0] = now


def _time_left(what: str, now: float) -> str:
    """Return the time that a pass still takes if it goes on like this; empty: it is not known."""
    found = _SHARE.search(what)
    if found is None:
        return ""
    words, share = what[: found.start()], float(found[1]) / (float(found[2] or 100) or 1.0)
    before, begun, first = _pass[0]
    if words != before or share < first:
        _pass[0] = (words, now, share)
        return ""
    if now - begun < _KNOWN_S or not first < share < 1:
        return ""
    left = (now - begun) * (1 - share) / (share - first)
    return f", {left:.0f} s left" if left < _MINUTE_S else f", {left / _MINUTE_S:.0f} min left"


def tell(line: str) -> None:
    """Print a line to stderr, in place of the progress."""
    show_progress("")
    click.echo(plain(line), err=True)


def _told(track: Track) -> list[str]:
    return [f"{name}={text}" for name, text in attribute_texts(track.attributes)]


def format_event(event: EventMessage) -> dict[str, str]:
    """Return the text of each column of `EVENT_COLUMNS`."""
    track, latency = event.track, event.latency_ms
    texts = (
        local_time(event.captured_at),
        event.stream,
        f"{event.kind} ({_reason(event)})",
        " ".join([track.label, track.id.rsplit("-", 1)[-1], *_told(track)]),
        f"{track.score:.2f}",
        _where(event),
        ", ".join(track.zones),
        f"{latency.infer:.0f} ms" if latency.infer else NO_VALUE,
        f"{latency.total:.0f} ms" if latency.has_frame else NO_VALUE,
    )
    return dict(zip(EVENT_COLUMNS, map(plain, texts), strict=True))


def _reason(event: EventMessage) -> str:
    """Return the reason of an event; of a crossed line with its name and the direction."""
    crossed = event.track.crossed
    named = event.reason == "line" and crossed
    return f"line {crossed[-1].line} {crossed[-1].direction}" if named else event.reason


def format_verdict(verdict: VerdictMessage) -> dict[str, str]:
    """Return the text of each column of `EVENT_COLUMNS` for an inspected part."""
    boxes = [one.box for one in verdict.detections if one.box]
    texts = (
        local_time(verdict.triggered_at),
        verdict.stream,
        f"{verdict.verdict} ({verdict.reason})",
        f"part {_short_part(verdict)}",
        f"{verdict.score:.2f}",
        _percent(boxes[0]) if boxes else "",
        "",
        NO_VALUE,
        f"{verdict.judged_ms:.0f} ms",
    )
    return dict(zip(EVENT_COLUMNS, map(plain, texts), strict=True))


def _short_part(verdict: VerdictMessage) -> str:
    """Return the id of a part; of one that was made by the stream the number alone."""
    made = re.fullmatch(re.escape(verdict.stream) + r"-[0-9a-f]{8}-(\d+)", verdict.part)
    return made[1] if made else verdict.part


def _percent(box: Box) -> str:
    return " ".join(f"{edge * 100:.0f}" for edge in box)


def _where(event: EventMessage) -> str:
    """Return the box in percent of the frame; the sources of a fused event; empty for a keyword."""
    if event.track.evidence:
        return " ".join(sorted({one.source for one in event.track.evidence}))
    if event.kind == "keyword":
        return ""
    box = event.track.box
    return "everywhere" if box is None else _percent(box)


def event_line(texts: dict[str, str]) -> str:
    """Return an event's texts as a line."""
    padded = [
        texts[name].rjust(width) if name in EVENT_RIGHT else texts[name].ljust(width)
        for name, width in zip(EVENT_COLUMNS, _WIDTHS, strict=True)
    ]
    return "  ".join(padded).rstrip()


def event_header() -> str:
    """Return the column names as a line."""
    return event_line(dict(zip(EVENT_COLUMNS, EVENT_COLUMNS, strict=True)))
