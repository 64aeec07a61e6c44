"""`vedette optimise evaluate`: tell how often a model is right, and what its thresholds give."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.optimise.options import JSON, MODEL
from agent.cli.options import PATH, NumberRange
from agent.cli.output import console, open_table, print_json, show_progress
from agent.compute.manifest import AUTO, Model
from agent.errors import ModelError
from agent.models.library import open_model_without_root
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluation.listening import open_listener
from agent.optimise.evaluation.model import EvaluationRequest, evaluate_model, has_own_classes, missed_targets
from agent.optimise.evaluation.report import (
    EvaluationReport,
    config_line,
    picture_report,
    sound_report,
)
from agent.optimise.evaluation.sound import evaluate_sounds, missed_alarm_target
from agent.optimise.evaluation.sound_data import SoundExamples, read_sounds
from agent.optimise.source import judged_by_learned
from agent.text import plain

_WIDTH = 110


class EvaluateOptions(Struct, frozen=True):
    """Options of `vedette optimise evaluate`, see its help."""

    positive: tuple[str, ...] = ()
    target_recall: float | None = None
    background: tuple[Path, ...] = ()
    target_false_alarms: float | None = None
    against: str = ""
    variant: str = ""
    limit: int | None = None
    as_json: bool = False

    def check(self, what: str, *names: str) -> None:
        """Raise ModelError if another option than these is set, which says nothing about `what`."""
        unset, known = EvaluateOptions(), {*names, "variant", "as_json"}
        for name in self.__struct_fields__:
            if name not in known and getattr(self, name) != getattr(unset, name):
                raise ModelError(f"--{name.replace('_', '-')}: is not for {what}")


@click.command()
@MODEL
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
@click.option("--limit", type=click.IntRange(8), metavar="N", help="Use only N pictures, chosen by a fixed rule.")
@JSON
def evaluate(model: str, data: Path, **options: Any) -> None:
    """Tell how often MODEL is right on DATA, by class, and what its thresholds give.

    DATA is a folder of pictures for each class, pictures with boxes of YOLO, VOC or COCO, or a .npz, see `vedette
    guide optimise`. For a model of words it is a folder of recordings for each word. Exits with 1 if no threshold
    reaches a target.
    """
    sys.exit(not evaluate_and_print(model, data, EvaluateOptions(**options)))


def evaluate_and_print(name: str, data: Path, options: EvaluateOptions) -> bool:
    """Evaluate a model, print what was found, and write what is asked for; return False if a target is missed.

    Raises:
        ModelError: a model or the examples cannot be used, or a file is there already.
        SourceError: a recording cannot be read.
    """
    model = _opened(name, options.variant)
    if options.variant == AUTO:
        model.manifest.exits(AUTO)  # raises if it has none
        options = replace(options, variant="")
    other = _opened(options.against, "") if options.against else None
    evaluate = _evaluate_pictures if model.manifest.audio is None else _evaluate_words
    return evaluate(model, other, data, options)


def _opened(name: str, variant: str) -> Model:
    model = open_model_without_root(name, variant)
    if model.manifest.gives_numbers or model.manifest.gives_texts:
        told = "reads texts" if model.manifest.gives_texts else "gives numbers"
        raise ModelError(f"{name}: {told}: only classes, anomalies, boxes and words are evaluated")
    return model


def _print(found: Struct, report: EvaluationReport, options: EvaluateOptions) -> None:
    """Print an evaluation as JSON, or its report."""
    show_progress("")
    if options.as_json:
        print_json(found, indent=2)
        return
    shown = console(_WIDTH, markup=False)
    for line in report.lines:
        shown.print(plain(line))
    for table in report.tables:
        drawn = open_table(*table.columns, right=table.right)
        drawn.title, drawn.title_justify = table.title, "left"
        for row in table.rows:
            drawn.add_row(*map(plain, row))
        shown.print()
        shown.print(drawn)


def _evaluate_pictures(model: Model, other: Model | None, data: Path, options: EvaluateOptions) -> bool:
    options.check("models of pictures", "positive", "target_recall", "against", "limit")
    examples = _read(data, model, options)
    others = None if other is None else (other, _read(data, other, replace(options, variant="")))
    if others is not None and (others[1].kind, others[1].names) != (examples.kind, examples.names):
        raise ModelError(
            f"{others[0].path}: tells {', '.join(others[1].names[:8])}, and the model "
            f"{', '.join(examples.names[:8])}: they cannot be compared"
        )
    request = EvaluationRequest(options.variant, options.positive, options.target_recall)
    total = len(examples) * (2 if other else 1)

    def show(done: int) -> None:
        show_progress(f"{done} of {total} examples evaluated")

    found = evaluate_model(model, examples, request, others, show)
    judged = ((model, examples), *([others] if others else []))
    learned = (line for one, given in judged for line in judged_by_learned(one, given))
    found = replace(found, remarks=(*found.remarks, *learned))
    _print(found, picture_report(found), options)
    missed = missed_targets(found, options.target_recall)
    for line in missed:
        click.echo(plain(line), err=True)
    return not missed


def _read(data: Path, model: Model, options: EvaluateOptions) -> Examples:
    own = has_own_classes(model.manifest)
    return read_examples(data, model, options.variant, limit=options.limit, own_classes=own)


def _evaluate_words(model: Model, other: Model | None, data: Path, options: EvaluateOptions) -> bool:
    options.check("models of words", "background", "target_false_alarms", "against")
    examples = _read_sounds(model, data, options)
    target = options.target_false_alarms
    found = evaluate_sounds(model, examples, options.variant, target, other, show_progress)
    _print(found, sound_report(found), options)
    if not options.as_json and (keys := config_line(found)):
        click.echo(f"\nfor {target:g} false alarms an hour:\n\n{keys}")
    if missed := missed_alarm_target(found, target):
        click.echo(plain(missed), err=True)
    return not missed


def _read_sounds(model: Model, data: Path, options: EvaluateOptions) -> SoundExamples:
    with open_listener(model, options.variant) as listener:
        examples = read_sounds(data, options.background, listener.words, listener.ignored)
    if not examples.hours and options.target_false_alarms is not None:
        raise ModelError("false alarms per hour need other sound: give a folder of it by --background")
    return examples
