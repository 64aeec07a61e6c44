"""`vedette optimise calibrate`: learn when an exit of a model is confident enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.optimise.options import JSON, MODEL
from agent.cli.options import PATH
from agent.cli.output import console, open_table, print_json, show_progress
from agent.text import plain, plural

if TYPE_CHECKING:
    from rich.table import Table

    from agent.optimise.calibrate import CalibrationResult


@click.command()
@MODEL
@click.argument("data", type=PATH)
@click.option(
    "--loss", type=float, default=0.2, show_default=True, help="Accuracy that may be lost, percentage points."
)
@click.option(
    "--out",
    type=PATH,
    help="Write the manifest here, and its files beside it; default: the model's own (not for a bundled model).",
)
@JSON
def calibrate(model: str, data: Path, loss: float, out: Path | None, as_json: bool) -> None:
    """Learn from DATA when an exit of MODEL is confident enough, and write it to its manifest.

    DATA is a folder with a folder of recordings for each label; for a model of pictures, examples with classes,
    see `vedette guide optimise`. A temperature for each exit calibrates its confidence. The chosen thresholds are
    the cheapest whose accuracy is that of the deepest exit less --loss, in each quarter of DATA.
    """
    calibrate_and_print(model, data, loss, out, as_json=as_json)


def calibrate_and_print(model: str, data: Path, loss: float, out: Path | None, *, as_json: bool) -> None:
    """Learn thresholds from recordings or examples, write them to a manifest, and print what they bring.

    Raises:
        ModelError: the model has no exits, or the recordings or examples cannot be used. StorageError: a file
            cannot be written. UsageError of click: an option is wrong.
    """
    from agent.models.writer import rewrite, set_variants
    from agent.optimise.inputs import refuse_inside

    if not 0.0 <= loss <= 100.0:
        raise click.BadParameter(f"{loss} is not within 0..100", param_hint="--loss")
    refuse_inside([out] if out else [], [data])
    target = _target(model, out)
    calibrated = _calibrate_pictures(model, data, loss / 100.0) or _calibrate_sound(model, data, loss / 100.0)
    what = "examples" if calibrated.windows is None else "recordings"
    show_progress("")
    rewrite(model, target, set_variants(calibrated.keys))
    _print_calibration(calibrated, target, what, as_json=as_json)
    for line in doubts(calibrated, loss, what):
        click.echo(f"vedette: warning: {plain(line)}", err=True)


def _target(model: str, out: Path | None) -> Path:
    """Return the manifest to write, or raise if it cannot be written."""
    from agent.models.files import bundled, manifest_path
    from agent.models.writer import check_place
    from agent.storage.files import make_folder

    if out is None and model in bundled():
        raise click.UsageError(f"{model} is a bundled model and cannot be changed: name a manifest with --out")
    target = out or manifest_path(model)
    if target.suffix != ".toml":
        raise click.BadParameter(f"{target}: the name of a manifest ends in .toml", param_hint="--out")
    if not target.absolute().parent.is_dir():
        raise click.BadParameter(f"{target}: there is no such folder", param_hint="--out")
    check_place(model, target)
    make_folder(target.absolute().parent)
    return target


def doubts(result: CalibrationResult, loss: float, what: str) -> Iterator[str]:
    """Yield what is doubtful about the thresholds.

    Args:
        result: of the calibration.
        loss: accuracy that may be lost, percentage points.
        what: `examples` or `recordings`.
    """
    from agent.optimise.depth.calibration import FEWEST

    if not result.lost * 100.0 <= loss + 1e-6:
        yield (
            f"{result.lost * 100.0:.2f} points of accuracy are lost on held-out {what}; --loss allows {loss:g}: "
            f"use more {what}, or allow a larger --loss"
        )
    if what == "recordings" and result.recordings < FEWEST:
        yield (
            f"{plural(result.recordings, 'recording')} to learn thresholds from: the figures are partly luck; "
            f"give at least {FEWEST}"
        )


def _calibrate_pictures(name: str, data: Path, loss: float) -> CalibrationResult | None:
    """Return None for a model of sound."""
    from agent.models.library import open_whole_model

    model = open_whole_model(name)
    if model.manifest.audio is not None:
        return None
    from agent.optimise.data import read_examples
    from agent.optimise.depth.calibration import calibrate_examples, check_cascade
    from agent.optimise.source import judged_by_learned

    check_cascade(model)
    examples = read_examples(data, model)
    for line in examples.remarks:
        click.echo(f"vedette: {plain(line)}", err=True)
    for line in judged_by_learned(model, examples):
        click.echo(f"vedette: warning: {plain(line)}, so that its thresholds become too low", err=True)
    return calibrate_examples(
        model, examples, loss, lambda done: show_progress(f"{done} of {len(examples)} examples looked at")
    )


def _calibrate_sound(model: str, data: Path, loss: float) -> CalibrationResult:
    from agent.optimise.calibrate import ExitCalibrator, calibrate_exits

    with closing(ExitCalibrator(model)) as calibrator:
        return calibrate_exits(calibrator, data, loss, lambda done: show_progress(f"{done} recordings heard"))


def _print_calibration(result: CalibrationResult, target: Path, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    out = console(100)
    out.print(_calibration_table(result))
    for line in (*_calibration_summary(result, what), f"written to {plain(str(target))}"):
        out.print(line)


def _calibration_table(result: CalibrationResult) -> Table:
    names = ("exit", "accuracy alone", "temperature", "least confidence", "used", "own multiply-adds")
    table, learned = open_table(*names, right=names), result.learned
    for number, variant in enumerate(result.variants):
        thresholds = learned.chosen.thresholds
        table.add_row(
            plain(variant),
            f"{learned.alone[number]:.2%}",
            f"{learned.temperatures[number]:.2f}",
            f"{thresholds[number]:.3f}" if number < len(thresholds) else "",
            f"{learned.chosen.used[number]:.1%}",
            f"{result.costs[number]:,.0f}",
        )
    return table


def _calibration_summary(result: CalibrationResult, what: str) -> Iterator[str]:
    learned, checked = result.learned, result.checked
    windows = "" if result.windows is None else f"{plural(result.windows, 'window')} of "
    yield (
        f"{windows}{result.recordings} {what}: accuracy {learned.chosen.accuracy:.2%} "
        f"(deepest alone {learned.full:.2%}) at {learned.chosen.cost:.0%} of its multiply-adds"
    )
    yield (
        f"other thresholds, learned from one half and tested on the other: {checked.accuracy:.2%} "
        f"(deepest alone {result.checked_full:.2%}) at {checked.cost:.0%}"
    )
