"""Keep the newest state of every device, in bounded memory, and show it as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from agent.comms.consumer.subscribe import ReceivedMessage, SequenceGap, SequenceTracker
from agent.comms.messages import EventMessage, HealthMessage
from agent.text import local_time, plain, plural

COLUMNS = ("device", "status", "streams", "fps", "temp", "waiting", "last event", "version")
RIGHT = ("streams", "fps", "temp", "waiting")
MOST = 10_000
"""Devices at most: any client can invent names."""
_LONGEST = 64
"""Characters of a cell."""
_NONE = "–"
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
            f"{up}/{of}" if health else _NONE,
            f"{sum(stream.fps for stream in now.streams.values()):.1f}" if now else _NONE,
            f"{now.temperature_c:.0f} °C" if now and now.temperature_c is not None else _NONE,
            f"{now.spool.waiting}" if now else _NONE,
            self._last_event(),
            health.version if health else _NONE,
        )
        return {name: _short(plain(text)) for name, text in zip(COLUMNS, texts, strict=True)}

    def _last_event(self) -> str:
        event = self.event
        if event is None:
            return _NONE
        return f"{event.stream}: {event.track.label} {event.kind}, {local_time(event.captured_at)}"


class Roster:
    """All devices that have published something."""

    def __init__(self) -> None:
        self._devices: dict[str, DeviceStatus] = {}

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, message: ReceivedMessage) -> list[SequenceGap]:
        """Process a message and return the gap in `seq` before it, if any."""
        if message.kind not in ("status", "health", "events", "clips", "detections"):
            return []
        device = self._devices.get(message.device)
        if device is None:
            if len(self._devices) >= MOST:
                return []
            device = self._devices[message.device] = DeviceStatus(message.device)
        if message.kind == "status":
            device.status = plain(message.payload[:_LONGEST].decode(errors="replace"))
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
        return f"{text}, {plural(lost, 'message')} lost" if lost else text


def _urgency(device: DeviceStatus) -> tuple[bool, bool, str]:
    return not device.trouble, device.is_online, device.name


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_AROUND = 4
"""Lines around the rows: summary, header, rule, and the number of devices not shown."""
_WIDE = 100
STATUS_COLOURS = {"online": "green", "stopped": "yellow", "offline": "red"}


class FleetTable:
    """Table of devices, as many as fit, those in trouble first."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.height = 0
        """Height in lines; 0: the terminal's."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, (self.height or console.height) - _AROUND)
        devices = list(self._roster)
        yield Text(self._roster.summary(), "bold")
        if devices:
            yield _table(devices[:room], narrow=options.max_width < _WIDE)
        if (left := len(devices) - room) > 0:
            yield Text(f"and {left} more", "dim")


def _table(devices: list[DeviceStatus], *, narrow: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if narrow else 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True, overflow="ellipsis")
    for device in devices:
        table.add_row(*(_text(device, name, cell) for name, cell in device.cells().items()))
    return table


def _text(device: DeviceStatus, name: str, cell: str) -> Text:
    if name == "status":
        return Text(cell, STATUS_COLOURS.get(device.status, "white"))
    return Text(cell, "red" if name == "streams" and device.trouble else "")


def lines(roster: Roster) -> Iterator[str]:
    """Return all devices as lines of text."""
    rows = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(device.cells() for device in roster)]
    widths = {name: max(len(row[name]) for row in rows) for name in COLUMNS}
    for row in rows:
        cells = (
            cell.rjust(widths[name]) if name in RIGHT else cell.ljust(widths[name]) for name, cell in row.items()
        )
        yield "  ".join(cells).rstrip()
    yield roster.summary()
