"""`vedette models calibrate`: learn from recordings when a model of several depths may stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.plain import plain

if TYPE_CHECKING:
    from agent.practice import Lesson


@click.command()
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--loss", default=0.2, show_default=True, help="Accuracy that may be given away, percentage points."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the manifest here; default: where it was.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw accuracy against cost here, a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def calibrate(model: str, data: Path, loss: float, out: Path | None, picture: Path | None, as_json: bool) -> None:
    """Learn the thresholds of MODEL's depths from DATA, a folder with a folder of recordings for each label.

    A temperature for each depth makes its confidence mean what it says; the cheapest thresholds are taken that
    keep the accuracy of the deepest but for --loss. They are written to the manifest.
    """
    from agent.practice import Pupil, labelled, learn, written
    from agent.storage.models import manifest_path, rewrite

    if not 0.0 <= loss <= 100.0:
        raise click.BadParameter(f"{loss} is not within 0..100", param_hint="--loss")
    target = out or manifest_path(model)
    if not target.absolute().parent.is_dir():
        raise click.BadParameter(f"{target}: no such folder to write it to", param_hint="--out")
    pupil = Pupil(model)
    recordings = labelled(data, pupil.labels)
    shown = sys.stderr.isatty()
    with click.progressbar(length=len(recordings), label="listening", file=sys.stderr, hidden=not shown) as bar:
        lesson = learn(pupil, recordings, loss / 100.0, lambda _: bar.update(1))
    rewrite(model, target, written(lesson))
    if picture is not None:
        from agent.cli.chart import draw

        draw(lesson, picture)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(lesson).decode())
    else:
        _print(lesson, target)


def _print(lesson: Lesson, target: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    learned = lesson.learned
    table = Table(title="When to stop", title_justify="left")
    for column in ("depth", "alone", "temperature", "confidence", "used", "multiply-adds"):
        table.add_column(column, justify="right")
    for number, rung in enumerate(lesson.rungs):
        thresholds = learned.chosen.thresholds
        table.add_row(
            plain(rung),
            f"{learned.alone[number]:.2%}",
            f"{learned.temperatures[number]:.2f}",
            f"{thresholds[number]:.3f}" if number < len(thresholds) else "",
            f"{learned.chosen.used[number]:.1%}",
            f"{lesson.costs[number]:,.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table)
    console.print(
        f"{lesson.recordings} recordings: accuracy {learned.chosen.accuracy:.2%} "
        f"(deepest alone {learned.full:.2%}) at {learned.chosen.cost:.0%} of its multiply-adds"
    )
    console.print(
        f"learned from every other recording and tried on the rest: {lesson.checked.accuracy:.2%} "
        f"(deepest alone {lesson.checked_full:.2%}) at {lesson.checked.cost:.0%}"
    )
    console.print(f"written to {plain(str(target))}")
