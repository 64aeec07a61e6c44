"""`vedette models`: list, recommend, import, inspect and try models, and describe manifests."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import PATH, FilePath, NumberRange
from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.errors import ModelError, VedetteError
from agent.text import plain

if TYPE_CHECKING:
    from agent.cli.models.inspection import Listed, ModelInspection
    from agent.models.fetch import GuideModel, GuideVariant


_WIDTH = 160
"""Columns of a table where stdout is no terminal."""


@click.group()
def models() -> None:
    """List and recommend models, import, inspect or try one, or describe their manifests."""


def _model_name(_context: click.Context, option: click.Parameter, name: str) -> str:
    if name and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or len(name) > 100):
        raise click.BadParameter(
            f"{name!r}: expected letters, digits, dots, dashes and underscores", param=option
        )
    return name


def _sha256(_context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch("[0-9A-Fa-f]{64}", text):
        raise click.BadParameter(f"{text!r}: expected 64 hexadecimal digits", param=option)
    return text


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@models.command("list")
@click.argument("files", nargs=-1)
@_JSON
def list_(files: tuple[str, ...], as_json: bool) -> None:
    """List the bundled models and FILES. Exits with 1 if one of them cannot be used.

    `models pull` lists those that can be fetched.
    """
    from agent.cli.models.inspection import Listed, listed
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import bundled, preloaded

    names = (*bundled(), *files)
    with preloaded(names):
        rows = without_root(lambda: [listed(name) for name in names], list[Listed])
    if as_json:
        print_json(rows, indent=2)
    else:
        _print_list(rows)
    sys.exit(any(row.error for row in rows))


@models.command()
@click.argument("file")
@_JSON
@click.option(
    "--write-manifest",
    "write",
    is_flag=True,
    help="Write a manifest beside the model with every key that was found and its source.",
)
@click.option(
    "--manifest", "path", default="", metavar="TOML", help="Write the manifest to TOML, in the model's folder."
)
@click.option("--force", is_flag=True, help="Overwrite an existing manifest.")
def inspect(file: str, as_json: bool, write: bool, path: str, force: bool) -> None:
    """Inspect FILE: a .tflite, a manifest .toml, or the name of a bundled model.

    The model is opened as a stream would open it, in a process of its own. Exits with 1 if a runtime refuses it,
    or if its decoder is not known.
    """
    from agent.cli.models.inspection import ModelInspection, inspection
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded

    with preloaded([file]):
        found = _all_faults(lambda: without_root(lambda: inspection(file), ModelInspection))
    if write or path:
        _write_manifest(file, path, force)
    if as_json:
        print_json(found, indent=2)
    else:
        _print_inspection(found)
    sys.exit(found.refused)


def _import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `import`, which `pull` takes as well."""
    for option in (
        click.option("--force", is_flag=True, help="Replace a model of this name and its manifest."),
        click.option(
            "--pixels",
            type=click.Choice(["signed", "unit", "raw", "imagenet"]),
            help="What a float model takes: -1..1, 0..1, 0..255, or ImageNet's.",
        ),
        click.option("--decoder", default="", help="Of the outputs, if it cannot be guessed."),
        click.option("--labels", type=FilePath(dir_okay=False), help="File with one class in each line."),
        click.option("--member", default="", help="File in an archive that has several models."),
        click.option("--name", default="", callback=_model_name, help="Of the model; default: that of the file."),
        click.option("--to", type=FilePath(file_okay=False), default=".", help="Folder; default: this one."),
    ):
        command = option(command)
    return command


@models.command("import")
@click.argument("file", type=PATH, metavar="FILE|ZIP")
@_import_options
@_JSON
def import_(file: Path, **options: Any) -> None:
    """Import a model: FILE is a .tflite or .lite, ZIP an archive with one and perhaps its labels.

    It is copied, and its manifest written, with the origin of each key: what the file says (TFLite Metadata,
    Ultralytics), what lies beside it, what was guessed. What cannot be found is asked for. Nothing is written
    unless the model runs here and its outputs can be decoded.
    """
    from agent.cli.models.importing import ModelImportOptions, import_and_write

    import_and_write(file, ModelImportOptions(**options))


@models.command()
@click.argument("model", required=False, metavar="[NAME|URL]")
@click.option("--task", default="", help="List only the models for this task.")
@click.option("--sha256", callback=_sha256, help="Of the file at a URL, in hexadecimal digits.")
@_import_options
@_JSON
def pull(model: str | None, task: str, sha256: str | None, as_json: bool, **options: Any) -> None:
    """List the models that can be fetched, or fetch NAME or the file at URL, and import it.

    The file is checked by its SHA-256 before it is opened, then imported as `models import` does. What an
    interrupted call has fetched is gone on from. For a board without a network, fetch it elsewhere
    and copy the .tflite and its .toml.
    """
    from agent.cli.models.importing import ModelImportOptions, check_decoder, list_catalogue
    from agent.cli.models.importing import pull as fetch_and_import

    if model is None:
        if sha256 or any(one and one != Path() for one in options.values()):
            raise click.UsageError("these options are for a NAME or a URL")
        list_catalogue(task, as_json=as_json)
        return
    if task:
        raise click.UsageError("--task is for the list, without a NAME")
    check_decoder(options["decoder"])
    fetch_and_import(model, sha256, ModelImportOptions(as_json=as_json, **options))


@models.command()
@click.option("--task", required=True, help="What to find, such as detect.")
@click.option("--board", default="pi4b", show_default=True, help="Where it runs.")
@_JSON
def recommend(task: str, board: str, as_json: bool) -> None:
    """Recommend models for a task on a board: accuracy, size, memory and latency.

    Accuracy was measured, or published by the model's author; latency is predicted and memory estimated. Beside
    each accuracy is the command that gives it. `vedette guide choosing` tells how far to trust each figure.
    """
    from agent.models.fetch import guide, known_for

    models = known_for(task, board)
    if as_json:
        print_json(models, indent=2)
        return
    out = console(_WIDTH, markup=False)
    right = ("accuracy", "size", "memory", "ms, 1 thread", "4 threads", "upper end")
    table = open_table("model", *right, "what the accuracy is; commands", right=right)
    for model in models:
        for variant in model.variants:
            table.add_row(*_cells(model, variant, board))
    out.print(f"{task} on {guide().boards[board]}", table, sep="\n")
    click.echo(
        "ms are predicted for the CPU alone, nine of ten lie below the upper end; memory is estimated.", err=True
    )


def _cells(model: GuideModel, variant: GuideVariant, board: str) -> tuple[str, ...]:
    family = f" ({variant.family})" if variant.family else ""
    accuracy = NO_VALUE if variant.accuracy is None else f"{variant.accuracy:.3f}"
    noisy = "" if variant.noisy is None else f", {variant.noisy:.3f} in noise 10 dB below"
    about = [f"{model.what}{noisy}{f': {model.command}' if model.command else ''}", *model.get]
    return (
        plain(f"{model.name} {variant.name}".strip() + family),
        accuracy,
        _size(variant.bytes),
        _size(variant.memory),
        *(f"{ms:.3g}" for ms in variant.ms[board]),
        "\n".join(plain(line) for line in about),
    )


@models.command("try")
@click.argument("model")
@click.argument("source", metavar="PICTURE|SOUND|URI")
@click.option("--threshold", type=NumberRange(0.0, 1.0), help="Least score that counts; else the manifest's.")
@click.option("--variant", default="", help="Size or exit of the model; else as in a stream.")
@click.option("--picture", type=PATH, help="Write this JPEG, with what was found drawn in.")
@click.option("--force", is_flag=True, help="Replace the JPEG.")
@_JSON
def try_(model: str, source: str, **options: Any) -> None:
    """Run MODEL once on a picture or a recording, and show what it answers.

    Of a video or a camera, the first picture is taken: v4l2:/dev/video0, file:clip.mp4. A recording is heard from
    its beginning to its end. The model runs on the CPU, as a stream would run it.
    """
    from agent.cli.models.trying import TryOptions, try_model

    try_model(model, source, TryOptions(**options))


@models.command()
def schema() -> None:
    """Print the JSON Schema of a manifest, with every key and every decoder's options, for editors."""
    from agent.cli.config import manifest_schema

    print_json(manifest_schema(), indent=2)


def _all_faults(inspect_: Callable[[], ModelInspection]) -> ModelInspection:
    """Raise an error of several faults with one line for each."""
    try:
        return inspect_()
    except ModelError as error:
        raise VedetteError("\n".join(error.faults)) from error


def _write_manifest(file: str, path: str, force: bool) -> None:
    """Write a manifest with what is known of a model, and print its path and the missing keys.

    Raises:
        ModelError: the decoder is not known, or a manifest exists and `force` is not set.
    """
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded
    from agent.models.writer import Draft, draft, write_new

    with preloaded([file]):
        known = without_root(lambda: draft(file), Draft)
    written = plain(str(write_new(file, path, known, force=force)))
    click.echo(f"wrote {written}", err=True)
    if known.missing:
        tables = dict.fromkeys(table for table, _ in known.missing)
        keys = [" and ".join(key for at, key in known.missing if at == table) for table in tables]
        untold = ", ".join(f"[{table}] {names}" for table, names in zip(tables, keys, strict=True))
        click.echo(f"vedette: {written}: unknown: {untold}; fill in the commented lines", err=True)


def _print_list(rows: list[Listed]) -> None:
    table = open_table("model", "decoder", "labels", "variants", "input", "size", "licence")
    for row in rows:
        if not row.error:
            variants = " ".join(row.variants)
            cells = (row.name, row.decoder, str(row.labels), variants, row.input, _size(row.size), row.licence)
            table.add_row(*map(_plain, cells))
    console(_WIDTH).print(table)
    for row in rows:
        if row.error:
            click.echo(f"vedette: {plain(row.error)}", err=True)


def _print_inspection(found: ModelInspection) -> None:
    from rich.table import Table

    out = console(_WIDTH)
    table = Table(show_header=False, title=_plain(found.file), title_justify="left")
    for key, value in found.summary().items():
        table.add_row(key, _plain(value))
    out.print(table)
    for runtime, reasons in found.refusals.items():
        for reason in reasons:
            out.print(f"[red]{runtime} cannot run it:[/red] {_plain(reason)}")
        if not reasons and not found.crash and not found.decoding_error:
            out.print(f"[green]{runtime}:[/green] compatible")
    if found.crash:
        out.print(f"[red]crashes:[/red] {_plain(found.crash)}")
    for doubt in found.doubts:
        out.print(f"[yellow]doubtful:[/yellow] {_plain(doubt)}")
    if found.decoding_error:
        out.print(f"[red]cannot be used:[/red] {_plain(found.decoding_error)}")


def _plain(text: str) -> str:
    """Escape rich markup and control characters."""
    from rich.markup import escape

    return escape(plain(text, keep="\n"))


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
