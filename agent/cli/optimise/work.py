"""Parts of the steps of `vedette optimise` that train: the folder of their checkpoints, and their table."""

from __future__ import annotations

import glob
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from agent.cli.optimise.progress import show_progress
from agent.cli.output import NO_VALUE, console, open_table
from agent.errors import DivergedError
from agent.models.files import load_file
from agent.models.writer import refuse_inputs
from agent.optimise.inputs import check_room, refuse_inside, trained_size
from agent.optimise.report import OptimiseReport, short_number
from agent.storage.files import make_folder, owned_file, remove
from agent.text import plain

_LOCK, _WIDTH = "run.lock", 110


def check_places(
    out: Path, folder: Path, checkpoints: Sequence[str], inputs: Sequence[Path], model: str = ""
) -> None:
    """Check before the work that no checkpoint replaces what is read, and nothing is written among the examples.

    Args:
        out: file to write; others lie beside it.
        folder: of the checkpoints.
        checkpoints: their names.
        inputs: files and folders that are read.
        model: name or path of a model that is read, too; empty: there is none.

    Raises:
        ModelError: a file would be replaced, or lie among the examples.
    """
    read_too = [Path(model)] if model else []
    refuse_inputs([folder, *(folder / one for one in (*checkpoints, _LOCK))], [*read_too, *inputs])
    refuse_inside([out, folder], inputs)


@contextmanager
def work_folder(folder: Path, checkpoints: Sequence[str]) -> Iterator[None]:
    """Keep a folder for checkpoints to this run. It is removed unless something lies in it.

    Args:
        folder: is made if it is missing.
        checkpoints: names of files that the same command goes on from, which is told when it is interrupted.

    After an error the checkpoints that this run has written stay, which is told; those of a training that has
    diverged do not, since it would diverge again.

    Raises:
        StorageError: it cannot be made, or another run uses it.
    """
    make_folder(folder)
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as by Ctrl-C, so that nothing is left
    lock, files = folder / _LOCK, [folder / one for one in checkpoints]
    try:
        with owned_file(lock):
            remove(*(old for file in files for old in folder.glob(f".{glob.escape(file.name)}.*.tmp")))
            before = _versions(files)
            try:
                yield
            except DivergedError:
                remove(*files)
                raise
            except BaseException as error:
                _tell_kept(files, {} if isinstance(error, KeyboardInterrupt) else before, error)
                raise
            finally:
                remove(lock)
    finally:
        signal.signal(signal.SIGTERM, ended)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


def check_model_room(folder: Path, name: str, copies: float, checkpoints: Sequence[str]) -> None:
    """Check before the work that the checkpoints of a model's training fit on the disk.

    Args:
        folder: of the checkpoint; it exists.
        name: name or path of the model.
        copies: of the model's weights, as float32, that the checkpoints take, see `agent.optimise.inputs`.
        checkpoints: their names.

    Raises:
        ModelError: the model cannot be read. StorageError: too little is free.
    """
    check_room(folder, trained_size(load_file(name)[0]), copies, checkpoints)


def _versions(files: Sequence[Path]) -> dict[Path, int]:
    """Return when each file was written, ns; a missing one is left out."""
    return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def _tell_kept(files: Sequence[Path], before: Mapping[Path, int], error: BaseException) -> None:
    """Tell which checkpoints a run leaves, but for those that are as they were before."""
    kept = [file for file, written in _versions(files).items() if before.get(file) != written]
    if not kept:
        return
    names, folder = ", ".join(file.name for file in kept), kept[0].parent
    show_progress("")
    if isinstance(error, KeyboardInterrupt):
        told = f"interrupted: the same command goes on from {folder}"
    else:
        told = f"{names} kept in {folder}: the same command goes on from there; another one needs it removed"
    click.echo(plain(told), err=True)


def tell_written(out: Path, *others: str) -> None:
    """Tell which files a step has written.

    Args:
        out: the model; if it has a manifest, that is named, too.
        others: suffixes of the files beside it.
    """
    own = [".toml"] if out.with_suffix(".toml").exists() else []
    *most, last = *own, *others
    told = f"{', '.join(most)} and {last}" if most else last
    show_progress("")
    click.echo(plain(f"{out}: written, with {told} beside it"), err=True)


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
