"""`vedette watch`: what devices publish, as a live table or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.duration import duration

if TYPE_CHECKING:
    from agent.comms.subscriber import Received


def _first_line(context: click.Context, option: click.Parameter, path: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r") if path else ""
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path}: not UTF-8 at byte {error.start}") from None


def _topic(context: click.Context, option: click.Parameter, text: str) -> str:
    if not text or set(text) & set("+#\0"):
        raise click.BadParameter(f"{text!r} is no topic: it may not be empty, nor hold + or #")
    return text


def _level(context: click.Context, option: click.Parameter, text: str) -> str:
    if "/" in text:
        raise click.BadParameter(f"{text!r} is no device: its name holds no /")
    return text if text == "+" else _topic(context, option, text)


@click.command()
@click.option("-H", "--host", default="localhost", show_default=True, help="The broker.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Its port; default: 1883, or 8883 with TLS.")
@click.option("-u", "--username", default="", help="User name at the broker.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_first_line,
    help="Its first line.",
)
@click.option("--tls", is_flag=True, help="Encrypt.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trust this CA (PEM).")
@click.option(
    "--prefix", default="vedette", show_default=True, callback=_topic, help="First level of the topics."
)
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
    elif message.kind in ("events", "detections", "health"):
        with suppress(msgspec.DecodeError):  # anybody may publish there: what is no JSON stays text
            body = msgspec.json.decode(message.payload)
    line = {"topic": message.topic, "retained": message.retained, "payload": body}
    return msgspec.json.encode(line).decode(errors="replace")


def _print_json(messages: Iterable[Received | None]) -> None:
    for message in messages:
        if message is not None:
            click.echo(json_line(message))
