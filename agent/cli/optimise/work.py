"""Parts of the steps of `vedette optimise` that train: the folder of their checkpoints, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from agent.cli.optimise import show_progress
from agent.cli.output import NO_VALUE, console, open_table
from agent.optimise.report import OptimiseReport, short_number
from agent.storage.files import make_folder, owned_file, remove
from agent.text import plain

_LOCK, _WIDTH = "run.lock", 110


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


def print_steps(report: OptimiseReport, notes: int | None = None) -> None:
    """Print the score, the size and the time of each step as a table, and the remarks.

    Args:
        report: whose steps all have the same metric.
        notes: most of them that are shown of a step; None: all.
    """
    figures = (f"{report.steps[0].metric} %", "kB", "ms")
    table = open_table("step", *figures, "notes", right=figures)
    for step in report.steps:
        values = (short_number(step.score, 100.0), short_number(step.size, 1e-3), short_number(step.latency_ms))
        table.add_row(step.name, *(text or NO_VALUE for text in values), plain("; ".join(step.notes[:notes])))
    console(_WIDTH, markup=False).print(table)
    for remark in report.remarks:
        click.echo(plain(remark))
