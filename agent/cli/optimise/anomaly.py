"""`vedette optimise anomaly`: progress, the table of figures, and the files that are written."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from msgspec import Struct

from agent.cli.optimise.progress import show_progress
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.compute.manifest import InputManifest, Model
from agent.errors import ModelError
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.data import Examples, read_examples
from agent.optimise.data.layouts import read_data
from agent.optimise.inputs import refuse_inside
from agent.optimise.report import OptimiseReport, short_number
from agent.optimise.source import open_source
from agent.text import plain

_WIDTH = 110
_CHART = ".png"


class AnomalyRequest(Struct, frozen=True):
    """Options of `vedette optimise anomaly`.

    Attributes:
        data: path of pictures of sound parts.
        faulty: path of pictures of faulty parts; None: there are none.
        places: in memory.
        false_alarms: share of sound parts that may be reported, per cent.
        label: of what differs.
        limit: number of sound parts; None: all.
        command: for the report.
        force: replace files.
        as_json: print the report as JSON.
    """

    data: Path
    faulty: Path | None = None
    places: int = 1024
    false_alarms: float = 5.0
    label: str = "defect"
    limit: int | None = None
    command: str = ""
    force: bool = False
    as_json: bool = False


def write_anomaly_model(name: str, out: Path, options: AnomalyRequest) -> None:
    """Learn what sound parts look like, and write the model with manifest, report and a picture.

    Raises:
        ModelError: the backbone or the pictures cannot be used, or a file is there already. StorageError: a file
            cannot be written.
    """
    inputs = [options.data, options.faulty]
    check_version(name, out, force=options.force, inputs=inputs, others=[_CHART])
    refuse_inside([out], inputs)
    try:
        from agent.optimise.anomaly.file import AnomalySettings, make_anomaly_model
        from agent.optimise.anomaly.head import features_of
    except ImportError as error:  # a board with tflite-runtime alone
        raise ModelError(f"the model is written with ai-edge-litert, which is missing: {error}") from error
    model = open_source(name, lambda _: None)
    with prefixed_errors(name):
        if model.manifest.audio is not None:
            raise ModelError("it takes sound: a backbone takes pictures, such as the bundled `inspection`")
        features_of(model.content)
        sound = _pictures(options.data, model, options.limit)
        faulty = _pictures(options.faulty, model, None) if options.faulty else None
        if options.faulty and faulty:
            _check_apart(options.data, _whole(options.data, sound), options.faulty, faulty)
        settings = AnomalySettings(out.stem, options.places, options.false_alarms / 100.0, options.label)
        try:
            found = make_anomaly_model(model, sound, faulty, settings, command=options.command, progress=_show)
        finally:
            show_progress("")
    report = msgspec.to_builtins(found.report)
    write_version(
        name, out, found.content, report, force=options.force, others={_CHART: found.sheet}, keys=found.keys
    )
    print_json(found.report) if options.as_json else _print(found.report)
    _tell(f"{out}: written, with manifest, .report.json and {_CHART} beside it")


def _pictures(path: Path, model: Model, limit: int | None) -> Examples:
    examples = read_examples(path, model, limit=limit, own_classes=True)
    if examples.kind != "none":
        raise ModelError(
            f"{path}: holds {examples.kind}: give the folder of sound parts as --data, that of faulty ones as "
            "--faulty"
        )
    for line in (examples.description, *examples.remarks):
        _tell(line)
    return examples


def _whole(path: Path, examples: Examples) -> Examples:
    """Return all examples at a path: also one that is left out by --limit is sound, and not faulty."""
    if len(examples) == examples.total:
        return examples
    return Examples(read_data(path), examples.shape, InputManifest(), str(path))


def _check_apart(data: Path, sound: Examples, faulty_data: Path, faulty: Examples) -> None:
    """Raise ModelError if an example is sound and faulty: the figures would say that no fault is seen."""
    known = {sound.digest(index): sound.name(index) for index in range(len(sound))}
    shared = [(name, index) for index in range(len(faulty)) if (name := known.get(faulty.digest(index)))]
    if shared:
        name, index = shared[0]
        raise ModelError(
            f"{faulty_data}: {faulty.name(index)} is the same example as {name} in {data} ({len(shared)} of "
            f"{len(faulty)} are in both): give a part either as sound, by --data, or as faulty, by --faulty"
        )


def _show(what: str, share: float) -> None:
    show_progress(f"{what} {int(share * 100)} %" if share else what)


def _tell(line: str) -> None:
    show_progress("")
    click.echo(plain(line), err=True)


def _print(report: OptimiseReport) -> None:
    figures = ("AUROC %", "kB", "ms")
    table = open_table("step", *figures, "notes", right=figures)
    for step in report.steps:
        texts = short_number(step.score, 100.0), short_number(step.size, 1e-3), short_number(step.latency_ms)
        table.add_row(plain(step.name), *(text or NO_VALUE for text in texts), plain("; ".join(step.notes)))
    console(_WIDTH, markup=False).print(table)
    for remark in report.remarks:
        click.echo(plain(remark))
