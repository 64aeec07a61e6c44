"""The command `vedette models evaluate`: its arguments and options; what it does is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from agent.cli.optimise import complete_model
from agent.cli.options import PATH, NumberRange, picture_option


def _complete_evaluated(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return models, and what stands in place of one for clips."""
    published = [CompletionItem("det.txt")] if "det.txt".startswith(incomplete) else []
    return [*published, *complete_model(context, option, incomplete)]


@click.command()
@click.argument("model", shell_complete=_complete_evaluated)
@click.argument("data", type=PATH)
@click.option("--positive", multiple=True, metavar="CLASS", help="Class that is to be found; may be repeated.")
@click.option(
    "--target-recall", type=NumberRange(0.0, 1.0, min_open=True), help="Share of it that has to be found, 0..1."
)
@click.option(
    "--background",
    type=PATH,
    multiple=True,
    metavar="FOLDER",
    help="Sound in which no word is said, for false alarms; may be repeated.",
)
@click.option(
    "--target-false-alarms",
    type=NumberRange(0.0, 1e6),
    metavar="RATE",
    help="Choose the threshold of words with at most so many false alarms an hour.",
)
@click.option("--against", default="", metavar="MODEL", help="Compare with another model, on the same examples.")
@click.option("--variant", default="", help="Size or exit of the model; else its first.")
@click.option("--limit", type=click.IntRange(8), help="Use so many examples, chosen by a fixed rule.")
@click.option(
    "--every", type=click.IntRange(1), default=1, metavar="N", help="Of clips, take each Nth picture alone."
)
@picture_option("the confusions")
@click.option("--report", type=PATH, help="Write this HTML, with the worst errors of a model of pictures.")
@click.option(
    "--results", type=PATH, metavar="FILE", help="Store what each file gave here, and continue from it."
)
@click.option("--force", is_flag=True, help="Replace files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def evaluate(model: str, data: Path, **options: Any) -> None:
    """Tell how often MODEL is right on DATA, by class, and what its thresholds give.

    DATA is a folder of pictures for each class, pictures with boxes of YOLO, VOC or COCO, or a .npz, see `vedette
    guide optimise`. For a model of words it is a folder of recordings for each word. Clips of MOTChallenge, or a
    video with the lines of a gt.txt beside it, tell how objects are tracked; MODEL may be det.txt, their
    published detections. Exits with 1 if no threshold reaches a target.
    """
    from agent.cli.models.evaluate import EvaluateOptions, evaluate_and_print

    sys.exit(not evaluate_and_print(model, data, EvaluateOptions(**options)))
