"""Snapshots that come in: shown in the terminal as well as it can, or kept as files, or both.

They come from strangers. What is no picture of a bearable size is left out with a word; what is shown has been
decoded and encoded anew; and file names are made of what a name may have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from agent.capture.picturesize import read_size
from agent.cli.screen import Screen
from agent.comms.subscriber import Received
from agent.plaintext import plain
from agent.storage.durable import write_atomic

MOST_BYTES, MOST_PIXELS = 8_000_000, 50_000_000
MOST_FILES = 1000
"""In a folder: a name costs a stranger nothing."""
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 64


class Album:
    """Takes the snapshots out of all that comes."""

    def __init__(self, screen: Screen | None, folder: Path | None) -> None:
        """Keep or show.

        Args:
            screen: to show them on; None: nowhere.
            folder: existing, to keep the newest of each stream in; None: nowhere.
        """
        self._screen, self._folder = screen, folder
        self._files: set[str] = set()

    def passing(self, messages: Iterable[Received | None]) -> Iterator[Received | None]:
        """The messages as they come; a snapshot is taken when what is behind has done with it.

        Raises:
            StorageError: a file cannot be written.
        """
        for message in messages:
            yield message
            if message is not None:
                self.take(message)

    def take(self, message: Received) -> None:
        """A message; what is no snapshot is left alone.

        Raises:
            StorageError: the file cannot be written.
        """
        if message.kind != "snapshot" or not message.payload:
            return
        about = plain(f"{message.device}/{message.stream}")
        if why := _refusal(message.payload):
            click.echo(f"{about}: {why}", err=True)
            return
        if self._folder is not None:
            self._keep(self._folder, message)
        if self._screen is not None and not self._screen.show(about, message.payload):
            click.echo(f"{about}: cannot be decoded", err=True)

    def _keep(self, folder: Path, message: Received) -> None:
        name = file_name(message.device, message.stream)
        if name not in self._files and len(self._files) >= MOST_FILES:
            return
        self._files.add(name)
        write_atomic(folder / name, message.payload)


def _refusal(data: bytes) -> str:
    """Why this is no picture for us; empty if it is one."""
    if len(data) > MOST_BYTES:
        return f"a snapshot of {len(data)} bytes is left out"
    size = read_size(data)
    if size is None:
        return "a snapshot that is no JPEG is left out"
    width, height = size
    return f"a snapshot of {width}x{height} is left out" if width * height > MOST_PIXELS else ""


def file_name(device: str, stream: str) -> str:
    """Name of a stream's file, the same each time, and another for each stream: `porch.front.jpg`."""
    return f"{_safe(device)}.{_safe(stream)}.jpg"


def _safe(level: str) -> str:
    """A topic level as part of a file's name: what had to be changed is told apart by a hash."""
    changed = _STRANGE.sub("_", level)[:_LONGEST]
    if changed == level and level:
        return level
    return f"{changed}-{hashlib.sha256(level.encode(errors='surrogatepass')).hexdigest()[:8]}"
