"""`vedette watch`: what devices publish, as a live table or as JSON lines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import broker_options, device_name, duration
from agent.errors import NO_JSON
from agent.text import file_name, plain

if TYPE_CHECKING:
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
    """Show what devices publish, live, until Ctrl-C.

    The broker is that of --host, with its login, not that of a configuration file.
    """
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
    from agent.storage.files import make_folder

    make_folder(folder)
    return SnapshotSaver(folder)


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


MAX_BYTES, MAX_PIXELS = 8_000_000, 50_000_000
MAX_FILES = 1000
"""In one folder: a client can invent any number of stream names."""
_MAX_NAME = 64


class SnapshotSaver:
    """Writes the newest snapshot of each stream into an existing folder.

    Any client of the broker can send one: payloads that are no JPEG of a sensible size are skipped with a
    message, and device and stream names are turned into safe file names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: set[str] = set()

    def tap(self, messages: Iterable[ReceivedMessage | None]) -> Iterator[ReceivedMessage | None]:
        """Pass messages on, and save each snapshot after its consumer has returned."""
        for message in messages:
            yield message
            if message is not None:
                self.save(message)

    def save(self, message: ReceivedMessage) -> None:
        """Write the message's picture; ignore messages that are no snapshot.

        Raises:
            StorageError: the file cannot be written.
        """
        if message.kind != "snapshot" or not message.payload:
            return
        if reason := _refusal(message.payload):
            click.echo(f"{plain(f'{message.device}/{message.stream}')}: snapshot skipped: {reason}", err=True)
            return
        name = snapshot_name(message.device, message.stream)
        if name not in self._files and len(self._files) >= MAX_FILES:
            return
        self._files.add(name)
        from agent.storage.files import write_atomic

        write_atomic(self._folder / name, message.payload)


def _refusal(data: bytes) -> str:
    """Return why a payload is not saved; empty if it can be."""
    from agent.capture.source import jpeg_size

    if len(data) > MAX_BYTES:
        return f"{len(data)} bytes, expected at most {MAX_BYTES}"
    size = jpeg_size(data)
    if size is None:
        return "no JPEG"
    width, height = size
    return f"{width}x{height}, expected at most {MAX_PIXELS} pixels" if width * height > MAX_PIXELS else ""


def snapshot_name(device: str, stream: str) -> str:
    """Return the file name of a stream, such as `porch.front.jpg`; unique for each pair of names."""
    return f"{_safe(device)}.{_safe(stream)}.jpg"


def _safe(level: str) -> str:
    """Return a topic level as part of a file name; a hash is added where characters had to be replaced."""
    changed = file_name(level, _MAX_NAME)
    if changed == level and level:
        return level
    return f"{changed}-{hashlib.sha256(level.encode(errors='surrogatepass')).hexdigest()[:8]}"
