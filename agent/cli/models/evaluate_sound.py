"""`vedette models evaluate` for models of words: which are heard, which are missed, and how many in vain."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from msgspec.structs import replace

from agent.cli.models.evaluate_options import (
    EvaluateOptions,
    check_targets,
    given_slices,
    print_tables,
    write_outputs,
)
from agent.cli.optimise.progress import show_progress
from agent.cli.output import print_json
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.optimise.evaluation.kept import keep_results
from agent.optimise.evaluation.listening import open_listener
from agent.optimise.evaluation.report import comparison
from agent.optimise.evaluation.sound import (
    SoundEvaluation,
    SoundRequest,
    evaluate_sounds,
    missed_alarm_target,
)
from agent.optimise.evaluation.sound_data import SoundExamples, read_sounds
from agent.optimise.evaluation.sound_report import (
    config_line,
    draw_rates,
    draw_sound_confusion,
    sound_headline,
    sound_tables,
    sound_to_html,
)
from agent.text import plain

_PICTURES_ALONE = "is for models of pictures; a model of words has --target-false-alarms"


def evaluate_sound_and_print(model: Model, other: Model | None, data: Path, options: EvaluateOptions) -> bool:
    """Evaluate a model of words, print what was found, and write what is asked for.

    Args:
        model: to evaluate.
        other: to compare with; None: nothing is compared.
        data: folder of the recordings.
        options: see `EvaluateOptions`.

    Returns:
        False if no threshold has so few false alarms as are asked for.

    Raises:
        ModelError: a model or the recordings cannot be used, or a file is there already.
        SourceError: a recording cannot be read.
    """
    options.refuse(_PICTURES_ALONE, "positive", "target_recall")
    options.refuse("is for clips", "every")
    check_targets(options, [data, Path(model.path)])
    examples = _read(model, data, options)
    request = SoundRequest(
        options.variant,
        options.target_false_alarms,
        given_slices(options.slices, [one.name for one in examples.recordings]),
    )
    with keep_results(options.results_path, fresh=options.fresh) as kept:
        try:
            found = evaluate_sounds(model, examples, request, other, kept, _Progress(examples))
        finally:
            show_progress("")
    missed = missed_alarm_target(found, options.target_false_alarms)
    lines = _lines(found, kept.reused)
    print_json(found, indent=2) if options.as_json else print_tables(lines, sound_tables(found))
    if not options.as_json and (keys := config_line(found)):
        click.echo(f"\nfor {options.target_false_alarms:g} false alarms an hour:\n\n{keys}")
    if missed:
        click.echo(plain(missed), err=True)
    _write(found, examples, options, lines)
    return not missed


def _write(found: SoundEvaluation, examples: SoundExamples, options: EvaluateOptions, lines: list[str]) -> None:
    write_outputs(
        (
            (options.picture, lambda: draw_sound_confusion(found)),
            (options.curve, lambda: draw_rates(found)),
            (options.report, lambda: sound_to_html(found, examples, lines).encode("utf-8", "replace")),
        )
    )


def _lines(found: SoundEvaluation, reused: int) -> list[str]:
    kept = f"{reused} results of an earlier run were taken over" if reused else ""
    compared = comparison(found.metric, found.against)
    return [
        f"{found.model}: {sound_headline(found)}",
        compared,
        found.data,
        *found.remarks,
        kept,
    ]


def _read(model: Model, data: Path, options: EvaluateOptions) -> SoundExamples:
    with open_listener(model, options.variant) as listener:
        examples = read_sounds(data, options.background, listener.words, listener.ignored)
    if not examples.hours and (options.target_false_alarms is not None or options.curve is not None):
        raise ModelError("false alarms per hour need other sound: give a folder of it by --background")
    said = [one for one in examples.recordings if one.said]
    if options.limit is None or len(said) <= options.limit:
        return examples
    chosen = {said[at].name for at in np.random.default_rng(0).permutation(len(said))[: options.limit]}
    kept = tuple(one for one in examples.recordings if not one.said or one.name in chosen)
    return replace(examples, recordings=kept)


class _Progress:
    """Shows how much of the sound is heard, of all passes over it together."""

    def __init__(self, examples: SoundExamples) -> None:
        self._total_s = sum(one.seconds for one in examples.recordings)

    def __call__(self, done_s: float, passes: int, reused: int) -> None:
        kept = f", {reused} results taken over" if reused else ""
        total_s = self._total_s * passes
        show_progress(f"{done_s / 60:.1f} of {total_s / 60:.1f} minutes heard in {passes} passes{kept}")
