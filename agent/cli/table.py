"""The live table of events that `watch` and `demo` show in a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from agent.cli.plain import plain
from agent.cli.row import COLUMNS, RIGHT, cells
from agent.comms.payload import EventMessage
from agent.comms.subscriber import Received

_ROWS, _AROUND = 16, 7
"""Rows at most, and lines of a terminal that are left for what stands around them."""
_WIDE = 100
"""A terminal of fewer columns has narrower gaps, so that all columns fit into 80."""
_BREAKS = ("stream", "event", "what", "zones")
"""Columns whose text may go on in a second line where it is too long."""
_GAP = "   "
_COLOURS = {"new": "green", "update": "cyan", "end": "magenta", "heard": "yellow"}
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
            self._status[message.device] = plain(message.payload.decode(errors="replace"))
        elif message.kind == "count":
            key = f"{message.device}/{message.stream} {message.topic.rsplit('/', 1)[-1]}"
            self._counts[key] = plain(message.payload.decode(errors="replace"))
            if not message.payload:  # the stream is gone
                del self._counts[key]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as rich draws it."""
        table = Table(
            title=self._title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1 if options.max_width >= _WIDE else 0, 0, 0),
        )
        events = list(self._events)[-max(1, console.height - _AROUND) :]
        # A house without zones has the room for something else.
        shown = [name for name in COLUMNS if name != "zones" or any(event.track.zones for event in events)]
        for name in shown:
            table.add_column(
                name, justify="right" if name in RIGHT else "left", no_wrap=name not in _BREAKS, overflow="fold"
            )
        for event in events:
            row = cells(event)
            table.add_row(*(_text(event, name, row[name]) for name in shown))
        yield table
        yield self._footer(options.max_width)

    def _footer(self, width: int) -> Text:
        """Devices and counts, in lines that break only between them."""
        lines = [Text()]
        for item in self._items():
            if lines[-1] and lines[-1].cell_len + len(_GAP) + item.cell_len > width:
                lines.append(Text())
            lines[-1].append(_GAP if lines[-1] else "").append_text(item)
        return Text("\n").join(lines)

    def _items(self) -> Iterator[Text]:
        for device, status in sorted(self._status.items()):
            yield Text(f"{plain(device)} ").append(status, _STATUS_COLOURS.get(status, "white"))
        for key, count in sorted(self._counts.items()):
            yield Text(f"{plain(key)}: {count}", "dim" if count == "0" else "bold")


def _text(event: EventMessage, name: str, cell: str) -> Text:
    """As `Text`: square brackets in a name are no markup."""
    return Text(cell, _COLOURS[event.kind] if name == "event" else "")
