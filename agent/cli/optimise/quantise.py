"""`vedette optimise quantise`: progress, the table of figures and layers, and the files that are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec.structs import replace

from agent.cli.optimise.progress import show_progress
from agent.cli.optimise.work import check_model_room, check_places, tell_written, work_folder
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.errors import ModelError, ReportedError
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.inputs import QAT_COPIES, inputs_of
from agent.optimise.report import METRICS, OptimiseReport, short_number
from agent.storage.files import remove
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.quantisation.request import QuantiseRequest

_WIDTH = 100
_CHECKPOINT = "qat.checkpoint"


def quantise_and_write(out: Path, *, work: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Quantise a model, print the figures, and write the result with manifest and report.

    Args:
        out: path of the new file.
        work: folder for the checkpoint; None: beside the result.
        force: replace files.
        as_json: print the report as JSON.
        options: see `agent.optimise.quantisation.request.QuantiseRequest`.

    Raises:
        ModelError: the extra is missing, the model cannot be quantised, the budget is not met, or a file is there
            already.
        StorageError: a file or the checkpoint cannot be written.
    """
    try:
        from agent.optimise.quantisation.request import QuantiseRequest, may_train
    except ImportError as error:
        raise ModelError(f"quantising needs pip install '.[optimise]' in the clone: {error}") from error
    request, folder = QuantiseRequest(**options), work or out.with_suffix(".work")
    inputs = inputs_of(data=request.data, recipe=request.recipe)
    check_version(request.model, out, force=force, inputs=inputs)
    check_places(out, folder, [_CHECKPOINT], inputs, request.model)
    with work_folder(folder, [_CHECKPOINT]):
        if may_train(request):
            check_model_room(folder, request.model, QAT_COPIES, [_CHECKPOINT])
        report = _write(replace(request, checkpoint=folder / _CHECKPOINT), out, force=force, as_json=as_json)
        remove(folder / _CHECKPOINT)
    if report.missed:
        raise ReportedError(f"the budget is not met, and nothing is written: {'; '.join(report.missed)}")
    tell_written(out, ".report.json")


def _write(request: QuantiseRequest, out: Path, *, force: bool, as_json: bool) -> OptimiseReport:
    """Quantise, print the figures, and write the files if the budget is met."""
    from agent.optimise.quantisation.request import quantise_file

    try:
        with prefixed_errors(request.model):
            found = quantise_file(request, show_progress, _tell)
    finally:
        show_progress("")
    print_json(found.report) if as_json else _print(found.report)
    if not found.report.missed:
        write_version(request.model, out, found.content, msgspec.to_builtins(found.report), force=force)
    return found.report


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)


def _print(report: OptimiseReport) -> None:
    layers = open_table(
        "layer", "operation", "bits", "weights", "sensitivity", right=("bits", "weights", "sensitivity")
    )
    for layer in report.layers:
        sensitivity = NO_VALUE if layer.sensitivity is None else f"{layer.sensitivity:.5f}"
        layers.add_row(plain(layer.name), layer.operation, str(layer.bits), str(layer.values), sensitivity)
    console(_WIDTH, markup=False).print(layers)
    metric = next((step.metric for step in report.steps if step.metric), "score")
    figures = (f"{metric} %", "kB", "ms")
    table = open_table("step", *figures, "kept", "notes", right=figures)
    for step in report.steps:
        texts = short_number(step.score, 100.0), short_number(step.size, 1e-3), short_number(step.latency_ms)
        kept = "yes" if step.kept else "no"
        table.add_row(step.name, *(text or NO_VALUE for text in texts), kept, plain("; ".join(step.notes)))
    console(_WIDTH, markup=False).print(table)
    if metric in METRICS:
        click.echo(f"{metric}: {METRICS[metric]}")
    for remark in report.remarks:
        click.echo(plain(remark))
