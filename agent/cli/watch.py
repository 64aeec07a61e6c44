"""`vedette watch`: what devices publish, as a live table or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from agent.cli.access import broker_options, device_name
from agent.cli.duration import duration

if TYPE_CHECKING:
    from agent.comms.subscriber import Received


def _level(context: click.Context, option: click.Parameter, text: str) -> str:
    return text if text == "+" else device_name(context, option, text)


@click.command()
@broker_options
@click.option("--device", default="+", callback=_level, help="Only this device.")
@click.option("--json", "as_json", is_flag=True, help="Every message as a line of JSON.")
@click.option("--for", "seconds", type=duration, metavar="DURATION", help="End after so long (20s, 2m).")
def watch(
    host: str,
    port: int | None,
    username: str,
    password_file: str,
    tls: bool,
    ca_file: str | None,
    prefix: str,
    device: str,
    as_json: bool,
    seconds: float | None,
) -> None:
    """Show what devices publish, live. Ctrl-C ends it."""
    from agent.cli.live import follow
    from agent.comms.subscriber import Access, Subscriber

    port = port or (8883 if tls or ca_file else 1883)
    access = Access(host, port, username, password_file, ca_file or "", tls)
    subscriber = Subscriber(access, prefix=prefix, device=device)
    subscriber.start()
    until = time.monotonic() + seconds if seconds is not None else None
    try:
        if as_json:
            _print_json(subscriber.messages(until))
        else:
            follow(subscriber.messages(until), f"{host}:{port} {prefix}/{device}")
    except KeyboardInterrupt:
        pass
    finally:
        subscriber.stop()


def json_line(message: Received) -> str:
    """A message as one line: its topic and its payload, JSON as it is, text as a string, a picture's size."""
    import msgspec

    body: object = message.payload.decode(errors="replace")
    if message.kind == "snapshot":
        body = {"jpeg_bytes": len(message.payload)}
    elif message.kind in ("events", "detections", "clips", "health"):
        with suppress(msgspec.DecodeError):  # anybody may publish there: what is no JSON stays text
            body = msgspec.json.decode(message.payload)
    line = {"topic": message.topic, "retained": message.retained, "payload": body}
    return msgspec.json.encode(line).decode(errors="replace")


def _print_json(messages: Iterable[Received | None]) -> None:
    for message in messages:
        if message is not None:
            click.echo(json_line(message))
