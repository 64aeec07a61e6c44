"""Show messages as they arrive: as live tables of events and devices in a terminal, else as lines.

Memory is bounded: any client of a broker can invent devices and streams.
"""

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

from agent.cli.output import (
    EVENT_COLUMNS,
    EVENT_RIGHT,
    NO_VALUE,
    event_header,
    event_line,
    format_event,
    format_verdict,
    is_terminal,
)
from agent.comms.consumer.subscribe import ReceivedMessage, SequenceGap, SequenceTracker
from agent.comms.messages import EventMessage, VerdictMessage
from agent.health import HealthMessage
from agent.text import local_time, plain, plural

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
_PROBLEMS_MAX, _LONGEST_PROBLEMS = 8, 200
"""Problems that are shown of a stream, and characters."""
_FOOTER = 4
"""Lines of the footer at most."""
_GAP = "   "
_COLOURS = {
    **{"new": "green", "update": "cyan", "end": "magenta", "keyword": "yellow"},
    **{"ok": "green", "ng": "red", "unsure": "yellow"},
}


class EventTable:
    """Live table of the newest events, above it a row for each device if there are several, below it counts."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._events: deque[EventMessage | VerdictMessage] = deque(maxlen=_ROWS)
        self._roster = Roster()
        self._fleet = FleetTable(self._roster)
        self._counts: dict[str, str] = {}

    def add(self, message: ReceivedMessage) -> None:
        self._roster.add(message)
        if (event := message.event() or message.verdict()) is not None:
            self._events.append(event)
        elif (counters := message.inspection()) is not None:
            key = f"{message.device}/{message.stream} parts"
            if key in self._counts or len(self._counts) < MOST:
                self._counts[key] = f"{counters.ok} ok, {counters.ng} ng, {counters.unsure} unsure"
        elif message.kind == "condition":
            key = f"{message.device}/{message.stream} problems"
            if not (problems := _problems(message)):
                self._counts.pop(key, None)
            elif key in self._counts or len(self._counts) < MOST:
                self._counts[key] = problems
        elif (line := message.line()) is not None:
            key = plain(f"{message.device}/{message.stream} {line.name}")[:_LONGEST]
            if key in self._counts or len(self._counts) < MOST:
                self._counts[key] = f"{line.inwards} in, {line.outwards} out"
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
        room = (console.height - self._fleet.height - 1 if several else console.height) - _AROUND
        yield self._table(list(self._events)[-max(1, room) :], options.max_width, several=several)
        yield self._footer(options.max_width)

    def _table(self, events: list[EventMessage | VerdictMessage], width: int, *, several: bool) -> Table:
        table = Table(
            title=self._title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1 if width >= _WIDE else 0, 0, 0),
        )
        # Without zones the column is left out.
        has_zones = any(event.track.zones for event in events if isinstance(event, EventMessage))
        shown = [name for name in EVENT_COLUMNS if name != "zones" or has_zones]
        for name in shown:
            table.add_column(
                name,
                justify="right" if name in EVENT_RIGHT else "left",
                no_wrap=name not in _BREAKS,
                overflow="fold",
            )
        for event in events:
            row = _formatted(event)
            if width < _DATED:
                row["time"] = row["time"][len("2026-11-27 ") : -len("+01:00")]
            if several:
                row["stream"] = f"{plain(event.device)}/{row['stream']}"
            table.add_row(*(_text(event, name, row[name]) for name in shown))
        return table

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


def _text(event: EventMessage | VerdictMessage, name: str, cell: str) -> Text:
    kind = event.kind if isinstance(event, EventMessage) else event.verdict
    return Text(cell, _COLOURS[kind] if name == "event" else "")


def _formatted(event: EventMessage | VerdictMessage) -> dict[str, str]:
    return format_event(event) if isinstance(event, EventMessage) else format_verdict(event)


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
    roster, troubled = Roster(), dict[str, str]()
    for message in messages:
        if message is None:
            continue
        for gap in roster.add(message):
            click.echo(_missing(message.device, gap))
        if text := _condition_line(message, troubled) or _line(message):
            click.echo(text)


def _missing(device: str, gap: SequenceGap) -> str:
    numbers = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    why = "no loss: the device restarted and skipped numbers" if gap.restart else "not received here"
    return f"{local_time(datetime.now(UTC))}  {plain(device)} {numbers}: {why}"


def _problems(message: ReceivedMessage) -> str:
    """Return the problems of a stream in a line; empty: there are none."""
    condition = message.condition()
    words = (
        [
            f"{one.problem} ({one.detail})" if one.detail else one.problem
            for one in condition.problems[:_PROBLEMS_MAX]
        ]
        if condition
        else []
    )
    return plain(", ".join(words))[:_LONGEST_PROBLEMS]


def _condition_line(message: ReceivedMessage, troubled: dict[str, str]) -> str:
    """Return a line about problems that have changed; empty: none have. `troubled` keeps those by topic."""
    if message.kind != "condition":
        return ""
    problems = _problems(message)
    if problems == troubled.get(message.topic, ""):
        return ""
    if problems and len(troubled) < MOST:
        troubled[message.topic] = problems
    else:
        troubled.pop(message.topic, None)
    where = plain(f"{message.device}/{message.stream}")
    told = f"problem: {problems}" if problems else "no problem any more"
    return f"{local_time(datetime.now(UTC))}  {where} {told}"


def _line(message: ReceivedMessage) -> str:
    if (event := message.event() or message.verdict()) is not None:
        return event_line(_formatted(event))
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
            click.echo("\n".join(fleet_lines(roster)))
        return
    with Live(FleetTable(roster), refresh_per_second=4):
        for message in messages:
            if message is not None:
                roster.add(message)


DEVICE_COLUMNS = ("device", "status", "streams", "fps", "temp", "waiting", "last event", "version")
_RIGHT = ("streams", "fps", "temp", "waiting")
MOST = 10_000
"""Devices at most: any client can invent names."""
_LONGEST_CELL = 64
"""Characters of a cell."""
_WELL = ("running", "starting", "ended", "disabled")


class DeviceStatus:
    """Last messages of one device.

    Attributes:
        name: topic level.
        status: `online`, `offline` or `stopped`; empty: not known yet.
        health, event: newest message, or None.
        numbers: sequence numbers of its messages, to find gaps.
    """

    def __init__(self, name: str) -> None:
        self.name, self.status = name, ""
        self.health: HealthMessage | None = None
        self.event: EventMessage | None = None
        self.numbers = SequenceTracker()

    @property
    def is_online(self) -> bool:
        return self.status == "online"

    @property
    def trouble(self) -> str:
        """Return what is wrong in a word; empty if nothing is."""
        if self.status == "offline":
            return "offline"
        if not self.is_online or self.health is None:
            return ""
        states = {stream.state for stream in self.health.streams.values()}
        wrong = sorted(states.difference(_WELL))
        if wrong:
            return plain(wrong[0])
        if self.health.hot:
            return "hot"
        return "memory only" if self.health.spool.on == "memory" and self.health.spool.dropped else ""

    @property
    def streams(self) -> tuple[int, int]:
        """Return the number of running streams, and of all."""
        health = self.health
        if health is None:
            return 0, 0
        up = sum(stream.state in ("running", "degraded") for stream in health.streams.values())
        return (up if self.is_online else 0), len(health.streams)

    def cells(self) -> dict[str, str]:
        health, (up, of) = self.health, self.streams
        now = health if self.is_online else None  # rates of a device that is away are out of date
        texts = (
            self.name,
            self.status or "unknown",
            f"{up}/{of}" if health else NO_VALUE,
            f"{sum(stream.fps for stream in now.streams.values()):.1f}" if now else NO_VALUE,
            f"{now.temperature_c:.0f} °C" if now and now.temperature_c is not None else NO_VALUE,
            f"{now.spool.waiting}" if now else NO_VALUE,
            self._last_event(),
            health.version if health else NO_VALUE,
        )
        return {name: _short(plain(text)) for name, text in zip(DEVICE_COLUMNS, texts, strict=True)}

    def _last_event(self) -> str:
        event = self.event
        if event is None:
            return NO_VALUE
        return f"{event.stream}: {event.track.label} {event.kind}, {local_time(event.captured_at)}"


class Roster:
    """All devices that have published something."""

    def __init__(self) -> None:
        self._devices: dict[str, DeviceStatus] = {}

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, message: ReceivedMessage) -> list[SequenceGap]:
        """Process a message and return the gap in `seq` before it, if any."""
        if message.kind not in ("status", "health", "events", "verdicts", "clips", "detections"):
            return []
        device = self._devices.get(message.device)
        if device is None:
            if len(self._devices) >= MOST:
                return []
            device = self._devices[message.device] = DeviceStatus(message.device)
        if message.kind == "status":
            device.status = plain(message.payload[:_LONGEST_CELL].decode(errors="replace"))
            if not message.payload:  # the retained status was deleted: so was the device
                del self._devices[message.device]
        elif message.kind == "health":
            device.health = message.health() or device.health
        elif message.kind == "events":
            device.event = message.event() or device.event
        numbers = message.numbers()
        return device.numbers.record(*numbers) if numbers else []

    def __iter__(self) -> Iterator[DeviceStatus]:
        """Return devices in trouble first, then stopped ones, then by name."""
        return iter(sorted(self._devices.values(), key=_urgency))

    def summary(self) -> str:
        devices = self._devices.values()
        online = sum(device.is_online for device in devices)
        up, of = (sum(device.streams[which] for device in devices) for which in (0, 1))
        troubled = sum(bool(device.trouble) for device in devices)
        lost = sum(device.numbers.lost for device in devices)
        seen = f"{plural(len(devices), 'device')}, {online} online"
        text = f"{seen}, {up} of {plural(of, 'stream')} up, {troubled} in trouble"
        return f"{text}, {plural(lost, 'message')} not received here" if lost else text


def _urgency(device: DeviceStatus) -> tuple[bool, bool, str]:
    return not device.trouble, device.is_online, device.name


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


_FLEET_AROUND = 4
"""Lines around the rows: summary, header, rule, and the number of devices not shown."""
STATUS_COLOURS = {"online": "green", "stopped": "yellow", "offline": "red"}


class FleetTable:
    """Table of devices, as many as fit, those in trouble first."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.height = 0
        """Height in lines; 0: the terminal's."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, (self.height or console.height) - _FLEET_AROUND)
        devices = list(self._roster)
        yield Text(self._roster.summary(), "bold")
        if devices:
            yield _device_table(devices[:room], narrow=options.max_width < _WIDE)
        if (left := len(devices) - room) > 0:
            yield Text(f"and {left} more", "dim")


def _device_table(devices: list[DeviceStatus], *, narrow: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if narrow else 1, 0, 0))
    for name in DEVICE_COLUMNS:
        table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True, overflow="ellipsis")
    for device in devices:
        table.add_row(*(_device_text(device, name, cell) for name, cell in device.cells().items()))
    return table


def _device_text(device: DeviceStatus, name: str, cell: str) -> Text:
    if name == "status":
        return Text(cell, STATUS_COLOURS.get(device.status, "white"))
    return Text(cell, "red" if name == "streams" and device.trouble else "")


def fleet_lines(roster: Roster) -> Iterator[str]:
    """Return all devices as lines of text."""
    rows = [dict(zip(DEVICE_COLUMNS, DEVICE_COLUMNS, strict=True)), *(device.cells() for device in roster)]
    widths = {name: max(len(row[name]) for row in rows) for name in DEVICE_COLUMNS}
    for row in rows:
        cells = (
            cell.rjust(widths[name]) if name in _RIGHT else cell.ljust(widths[name]) for name, cell in row.items()
        )
        yield "  ".join(cells).rstrip()
    yield roster.summary()
