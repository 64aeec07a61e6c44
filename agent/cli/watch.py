"""`vedette watch`: what devices publish, as a live table or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import broker_options, device_name, duration

if TYPE_CHECKING:
    from agent.cli.snapshots import SnapshotSaver
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.subscribe import ReceivedMessage


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
    "--picture-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the newest snapshot of each stream into this folder; created if missing.",
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
    picture_dir: Path | None,
    seconds: float | None,
) -> None:
    """Show what devices publish, live, until Ctrl-C."""
    from agent.cli.live import follow, follow_fleet
    from agent.comms.consumer.subscribe import Subscriber

    if as_json and fleet:
        raise click.UsageError("--json and --fleet cannot be combined: choose one")
    saver = _snapshot_saver(picture_dir)
    subscriber = Subscriber(access, prefix=prefix, device=device)
    until = time.monotonic() + seconds if seconds is not None else None
    subscriber.start(*(() if seconds is None else (seconds,)))
    messages = saver.tap(subscriber.messages(until)) if saver else subscriber.messages(until)
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


def _snapshot_saver(folder: Path | None) -> SnapshotSaver | None:
    if folder is None:
        return None
    from agent.cli.snapshots import SnapshotSaver
    from agent.storage.files import make_folder

    make_folder(folder)
    return SnapshotSaver(folder)


def json_line(message: ReceivedMessage) -> str:
    """Return a message as one line of JSON: topic, retained flag, and payload (of a snapshot only its size)."""
    import msgspec

    from agent.errors import NO_JSON

    body: object = message.payload.decode(errors="replace")
    if message.kind == "snapshot":
        body = {"jpeg_bytes": len(message.payload)}
    elif message.kind in ("events", "detections", "clips", "health"):
        with suppress(*NO_JSON):  # any client may publish there: what is no JSON stays text
            body = msgspec.json.decode(message.payload)
    line = {"topic": message.topic, "retained": message.retained, "payload": body}
    return msgspec.json.encode(line).decode(errors="replace")


def _print_json(messages: Iterable[ReceivedMessage | None]) -> None:
    for message in messages:
        if message is not None:
            click.echo(json_line(message))
