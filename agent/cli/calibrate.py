"""`vedette models calibrate`: learn from recordings when an exit of a model is confident enough."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.text import plain

if TYPE_CHECKING:
    from rich.table import Table

    from agent.optimise.calibrate.exits import CalibrationResult


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--loss",
    type=float,
    default=0.2,
    show_default=True,
    help="Accuracy that may be given away, percentage points.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the manifest here, its files beside it; default, not for a bundled model: where it was.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Draw accuracy against cost here, a PNG. Needs matplotlib: pip install '.[charts]'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def calibrate(model: str, data: Path, loss: float, out: Path | None, picture: Path | None, as_json: bool) -> None:
    """Learn from DATA when an exit of MODEL is confident enough, and write it to its manifest.

    DATA is a folder with a folder of recordings for each label. A temperature for each exit makes its confidence
    a share of right answers; the cheapest thresholds are taken that keep the accuracy of the deepest exit but for
    --loss.
    """
    from agent.models.files import rewrite, set_variants

    if not 0.0 <= loss <= 100.0:
        raise click.BadParameter(f"{loss} is not within 0..100", param_hint="--loss")
    if picture is not None:
        from agent.cli.chart import check

        check(picture)
    target = _target(model, out)
    result = _calibrate(model, data, loss / 100.0)
    if picture is not None:
        from agent.cli.chart import draw

        draw(result, picture)
    rewrite(model, target, set_variants(result.keys))
    _show(result, target, as_json=as_json)
    _warn(result.lost * 100.0, loss)


def _target(model: str, out: Path | None) -> Path:
    """Where the manifest will be written, once it is known that it can be."""
    from agent.models.files import bundled, check_place, manifest_path

    if out is None and model in bundled():
        raise click.UsageError(f"{model} is a bundled model and stays as it is: name another manifest with --out")
    target = out or manifest_path(model)
    if target.suffix != ".toml":
        raise click.BadParameter(f"{target}: the name of a manifest ends in .toml", param_hint="--out")
    if not target.absolute().parent.is_dir():
        raise click.BadParameter(f"{target}: no such folder to write it to", param_hint="--out")
    check_place(model, target)
    return target


def _warn(lost: float, loss: float) -> None:
    """Say so when more is lost than was allowed on what nothing was learned from; both in percentage points."""
    if not lost <= loss + 1e-6:
        click.echo(
            f"vedette: warning: tried on data that it was not learned from, {lost:.2f} points are lost, and "
            f"--loss allows {loss:g}: learn from more of it, or allow a larger --loss",
            err=True,
        )


def _calibrate(model: str, data: Path, loss: float) -> CalibrationResult:
    from agent.optimise.calibrate.exits import ExitCalibrator, calibrate_exits, find_labelled

    calibrator = ExitCalibrator(model)
    recordings = find_labelled(data, calibrator.labels)
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=len(recordings), label="listening", file=sys.stderr, hidden=hidden) as bar:
        return calibrate_exits(calibrator, recordings, loss, lambda _: bar.update(1))


def _show(result: CalibrationResult, target: Path, *, as_json: bool) -> None:
    if as_json:
        from agent.cli.json_output import print_json

        print_json(result)
        return
    from agent.cli.console import output

    console = output(100)
    console.print(_table(result))
    for line in (*_summary(result), f"written to {plain(str(target))}"):
        console.print(line)


def _table(result: CalibrationResult) -> Table:
    from rich.table import Table

    table, learned = Table(title="When to stop", title_justify="left"), result.learned
    for column in ("exit", "accuracy alone", "temperature", "least confidence", "used", "multiply-adds"):
        table.add_column(column, justify="right")
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


def _summary(result: CalibrationResult) -> tuple[str, str]:
    learned, checked = result.learned, result.checked
    return (
        f"{result.recordings} recordings: accuracy {learned.chosen.accuracy:.2%} "
        f"(deepest alone {learned.full:.2%}) at {learned.chosen.cost:.0%} of its multiply-adds",
        f"learned from every other recording and tried on the rest: {checked.accuracy:.2%} "
        f"(deepest alone {result.checked_full:.2%}) at {checked.cost:.0%}",
    )
