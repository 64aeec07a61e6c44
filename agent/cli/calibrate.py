"""`vedette models calibrate`: learn from recordings or pictures when a depth or a size will do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.text import plain

if TYPE_CHECKING:
    from rich.table import Table

    from agent.optimise.calibrate.exits import CalibrationResult
    from agent.optimise.calibrate.resolutions import ResolutionResults


_LOSS = {"words": 0.2, "pictures": 10.0}
"""Percentage points. Agreement of two sizes is the harder measure: ten cost NanoDet less than one of AP50."""


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--loss",
    type=float,
    show_default=", ".join(f"{points} for {what}" for what, points in _LOSS.items()),
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
    help="Draw accuracy against cost here, a PNG; of depths. Needs matplotlib: pip install '.[charts]'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def calibrate(
    model: str, data: Path, loss: float | None, out: Path | None, picture: Path | None, as_json: bool
) -> None:
    """Learn from DATA when a depth or a size of MODEL will do, and write it to its manifest.

    For a model of words DATA is a folder with a folder of recordings for each label. A temperature for each
    depth makes its confidence mean what it says; the cheapest thresholds are taken that keep the accuracy of the
    deepest but for --loss.

    For a model of pictures DATA is any folder of pictures such as the camera will see. They need no labels: right
    is what the largest size says, and for each smaller one the least confidence is taken that keeps its answers
    in agreement with it but for --loss. A stream uses them with variant = "auto".
    """
    from agent.compute.infer.vetting.unprivileged import without_root
    from agent.compute.manifest import Manifest
    from agent.models.files import preloaded, rewrite, set_variants
    from agent.models.library import open_manifest

    with preloaded([model]):
        sound = without_root(lambda: open_manifest(model), Manifest).audio is not None
    loss = _LOSS["words" if sound else "pictures"] if loss is None else loss
    if not 0.0 <= loss <= 100.0:
        raise click.BadParameter(f"{loss} is not within 0..100", param_hint="--loss")
    if picture is not None:
        _check_picture(picture, sound=sound)
    target = _target(model, out)
    lesson = (_listen if sound else _watch)(model, data, loss / 100.0)
    _draw(lesson, picture)
    rewrite(model, target, set_variants(lesson.keys))
    _show(lesson, target, as_json=as_json)
    _warn(lesson.lost * 100.0, loss)


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


def _check_picture(picture: Path, *, sound: bool) -> None:
    if not sound:
        raise click.BadParameter("a chart is drawn of depths, and these are sizes", param_hint="--picture")
    from agent.cli.chart import check

    check(picture)


def _draw(lesson: CalibrationResult | ResolutionResults, picture: Path | None) -> None:
    from agent.optimise.calibrate.exits import CalibrationResult

    if picture is not None and isinstance(lesson, CalibrationResult):
        from agent.cli.chart import draw

        draw(lesson, picture)


def _warn(lost: float, loss: float) -> None:
    """Say so when more is lost than was allowed on what nothing was learned from; both in percentage points."""
    if not lost <= loss + 1e-6:
        click.echo(
            f"vedette: warning: tried on data that it was not learned from, {lost:.2f} points are lost, and "
            f"--loss allows {loss:g}: learn from more of it, or allow a larger --loss",
            err=True,
        )


def _listen(model: str, data: Path, loss: float) -> CalibrationResult:
    from agent.optimise.calibrate.exits import ExitCalibrator, calibrate_exits, labelled

    pupil = ExitCalibrator(model)
    recordings = labelled(data, pupil.labels)
    with _progress(len(recordings), "listening") as bar:
        return calibrate_exits(pupil, recordings, loss, lambda _: bar.update(1))


def _watch(model: str, data: Path, loss: float) -> ResolutionResults:
    from agent.optimise.calibrate.resolutions import ResolutionCalibrator, learn, pictures

    watcher, paths = ResolutionCalibrator(model), pictures(data)
    with _progress(len(paths), "looking") as bar:
        return learn(watcher, paths, loss, lambda _: bar.update(1))


def _progress(length: int, label: str) -> click._termui_impl.ProgressBar[int]:
    hidden = not sys.stderr.isatty()
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)


def _show(lesson: CalibrationResult | ResolutionResults, target: Path, *, as_json: bool) -> None:
    from agent.optimise.calibrate.exits import CalibrationResult

    if as_json:
        from agent.cli.json_output import print_json

        print_json(lesson)
        return
    from agent.cli.console import output

    table, lines = _of_depths(lesson) if isinstance(lesson, CalibrationResult) else _of_sizes(lesson)
    console = output(100)
    console.print(table)
    for line in (*lines, f"written to {plain(str(target))}"):
        console.print(line)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(title="When to stop", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _of_depths(lesson: CalibrationResult) -> tuple[Table, list[str]]:
    learned, checked = lesson.learned, lesson.checked
    table = _table("depth", "alone", "temperature", "confidence", "used", "multiply-adds")
    for number, variant in enumerate(lesson.variants):
        thresholds = learned.chosen.thresholds
        table.add_row(
            plain(variant),
            f"{learned.alone[number]:.2%}",
            f"{learned.temperatures[number]:.2f}",
            f"{thresholds[number]:.3f}" if number < len(thresholds) else "",
            f"{learned.chosen.used[number]:.1%}",
            f"{lesson.costs[number]:,.0f}",
        )
    return table, [
        f"{lesson.recordings} recordings: accuracy {learned.chosen.accuracy:.2%} "
        f"(deepest alone {learned.full:.2%}) at {learned.chosen.cost:.0%} of its multiply-adds",
        f"learned from every other recording and tried on the rest: {checked.accuracy:.2%} "
        f"(deepest alone {lesson.checked_full:.2%}) at {checked.cost:.0%}",
    ]


def _of_sizes(lesson: ResolutionResults) -> tuple[Table, list[str]]:
    table = _table("size", "multiply-adds", "alone", "confidence", "sure of", "agreement", "on others")
    for size in lesson.sizes:
        table.add_row(
            plain(size.variant),
            f"{size.cost:.0%}",
            f"{size.alone:.1%}",
            f"{size.learned.thresholds[0]:.3f}",
            f"{size.learned.used[0]:.1%}",
            f"{size.learned.accuracy:.1%}",
            f"{size.checked.accuracy:.1%}",
        )
    return table, [
        f"{lesson.pictures} pictures; multiply-adds and agreement are against the largest size",
        "on others: learned from half of the pictures and tried on the rest",
    ]
