"""The live table of events that `watch` and `demo` show."""

from __future__ import annotations

from collections import deque

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from agent.comms.payload import EventMessage
from agent.comms.subscriber import Received

_ROWS = 16
_COLUMNS = ("time", "stream", "event", "what", "score", "where", "zones", "total", "infer")
_RIGHT = ("score", "total", "infer")
_WIDE, _LEFT_OUT = 100, ("where", "infer")
"""A terminal of fewer columns than that shows the rest in full instead of everything cut short."""
_COLOURS = {"new": "green", "update": "cyan", "end": "magenta"}
_STATUS_COLOURS = {"online": "green", "stopped": "yellow", "offline": "red"}


class EventTable:
    """The newest events, and the state of every device and count."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._events: deque[EventMessage] = deque(maxlen=_ROWS)
        self._status: dict[str, str] = {}
        self._counts: dict[str, str] = {}

    def add(self, message: Received) -> None:
        """Take in what came."""
        if (event := message.event()) is not None:
            self._events.append(event)
        elif message.kind == "status":
            self._status[message.device] = _plain(message.payload.decode(errors="replace"))
        elif message.kind == "count":
            key = f"{message.device}/{message.stream} {message.topic.rsplit('/', 1)[-1]}"
            self._counts[key] = _plain(message.payload.decode(errors="replace"))
            if not message.payload:  # the stream is gone
                del self._counts[key]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as rich draws it."""
        table = Table(title=self._title, title_justify="left", box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        left_out = _LEFT_OUT if options.max_width < _WIDE else ()
        shown = [column for column in _COLUMNS if column not in left_out]
        for column in shown:
            table.add_column(column, justify="right" if column in _RIGHT else "left", no_wrap=True)
        for event in self._events:
            row = dict(zip(_COLUMNS, _row(event), strict=True))
            table.add_row(*(row[column] for column in shown))
        yield table
        yield self._footer()

    def _footer(self) -> Text:
        line = Text(" ")
        for device, status in sorted(self._status.items()):
            line.append(f"{_plain(device)} ").append(status, _STATUS_COLOURS.get(status, "white")).append("   ")
        for key, count in sorted(self._counts.items()):
            line.append(f"{_plain(key)}: {count}   ", "dim" if count == "0" else "bold")
        return line


def _plain(text: str) -> str:
    """Text of a stranger, whose control characters are no commands to the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _row(event: EventMessage) -> tuple[Text, ...]:
    """As `Text`: square brackets in a name are no markup."""
    track = event.track
    where = "whole picture" if track.box is None else " ".join(f"{edge:.2f}" for edge in track.box)
    cells = (
        event.captured_at.astimezone().strftime("%H:%M:%S.%f")[:-3],
        event.stream,
        f"{event.kind} ({event.reason})",
        f"{track.label} {track.id.rsplit('-', 1)[-1]}",
        f"{track.score:.2f}",
        where,
        ", ".join(track.zones),
        f"{event.latency_ms.total:.0f} ms",
        f"{event.latency_ms.infer:.0f} ms",
    )
    colours = {2: _COLOURS[event.kind]}
    return tuple(Text(_plain(cell), colours.get(column, "")) for column, cell in enumerate(cells))
