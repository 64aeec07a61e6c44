"""Save received snapshots as files, the newest of each stream.

Any client of the broker can send one: payloads that are no JPEG of a sensible size are skipped with a message,
and device and stream names are turned into safe file names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from agent.capture.image_size import read_size
from agent.comms.consumer.subscribe import ReceivedMessage
from agent.storage.files import write_atomic
from agent.text import plain

MAX_BYTES, MAX_PIXELS = 8_000_000, 50_000_000
MAX_FILES = 1000
"""In one folder: a client can invent any number of stream names."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64


class SnapshotSaver:
    """Writes the newest snapshot of each stream into a folder."""

    def __init__(self, folder: Path) -> None:
        """Prepare to write into an existing folder."""
        self._folder = folder
        self._files: set[str] = set()

    def tap(self, messages: Iterable[ReceivedMessage | None]) -> Iterator[ReceivedMessage | None]:
        """Pass messages on, and save each snapshot after its consumer has returned.

        Raises:
            StorageError: a file cannot be written.
        """
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
        name = file_name(message.device, message.stream)
        if name not in self._files and len(self._files) >= MAX_FILES:
            return
        self._files.add(name)
        write_atomic(self._folder / name, message.payload)


def _refusal(data: bytes) -> str:
    """Return why a payload is not saved; empty if it can be."""
    if len(data) > MAX_BYTES:
        return f"{len(data)} bytes, expected at most {MAX_BYTES}"
    size = read_size(data)
    if size is None:
        return "no JPEG"
    width, height = size
    return f"{width}x{height}, expected at most {MAX_PIXELS} pixels" if width * height > MAX_PIXELS else ""


def file_name(device: str, stream: str) -> str:
    """Return the file name of a stream, such as `porch.front.jpg`; unique for each pair of names."""
    return f"{_safe(device)}.{_safe(stream)}.jpg"


def _safe(level: str) -> str:
    """Return a topic level as part of a file name; a hash is added where characters had to be replaced."""
    changed = _UNSAFE.sub("_", level)[:_MAX_NAME]
    if changed == level and level:
        return level
    return f"{changed}-{hashlib.sha256(level.encode(errors='surrogatepass')).hexdigest()[:8]}"
