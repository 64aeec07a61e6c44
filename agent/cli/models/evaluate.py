"""`vedette models evaluate`: how often a model is right on labelled examples, and at which threshold."""

from __future__ import annotations

from pathlib import Path

import click
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
from agent.compute.manifest import AUTO, Model
from agent.errors import ModelError
from agent.models.library import open_model_without_root
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluation.kept import KeptResults, keep_results
from agent.optimise.evaluation.model import (
    Evaluation,
    EvaluationRequest,
    evaluate_model,
    has_own_classes,
    missed_targets,
)
from agent.optimise.evaluation.mot import PUBLISHED, holds_clips
from agent.optimise.evaluation.report import comparison, draw_confusion, headline, tables, to_html
from agent.optimise.source import judged_by_learned
from agent.text import plain


def evaluate_and_print(name: str, data: Path, options: EvaluateOptions) -> bool:
    """Evaluate a model, print what was found, and write what is asked for.

    Args:
        name: of the model, or its path; `det.txt`: of clips, their published detections.
        data: path of the examples.
        options: see `EvaluateOptions`.

    Returns:
        False if a target cannot be reached.

    Raises:
        ModelError: a model or the examples cannot be used, or a file is there already.
    """
    if holds_clips(data) or name == PUBLISHED:
        from agent.cli.models.evaluate_tracks import evaluate_tracks_and_print

        return evaluate_tracks_and_print(name, data, options)
    model = _opened(name, options.variant)
    if options.variant == AUTO:
        model.manifest.exits(AUTO)  # raises if it has none
        options = replace(options, variant="")
    other = _opened(options.against, "") if options.against else None
    if model.manifest.audio is None:
        return _evaluate_pictures(model, other, data, options)
    from agent.cli.models.evaluate_sound import evaluate_sound_and_print

    return evaluate_sound_and_print(model, other, data, options)


def _evaluate_pictures(model: Model, other: Model | None, data: Path, options: EvaluateOptions) -> bool:
    options.refuse("is for models of words", "background", "target_false_alarms", "curve")
    options.refuse("is for clips", "every")
    check_targets(options, [data, Path(model.path)])
    examples = _read(data, model, options)
    others = None if other is None else (other, _read(data, other, replace(options, variant="")))
    if others is not None:
        _check_alike(others[1], examples, others[0])
    _check_picture(options, examples, model)
    names = [examples.name(index) for index in range(len(examples))]
    slices = given_slices(options.slices, names)
    request = EvaluationRequest(options.variant, options.positive, options.target_recall, slices=slices)
    with keep_results(options.results_path, fresh=options.fresh) as kept:
        try:
            total = len(examples) * (2 if other else 1)
            found = evaluate_model(model, examples, request, others, lambda done: _show(done, total, kept), kept)
        finally:
            show_progress("")
    judged = ((model, examples), *([others] if others else []))
    learned = (line for one, given in judged for line in judged_by_learned(one, given))
    found = replace(found, remarks=(*found.remarks, *learned))
    missed = missed_targets(found, options.target_recall)
    print_json(found, indent=2) if options.as_json else print_tables(_lines(found, kept), tables(found))
    for line in missed:
        click.echo(plain(line), err=True)
    write_outputs(
        (
            (options.picture, lambda: draw_confusion(found)),
            (options.report, lambda: to_html(found, examples).encode("utf-8", "replace")),
        )
    )
    return not missed


def _show(done: int, total: int, kept: KeptResults) -> None:
    taken = f", {kept.reused} taken over" if kept.reused else ""
    show_progress(f"{done} of {total} examples evaluated{taken}")


def _lines(found: Evaluation, kept: KeptResults) -> list[str]:
    taken = f"{kept.reused} results of an earlier run were taken over" if kept.reused else ""
    compared = comparison(found.metric, found.against)
    return [
        f"{found.model}: {headline(found)}",
        compared,
        found.data,
        *found.remarks,
        taken,
    ]


def _check_picture(options: EvaluateOptions, examples: Examples, model: Model) -> None:
    if options.picture is not None and (examples.kind != "classes" or has_own_classes(model.manifest)):
        raise ModelError("--picture draws confusions, which only classes of whole pictures have: try --report")


def _opened(name: str, variant: str) -> Model:
    model = open_model_without_root(name, variant)
    if model.manifest.gives_numbers:
        raise ModelError(f"{name}: gives numbers: only classes, anomalies, boxes and words are evaluated")
    if model.manifest.gives_texts:
        raise ModelError(f"{name}: reads texts: only classes, anomalies, boxes and words are evaluated")
    return model


def _read(data: Path, model: Model, options: EvaluateOptions) -> Examples:
    own = has_own_classes(model.manifest)
    return read_examples(data, model, options.variant, limit=options.limit, own_classes=own)


def _check_alike(others: Examples, examples: Examples, other: Model) -> None:
    if (others.kind, others.names) != (examples.kind, examples.names):
        raise ModelError(
            f"{other.path}: tells {', '.join(others.names[:8])}, and the model {', '.join(examples.names[:8])}: "
            "they cannot be compared"
        )
