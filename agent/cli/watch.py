"""`vedette watch`: what devices publish, as lines of text or JSON.

Memory is bounded: any client of a broker can invent devices and streams.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from agent.cli.options import broker_options, device_name, duration
from agent.cli.output import event_header, event_line, format_event, format_verdict
from agent.errors import NO_JSON
from agent.text import local_time, plain

if TYPE_CHECKING:
    from agent.comms.consumer import BrokerOptions, ReceivedMessage, SequenceGap


def _level(context: click.Context, option: click.Parameter, text: str) -> str:
    return text if text == "+" else device_name(context, option, text)


@click.command()
@broker_options
@click.option("--device", default="+", callback=_level, help="Show only this device.")
@click.option("--json", "as_json", is_flag=True, help="Print every message as a line of JSON.")
@click.option(
    "--for", "seconds", type=duration, metavar="DURATION", help="Stop after this time, such as 20s or 2m."
)
def watch(
    access: BrokerOptions,
    prefix: str,
    device: str,
    as_json: bool,
    seconds: float | None,
) -> None:
    """Show what devices publish, live, until Ctrl-C.

    The broker is that of --host, with its login, not that of a configuration file.
    """
    from agent.comms.consumer import Subscriber

    subscriber = Subscriber(access, prefix=prefix, device=device)
    until = time.monotonic() + seconds if seconds is not None else None
    subscriber.start(*(() if seconds is None else (seconds,)))
    messages = subscriber.messages(until)
    try:
        if as_json:
            _print_json(messages)
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
MOST = 10_000
"""Devices at most: any client can invent names."""
_PROBLEMS_MAX, _TEXT_MAX = 8, 200
"""Problems that are shown of a stream, and characters."""


def follow(messages: Iterable[ReceivedMessage | None], title: str) -> None:
    """Print a line for each event, verdict, crossing, problem and status until there are no more messages."""
    from agent.comms.consumer import SequenceTracker

    click.echo(title)
    click.echo(event_header())
    numbers, troubled = dict[str, SequenceTracker](), dict[str, str]()
    for message in messages:
        if message is None:
            continue
        if (found := message.numbers()) is not None and (message.device in numbers or len(numbers) < MOST):
            for gap in numbers.setdefault(message.device, SequenceTracker()).record(*found):
                click.echo(_missing(message.device, gap))
        if (event := message.event()) is not None:
            click.secho(event_line(format_event(event)), fg=_COLOURS[event.kind])
        elif (verdict := message.verdict()) is not None:
            click.secho(event_line(format_verdict(verdict)), fg=_COLOURS[verdict.verdict])
        elif text := _condition_line(message, troubled) or _line(message):
            click.echo(f"{local_time(datetime.now(UTC))}  {plain(text)}")


def _missing(device: str, gap: SequenceGap) -> str:
    numbers = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    why = "not received here, or never given out: the device restarted" if gap.restart else "not received here"
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
