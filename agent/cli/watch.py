"""`vedette watch`: what devices publish, as lines of text or JSON, or as a row for each device.

Memory is bounded: any client of a broker can invent devices and streams.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from agent.cli.options import broker_options, device_name, duration
from agent.cli.output import NO_VALUE, event_header, event_line, format_event, format_verdict, is_terminal
from agent.errors import NO_JSON
from agent.text import local_time, plain, plural

if TYPE_CHECKING:
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.subscribe import ReceivedMessage, SequenceGap
    from agent.comms.messages import EventMessage
    from agent.health import HealthMessage


def _level(context: click.Context, option: click.Parameter, text: str) -> str:
    return text if text == "+" else device_name(context, option, text)


@click.command()
@broker_options
@click.option("--device", default="+", callback=_level, help="Show only this device.")
@click.option("--json", "as_json", is_flag=True, help="Print every message as a line of JSON.")
@click.option(
    "--fleet",
    is_flag=True,
    help="Show one row for each device and no events; printed once, at the end, when piped.",
)
@click.option(
    "--for", "seconds", type=duration, metavar="DURATION", help="Stop after this time, such as 20s or 2m."
)
def watch(
    access: BrokerOptions,
    prefix: str,
    device: str,
    as_json: bool,
    fleet: bool,
    seconds: float | None,
) -> None:
    """Show what devices publish, live, until Ctrl-C.

    The broker is that of --host, with its login, not that of a configuration file.
    """
    from agent.comms.consumer.subscribe import Subscriber

    if as_json and fleet:
        raise click.UsageError("--json and --fleet cannot be combined: choose one")
    subscriber = Subscriber(access, prefix=prefix, device=device)
    until = time.monotonic() + seconds if seconds is not None else None
    subscriber.start(*(() if seconds is None else (seconds,)))
    messages = subscriber.messages(until)
    try:
        if as_json:
            _print_json(messages)
        elif fleet:
            follow_fleet(messages)
        else:
            follow(messages, f"{access.where} {prefix}/{device}")
    except KeyboardInterrupt:
        pass
    finally:
        subscriber.stop()


def json_line(message: ReceivedMessage) -> str:
    """Return a message as one line of JSON: topic, retained flag, and payload (of a snapshot only its size)."""
    import msgspec

    body: object = message.payload.decode(errors="replace")
    if message.kind == "snapshot":
        body = {"jpeg_bytes": len(message.payload)}
    elif message.kind in (
        "events",
        "verdicts",
        "detections",
        "clips",
        "inspection",
        "condition",
        "line",
        "health",
    ):
        with suppress(*NO_JSON):  # any client may publish there; invalid JSON stays text
            body = msgspec.json.decode(message.payload)
    line = {"topic": message.topic, "retained": message.retained, "payload": body}
    return msgspec.json.encode(line).decode(errors="replace")


def _print_json(messages: Iterable[ReceivedMessage | None]) -> None:
    for message in messages:
        if message is not None:
            click.echo(json_line(message))


_COLOURS = {
    **{"new": "green", "update": "cyan", "end": "magenta", "keyword": "yellow"},
    **{"ok": "green", "ng": "red", "unsure": "yellow"},
}
_PROBLEMS_MAX, _TEXT_MAX = 8, 200
"""Problems that are shown of a stream, and characters."""


def follow(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    """Print a line for each event, verdict, crossing, problem and status until there are no more messages."""
    click.echo(title)
    click.echo(event_header())
    roster, troubled = Roster(), dict[str, str]()
    for message in messages:
        if message is None:
            continue
        for gap in roster.add(message):
            click.echo(_missing(message.device, gap))
        if (event := message.event()) is not None:
            click.secho(event_line(format_event(event)), fg=_COLOURS[event.kind])
        elif (verdict := message.verdict()) is not None:
            click.secho(event_line(format_verdict(verdict)), fg=_COLOURS[verdict.verdict])
        elif text := _condition_line(message, troubled) or _line(message):
            click.echo(f"{local_time(datetime.now(UTC))}  {plain(text)}")


def _missing(device: str, gap: SequenceGap) -> str:
    numbers = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    why = "no loss: the device restarted and skipped numbers" if gap.restart else "not received here"
    return f"{local_time(datetime.now(UTC))}  {plain(device)} {numbers}: {why}"


def _condition_line(message: ReceivedMessage, troubled: dict[str, str]) -> str:
    """Return a line about problems that have changed; empty: none have. `troubled` keeps those by topic."""
    if message.kind != "condition":
        return ""
    condition = message.condition()
    found = condition.problems[:_PROBLEMS_MAX] if condition else ()
    words = (f"{one.problem} ({one.detail})" if one.detail else one.problem for one in found)
    problems = ", ".join(words)[:_TEXT_MAX]
    if problems == troubled.get(message.topic, ""):
        return ""
    if problems and len(troubled) < MOST:
        troubled[message.topic] = problems
    else:
        troubled.pop(message.topic, None)
    return f"{message.device}/{message.stream} {f'problem: {problems}' if problems else 'no problem any more'}"


def _line(message: ReceivedMessage) -> str:
    if message.kind == "status":
        return f"{message.device} {message.payload.decode(errors='replace')[:_TEXT_MAX]}"
    if (line := message.line()) is not None:
        where = f"{message.device}/{message.stream} {line.name}"
        return f"{where[:_TEXT_MAX]}: {line.inwards} in, {line.outwards} out"
    return ""


def follow_fleet(messages: Iterable[ReceivedMessage | None]) -> None:
    """Show a row for each device: live in a terminal, else once after the last message."""
    roster, shown_at = Roster(), float("-inf")
    is_live = is_terminal()
    try:
        for message in messages:
            if message is not None:
                roster.add(message)
            if is_live and time.monotonic() - shown_at > _REDRAW_S:
                shown_at = time.monotonic()
                height = shutil.get_terminal_size().lines
                click.echo("\x1b[H\x1b[J" + "\n".join(fleet_lines(roster, height - _AROUND)))
    finally:
        if not is_live:
            click.echo("\n".join(fleet_lines(roster)))


_REDRAW_S, _AROUND = 0.25, 4
"""Time between two drawings in a terminal, s; and lines around the rows."""
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
        from agent.comms.consumer.subscribe import SequenceTracker

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


def fleet_lines(roster: Roster, most: int = MOST) -> Iterator[str]:
    """Yield devices as lines of text, those in trouble first, `most` at most, and a summary."""
    devices = list(islice(roster, max(1, most)))
    rows = [dict(zip(DEVICE_COLUMNS, DEVICE_COLUMNS, strict=True)), *(device.cells() for device in devices)]
    widths = {name: max(len(row[name]) for row in rows) for name in DEVICE_COLUMNS}
    for row in rows:
        cells = (
            cell.rjust(widths[name]) if name in _RIGHT else cell.ljust(widths[name]) for name, cell in row.items()
        )
        yield "  ".join(cells).rstrip()
    if (left := len(roster) - len(devices)) > 0:
        yield f"and {left} more"
    yield roster.summary()
