"""`vedette watch`: what devices publish, as a live table or as JSON lines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.access import broker_options, device_name
from agent.cli.duration import duration

if TYPE_CHECKING:
    from agent.cli.pictures import SnapshotSaver
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.subscribe import ReceivedMessage


def _level(context: click.Context, option: click.Parameter, text: str) -> str:
    return text if text == "+" else device_name(context, option, text)


@click.command()
@broker_options
@click.option("--device", default="+", callback=_level, help="Only this device.")
@click.option("--json", "as_json", is_flag=True, help="Every message as a line of JSON.")
@click.option("--fleet", is_flag=True, help="One row for each device, and no events; piped: once, at the end.")
@click.option("--picture", is_flag=True, help="Show snapshots in the terminal, as well as it can.")
@click.option(
    "--picture-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the newest snapshot of each stream into this folder; it is made if need be.",
)
@click.option("--for", "seconds", type=duration, metavar="DURATION", help="End after so long (20s, 2m).")
def watch(
    access: BrokerOptions,
    prefix: str,
    device: str,
    as_json: bool,
    fleet: bool,
    picture: bool,
    picture_dir: Path | None,
    seconds: float | None,
) -> None:
    """Show what devices publish, live. Ctrl-C ends it."""
    from agent.cli.live import follow, follow_fleet
    from agent.comms.consumer.subscribe import Subscriber

    _check({"--json": as_json, "--fleet": fleet, "--picture": picture})
    album = _album(picture, picture_dir)

    subscriber = Subscriber(access, prefix=prefix, device=device)
    until = time.monotonic() + seconds if seconds is not None else None
    subscriber.start(*(() if seconds is None else (seconds,)))
    messages = album.tap(subscriber.messages(until)) if album else subscriber.messages(until)
    try:
        if as_json:
            _print_json(messages)
        elif fleet:
            follow_fleet(messages)
        else:
            follow(messages, f"{access.where} {prefix}/{device}", in_place=not picture)
    except KeyboardInterrupt:
        pass
    finally:
        subscriber.stop()


def _check(options: dict[str, bool]) -> None:
    chosen = [name for name, on in options.items() if on]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} fill the output with different things: choose one")


def _album(picture: bool, folder: Path | None) -> SnapshotSaver | None:
    if not picture and folder is None:
        return None
    from agent.cli.live import is_terminal
    from agent.cli.pictures import SnapshotSaver, TerminalImage, graphics

    if picture and not is_terminal():
        raise click.UsageError(
            "--picture needs a terminal to show them in; --picture-dir DIR writes them to files"
        )
    if folder is not None:
        from agent.storage.files import make_folder

        make_folder(folder)
    return SnapshotSaver(TerminalImage(graphics(os.environ)) if picture else None, folder)


def json_line(message: ReceivedMessage) -> str:
    """A message as one line: its topic and its payload, JSON as it is, text as a string, a picture's size."""
    import msgspec

    from agent.errors import NO_JSON

    body: object = message.payload.decode(errors="replace")
    if message.kind == "snapshot":
        body = {"jpeg_bytes": len(message.payload)}
    elif message.kind in ("events", "detections", "clips", "health"):
        with suppress(*NO_JSON):  # anybody may publish there: what is no JSON stays text
            body = msgspec.json.decode(message.payload)
    line = {"topic": message.topic, "retained": message.retained, "payload": body}
    return msgspec.json.encode(line).decode(errors="replace")


def _print_json(messages: Iterable[ReceivedMessage | None]) -> None:
    for message in messages:
        if message is not None:
            click.echo(json_line(message))
