"""Run a step of `vedette optimise`: checks, recipe and examples, checkpoints, the files it writes, its report."""

from __future__ import annotations

import glob
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import msgspec

from agent.cli.output import console, open_table, print_json, show_progress, tell
from agent.compute.manifest import Model
from agent.errors import CheckpointError, DivergedError, ModelError, ReportedError
from agent.models.library import prefixed_errors
from agent.models.writer import check_first, check_version, refuse_inputs, write_first, write_version
from agent.optimise.data import Examples, read_examples
from agent.optimise.inputs import examples_path, refuse_inside
from agent.optimise.recipe import Recipe, RecipeFile, parse_recipe, read_recipe
from agent.optimise.report import OptimiseReport, layer_table, step_table
from agent.optimise.source import learned_doubts
from agent.optimise.tune import split
from agent.optimise.workers import is_first
from agent.storage.files import make_folder, owned_file, remove
from agent.text import plain

_LOCK, _WIDTH = "run.lock", 110


class StepJob(NamedTuple):
    """The files and options of a step.

    Attributes:
        out: the `.tflite` file to write.
        model: name or path of the model that becomes it; empty: it is a new one.
        inputs: files and folders that are read, too.
        others: suffixes of files beside `out`, besides manifest and report.
        checkpoints: names of the files from which an interrupted run continues, in the folder `OUT.work`.
        force: replace files.
        as_json: print the report as JSON.
    """

    out: Path
    model: str = ""
    inputs: Sequence[Path | None] = ()
    others: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    force: bool = False
    as_json: bool = False


class MadeModel(NamedTuple):
    """A new model, the report on it, and contents of more files beside it, by suffix.

    Attributes:
        keys: of the manifest, which replace the model's own.
    """

    content: bytes
    report: OptimiseReport
    others: Mapping[str, bytes] = {}
    keys: Mapping[str, Any] = {}


def run_step(job: StepJob, make: Callable[[Path], MadeModel], *, layers: bool = False) -> None:
    """Run a step, print its report, and write its files unless the report misses the budget.

    Args:
        job: see `StepJob`.
        make: does the work; called with the folder of the checkpoints.
        layers: print the layers, too.

    Raises:
        ModelError: a file would be replaced, the extra is missing, or as `make`.
        StorageError: a file cannot be written.
        ReportedError: the budget is not met.
    """
    if not is_first():
        with redirect_stderr(StringIO()), TemporaryDirectory() as empty:
            _made(job, Path(empty), make)
        return
    folder = _check_places(job)
    with work_folder(folder, job.checkpoints) if job.checkpoints else nullcontext():
        found = _made(job, folder, make)
        report = found.report
        print_json(report) if job.as_json else print_report(report, layers=layers)
        is_new = not job.model or report.sha256_before != report.sha256_after
        if is_new and not report.missed:
            _write(job, found)
        remove(*(folder / one for one in job.checkpoints))
    if report.missed:
        raise ReportedError(f"the budget is not met, and nothing is written: {'; '.join(report.missed)}")
    if is_new:
        *most, last = (one for one in (".toml", ".report.json", *job.others) if job.out.with_suffix(one).exists())
        beside = f"{', '.join(most)} and {last}" if most else last
        tell(f"{job.out}: written, with {beside} beside it")


def _check_places(job: StepJob) -> Path:
    """Check before the work what would be replaced; return the folder of the checkpoints."""
    inputs, folder = [one for one in job.inputs if one is not None], job.out.with_suffix(".work")
    if job.model:
        check_version(job.model, job.out, force=job.force, inputs=inputs, others=job.others)
    else:
        check_first(job.out, force=job.force, inputs=inputs, others=job.others)
    read_too = [*inputs, *([Path(job.model)] if job.model else [])]
    refuse_inputs([folder, *(folder / one for one in (*job.checkpoints, _LOCK))], read_too)
    refuse_inside([job.out, folder], inputs)
    return folder


def _made(job: StepJob, folder: Path, make: Callable[[Path], MadeModel]) -> MadeModel:
    try:
        with prefixed_errors(job.model) if job.model else nullcontext(), redirect_stdout(sys.stderr):
            return make(folder)  # the user's own network may print
    except ImportError as error:
        raise ModelError(f"this needs pip install '.[optimise]' in the clone: {error}") from error
    finally:
        show_progress("")


def _write(job: StepJob, found: MadeModel) -> None:
    report = msgspec.to_builtins(found.report)
    if job.model:
        write_version(
            job.model, job.out, found.content, report, force=job.force, others=found.others, keys=found.keys
        )
    else:
        write_first(job.out, found.content, found.keys, report, force=job.force, others=found.others)


@contextmanager
def work_folder(folder: Path, checkpoints: Sequence[str]) -> Iterator[None]:
    """Reserve a folder for the checkpoints of this run. It is removed unless something lies in it.

    Args:
        folder: is made if it is missing.
        checkpoints: names of files from which the same command continues, which is told after an error. Those of
            a training that has diverged are removed, since it would diverge again.

    Raises:
        StorageError: it cannot be made, or another run uses it.
    """
    make_folder(folder)
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as by Ctrl-C, so that nothing is left
    lock, files = folder / _LOCK, [folder / one for one in checkpoints]
    try:
        with owned_file(lock):
            remove(*(old for file in files for old in folder.glob(f".{glob.escape(file.name)}.*.tmp")))
            try:
                yield
            except DivergedError:
                remove(*files)
                raise
            except CheckpointError:
                raise
            except BaseException:
                if any(file.exists() for file in files):
                    tell(f"the same command goes on from {folder}; another one needs it removed")
                raise
            finally:
                remove(lock)
    finally:
        signal.signal(signal.SIGTERM, ended)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


def print_report(report: OptimiseReport, *, layers: bool = False) -> None:
    """Print the steps as a table, with the layers if they are asked for, and the remarks."""
    shown = console(_WIDTH, markup=False)
    for table in (*([layer_table(report)] if layers else []), step_table(report)):
        drawn = open_table(*table.columns, right=table.columns[1 : -2 if table.title == "Steps" else None])
        for row in table.rows:
            drawn.add_row(*map(plain, row))
        shown.print(drawn)
        if table.note:
            click.echo(table.note)
    for remark in report.remarks:
        click.echo(plain(remark))


def recipe_of(path: Path | None) -> RecipeFile:
    """Read a recipe; None: the defaults."""
    return read_recipe(path) if path else parse_recipe("", "")


def read_for_training(
    model: Model, data: Path | None, recipe_file: Path | None, recipe: Recipe, limit: int | None
) -> Examples:
    """Read the examples of a step that trains, and tell what is doubtful about them."""
    path = examples_path(data, recipe_file, recipe)
    examples = read_examples(path, model, limit=limit or recipe.data.limit or None)
    examples.remarks += learned_doubts(model, *split(examples, recipe.data.held_out))
    tell_examples(examples)
    return examples


def tell_examples(examples: Examples) -> None:
    """Say what the examples are, and what is doubtful about them."""
    for line in (examples.description, *examples.remarks):
        tell(line)
