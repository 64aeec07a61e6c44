"""`vedette optimise tune`: progress, the table of steps, and the files that are written."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click
import msgspec
from msgspec.structs import replace

from agent.cli.optimise.progress import show_progress
from agent.cli.optimise.work import check_model_room, check_places, tell_written, work_folder
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.errors import ReportedError
from agent.models.version_writer import check_version, write_version
from agent.optimise.inputs import inputs_of, tune_copies
from agent.optimise.recipe import Recipe, read_recipe
from agent.optimise.report import METRICS, OptimiseReport, markdown, short_number
from agent.optimise.tune import TunedModel
from agent.optimise.tune_steps import CHECKPOINTS, TuneRequest, trained_methods, tune_file
from agent.storage.files import remove
from agent.text import plain

_WIDTH = 110
_MARKDOWN = ".report.md"


def tune_and_write(request: TuneRequest, out: Path, *, work: Path | None, force: bool, as_json: bool) -> None:
    """Tune a model, print what each step did, and write the result with its reports.

    Args:
        request: see `TuneRequest`; the checkpoints of its trainings are put into `work`.
        out: path of the new file.
        work: folder for the checkpoints; None: beside the result.
        force: replace files.
        as_json: print the report as JSON.

    Raises:
        ModelError: the model cannot be tuned, or a file is there already.
        CheckpointError: a checkpoint in the folder belongs to another run; it stays there.
        ReportedError: the budget is not met, or no step helps and one has failed.
    """
    module, weights = request.module, request.weights
    inputs = inputs_of(data=request.data, recipe=request.recipe, module=module, weights=weights)
    check_version(request.model, out, force=force, inputs=inputs, others=[_MARKDOWN])
    folder = work or out.with_suffix(".work")
    check_places(out, folder, CHECKPOINTS, inputs, request.model)
    with work_folder(folder, CHECKPOINTS):
        if copies := _copies(request):
            check_model_room(folder, request.model, copies, CHECKPOINTS)
        found = _tuned(replace(request, folder=folder))
        report = found.report
        print_json(report) if as_json else _print(report)
        if not report.missed and report.sha256_before != report.sha256_after:
            others = {_MARKDOWN: markdown(report).encode()}
            write_version(
                request.model,
                out,
                found.content,
                msgspec.to_builtins(report),
                force=force,
                others=others,
                keys=found.keys,
            )
        remove(*(folder / one for one in CHECKPOINTS))
    _tell_end(request, out, found)


def _copies(request: TuneRequest) -> float:
    """Return how many copies of the model's weights the checkpoints of all steps take; 0: there are none."""
    recipe = read_recipe(request.recipe).recipe if request.recipe else Recipe()
    methods = trained_methods(recipe.quantise.method) if request.qat else ()
    return tune_copies(len(methods), replace(recipe.prune, structured=True) if request.module else None)


def _tuned(request: TuneRequest) -> TunedModel:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the user's code may print
            return tune_file(request, show_progress, _tell)
    finally:
        show_progress("")


def _tell_end(request: TuneRequest, out: Path, found: TunedModel) -> None:
    """Say what was written, or why nothing was; raises as `tune_and_write`."""
    report = found.report
    if report.missed:
        raise ReportedError(f"the budget is not met, and nothing is written: {'; '.join(report.missed)}")
    if report.sha256_before != report.sha256_after:
        tell_written(out, ".report.json", _MARKDOWN)
    elif found.failures:
        failed = "; ".join(found.failures)
        raise ReportedError(f"{request.model}: nothing is written, since steps failed: {failed}")
    else:
        _tell(f"{request.model}: no step helps, and nothing is written")


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)


def _print(report: OptimiseReport) -> None:
    metric = next((step.metric for step in report.steps if step.metric), "score")
    figures = (f"{metric} %", "kB", "ms", "MB", "mJ")
    table = open_table("step", *figures, "kept", "notes", right=figures)
    for step in report.steps:
        score, size = short_number(step.score, 100.0), short_number(step.size or None, 1e-3)
        others = map(short_number, (step.latency_ms, step.memory_mb, step.energy_mj))
        texts = (text or NO_VALUE for text in (score, size, *others))
        table.add_row(step.name, *texts, "yes" if step.kept else "no", plain("; ".join(step.notes)))
    console(_WIDTH, markup=False).print(table)
    if metric in METRICS:
        click.echo(f"{metric}: {METRICS[metric]}")
    for remark in report.remarks:
        click.echo(plain(remark))
