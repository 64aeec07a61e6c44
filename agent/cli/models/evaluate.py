"""`vedette models evaluate`: how often a model is right on labelled examples, and at which threshold."""

from __future__ import annotations

from pathlib import Path

import click
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.optimise import show_progress
from agent.cli.output import console, open_table, print_json
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import open_model_without_root
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluation.model import (
    Evaluation,
    EvaluationRequest,
    evaluate_model,
    has_own_classes,
    missed_targets,
)
from agent.optimise.evaluation.report import comparison, draw_confusion, headline, tables, to_html
from agent.storage.files import write_atomic
from agent.text import plain

_WIDTH = 110


class EvaluateOptions(Struct, frozen=True):
    """Options of `vedette models evaluate`.

    Attributes:
        positive: classes that are to be found.
        target_recall: share of them, 0..1; None: none is asked for.
        against: another model to compare with; empty: none.
        variant: of the model; empty: its first.
        limit: number of examples; None: all.
        picture: PNG of the confusion matrix to write; None: none.
        report: HTML to write; None: none.
        force: replace them.
        as_json: print JSON instead of tables.
    """

    positive: tuple[str, ...] = ()
    target_recall: float | None = None
    against: str = ""
    variant: str = ""
    limit: int | None = None
    picture: Path | None = None
    report: Path | None = None
    force: bool = False
    as_json: bool = False


def evaluate_and_print(name: str, data: Path, options: EvaluateOptions) -> bool:
    """Evaluate a model, print what was found, and write what is asked for.

    Args:
        name: of the model, or its path.
        data: path of the examples.
        options: see `EvaluateOptions`.

    Returns:
        False if a target cannot be reached.

    Raises:
        ModelError: a model or the examples cannot be used, or a file is there already.
    """
    _check_targets(options, [data, Path(name)])
    model = _opened(name, options.variant)
    other = _opened(options.against, "") if options.against else None
    examples = _read(data, model, options)
    others = None if other is None else (other, _read(data, other, replace(options, variant="")))
    if others is not None:
        _check_alike(others[1], examples, others[0])
    _check_picture(options, examples, model)
    request = EvaluationRequest(options.variant, options.positive, options.target_recall)
    total = len(examples) * (2 if other else 1)
    try:
        found = evaluate_model(
            model, examples, request, others, lambda done: show_progress(f"{done} of {total} examples evaluated")
        )
    finally:
        show_progress("")
    missed = missed_targets(found, options.target_recall)
    print_json(found, indent=2) if options.as_json else _print(found)
    for line in missed:
        click.echo(plain(line), err=True)
    _write(found, examples, options)
    return not missed


def _check_targets(options: EvaluateOptions, inputs: list[Path]) -> None:
    """Refuse files that cannot be written, before hours pass."""
    targets = [path for path in (options.picture, options.report) if path is not None]
    if len({path.absolute() for path in targets}) < len(targets):
        raise ModelError(f"{targets[0]}: is both the report and the chart: name two files")
    for path in targets:
        if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
            raise ModelError(f"{path}: is what is evaluated: name another file")
        if path.exists() and not options.force:
            raise ModelError(f"{path}: exists; --force replaces it")
        if not path.absolute().parent.is_dir():
            raise ModelError(f"{path}: there is no folder {path.absolute().parent}")


def _check_picture(options: EvaluateOptions, examples: Examples, model: Model) -> None:
    if options.picture is not None and (examples.kind != "classes" or has_own_classes(model.manifest)):
        raise ModelError("--picture draws confusions, which only classes of whole pictures have: try --report")


def _opened(name: str, variant: str) -> Model:
    model = open_model_without_root(name, variant)
    if model.manifest.audio is not None:
        raise ModelError(f"{name}: takes sound: only models of pictures are evaluated")
    if model.manifest.gives_numbers:
        raise ModelError(f"{name}: gives numbers: only classes, anomalies and boxes are evaluated")
    if model.manifest.gives_texts:
        raise ModelError(f"{name}: reads texts: only classes, anomalies and boxes are evaluated")
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


def _write(found: Evaluation, examples: Examples, options: EvaluateOptions) -> None:
    if options.picture is not None:
        write_atomic(options.picture, draw_confusion(found))
    if options.report is not None:
        write_atomic(options.report, to_html(found, examples).encode("utf-8", "replace"))


def _print(found: Evaluation) -> None:
    shown = console(_WIDTH, markup=False)
    shown.print(plain(f"{found.model}: {headline(found)}"))
    for line in filter(None, (comparison(found), found.data, *found.remarks)):
        shown.print(plain(line))
    for table in tables(found):
        drawn = open_table(*table.columns, right=table.right)
        drawn.title, drawn.title_justify = table.title, "left"
        for row in table.rows:
            drawn.add_row(*map(plain, row))
        shown.print()
        shown.print(drawn)
