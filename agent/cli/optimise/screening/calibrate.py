"""`vedette optimise screening calibrate`: choose an operating point on labelled pictures, and write it."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from msgspec.structs import replace

from agent.cli.output import console, open_table, print_json, show_progress
from agent.config.toml import to_toml
from agent.errors import ModelError
from agent.features.screening.rules import NOTICE, ScreeningPoint, check_of
from agent.features.screening.screener import open_screener
from agent.models.library import open_model_without_root
from agent.optimise.data import read_examples
from agent.optimise.evaluation.screening import FALSE_POSITIVES, choose_point
from agent.storage.files import write_atomic
from agent.text import plain

_WIDTH = 100


def calibrate_and_write(
    name: str,
    data: Path,
    target: Path,
    *,
    label: str,
    false_positives: float | None,
    sensitivity: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Choose the operating point of a model, print it and write it; see the help of the command.

    Raises:
        ModelError: the model or the pictures cannot be used, nothing gives what is asked for, or a file is there.
        StorageError: a file cannot be written.
    """
    _check_target(target, force=force)
    model = open_model_without_root(name)
    examples = read_examples(data, model, own_classes=True)
    if examples.kind != "boxes":
        raise ModelError(f"{examples.description}: an operating point needs pictures with boxes")
    rate = FALSE_POSITIVES if false_positives is None else false_positives
    try:
        with open_screener(model, label) as screener:
            point, remarks = choose_point(
                model,
                screener,
                examples,
                label,
                rate,
                sensitivity,
                lambda done: show_progress(f"{done} of {len(examples)} pictures looked at"),
            )
    finally:
        show_progress("")
    point = replace(point, model=_absolute(model.path))
    point = replace(point, check=check_of(point))
    write_atomic(target, to_toml(msgspec.to_builtins(point), {("model",): NOTICE}).encode())
    print_json(point, indent=2) if as_json else _print(point)
    for line in (examples.description, *remarks, f"{target}: written", NOTICE):
        click.echo(plain(line), err=True)


def _absolute(model: str) -> str:
    """Return a path that works from other folders, or the name of a bundled model."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _check_target(target: Path, *, force: bool) -> None:
    if target.suffix != ".toml":
        raise ModelError(f"{target}: expected the name of a .toml file")
    if target.exists() and not force:
        raise ModelError(f"{target}: exists; --force replaces it")
    if not target.absolute().parent.is_dir():
        raise ModelError(f"{target}: there is no folder {target.absolute().parent}")


def _print(point: ScreeningPoint) -> None:
    expected, low, high = point.expected, *point.expected.interval
    click.echo(
        plain(
            f"{point.label}: {expected.sensitivity:.1%} of {expected.objects} found ({low:.1%} to {high:.1%}) at "
            f"{expected.false_positives:.2f} false positives a picture; threshold {point.threshold:.4f}, doubt "
            f"from {point.doubt:.4f}; calibration error {point.calibration.error:.1%}"
        )
    )
    table = open_table("false positives a picture", *(f"{rate:g}" for rate, _ in expected.froc))
    table.add_row("found", *(f"{share:.1%}" for _, share in expected.froc))
    console(_WIDTH, markup=False).print(table)
