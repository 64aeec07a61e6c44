"""The folder in which a step of `vedette optimise` keeps the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from agent.cli.optimise import show_progress
from agent.storage.files import make_folder, owned_file, remove
from agent.text import plain

_LOCK = "run.lock"


def files_of(folder: Path, checkpoints: Sequence[str]) -> list[Path]:
    """Return what a run may write there: the folder, its checkpoints by these names, and its lock."""
    return [folder, *(folder / one for one in (*checkpoints, _LOCK))]


@contextmanager
def work_folder(folder: Path, checkpoints: Sequence[str]) -> Iterator[None]:
    """Keep a folder for checkpoints to this run. It is removed unless something lies in it.

    Args:
        folder: is made if it is missing.
        checkpoints: names of files that the same command goes on from, which is told when it is interrupted.

    Raises:
        StorageError: it cannot be made, or another run uses it.
    """
    make_folder(folder)
    lock = folder / _LOCK
    try:
        with owned_file(lock):
            try:
                yield
            except KeyboardInterrupt:
                if any((folder / one).exists() for one in checkpoints):
                    show_progress("")
                    click.echo(plain(f"interrupted: the same command goes on from {folder}"), err=True)
                raise
            finally:
                remove(lock)
    finally:
        with suppress(OSError):  # something else lies in it
            folder.rmdir()
