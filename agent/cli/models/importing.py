"""`vedette models import`: write a model that a tool has handed over, with its manifest."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct

from agent.cli.models.inspection import check_decoder_fits
from agent.cli.output import console, open_table, print_json
from agent.compute.decode import DECODERS
from agent.compute.infer.image_input import ImageInput
from agent.compute.infer.session import SessionOptions, open_session
from agent.compute.infer.unprivileged import without_root
from agent.compute.manifest import FEATURES, Model
from agent.errors import ModelError
from agent.models.files import held
from agent.models.importer import (
    PIXELS,
    SUFFIXES,
    FoundModel,
    ImportedModel,
    check_free,
    find_model,
    prepare_import,
    read_labels,
    write_import,
    written_file,
)
from agent.models.library import open_whole_model
from agent.text import plain

_WIDTH, _LONGEST = 100, 60
_MEANINGS = {
    "signed": "-1..1 (TensorFlow, MediaPipe, Teachable Machine)",
    "unit": "0..1 (Ultralytics, Edge Impulse)",
    "raw": "0..255 (EfficientNet of Keras)",
    "imagenet": "normalised by ImageNet's mean and deviation (PyTorch)",
}


class ModelImportOptions(Struct, frozen=True):
    """Options of `vedette models import`.

    Attributes:
        to: folder that the model is written to.
        name: of the model; empty: that of the file.
        member: of an archive with several models.
        labels: file of labels; None: those beside the model or in it.
        decoder: of the outputs; empty: guessed.
        pixels: key of `PIXELS`; None: from the file, or asked for.
        force: replace files.
        as_json: print JSON instead of a table.
    """

    to: Path = Path()
    name: str = ""
    member: str = ""
    labels: Path | None = None
    decoder: str = ""
    pixels: str | None = None
    force: bool = False
    as_json: bool = False


def import_and_write(file: Path, options: ModelImportOptions) -> None:
    """Import a model, ask what it does not say, and write it with its manifest.

    Raises:
        ModelError: there is no model that can run here, something is not known, or a file is there already.
    """
    check_decoder(options.decoder)
    import_found(find_model(file, options.member), file, options)


def check_decoder(name: str) -> None:
    """Raise `click.BadParameter` for a decoder that there is not; an empty name is right."""
    if name and name not in (*DECODERS, FEATURES):
        near = difflib.get_close_matches(name, DECODERS, 1) or DECODERS
        raise click.BadParameter(f"{name!r}: expected {', '.join(near)}", param_hint="--decoder")


def import_found(found: FoundModel, file: Path, options: ModelImportOptions) -> None:
    """Write a model that was found in a file, with its manifest; ask what it does not say.

    Raises:
        ModelError: it cannot run here, something is not known, or a file is there already.
    """
    labels = read_labels(options.labels) if options.labels else ()
    path = options.to / f"{options.name or found.name}{SUFFIXES[0]}"
    if path.exists() and path.samefile(file):
        raise ModelError(
            f"{file}: is where the result would be written: give --to or --name; "
            "`vedette models inspect --write-manifest` writes a manifest beside it"
        )
    check_free(path, force=options.force)

    def prepared(pixels: str) -> ImportedModel:
        given: dict[str, Any] = {"labels": labels, "decoder": options.decoder, "pixels": pixels}
        return without_root(
            lambda: _open(prepare_import(found, path, **given)), ImportedModel, model_bytes=2 * len(found.content)
        )

    with _naming(file, path):
        model = _hinted(lambda: prepared(options.pixels or ""), labels)
        if ("input", "mean") in model.draft.missing or ("input", "std") in model.draft.missing:
            model = prepared(_asked_pixels(path))
    write_import(model, force=options.force)
    print_json(_report(model)) if options.as_json else _print(model)
    if ("output", "labels") in model.draft.missing:
        click.echo(
            f"vedette: {plain(str(path))}: has no labels: classes are numbers until --labels names some", err=True
        )


@contextmanager
def _naming(file: Path, path: Path) -> Iterator[None]:
    """Name the file that was given in errors, in place of the one that is not written."""
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).replace(str(path), str(file))) from error


def _hinted(prepare: Callable[[], ImportedModel], labels: tuple[str, ...]) -> ImportedModel:
    """Say in an error about unknown outputs which options tell them."""
    try:
        return prepare()
    except ModelError as error:
        told = str(error)
        if "cannot guess how to decode" not in told:
            raise
        options = "--decoder tells how" if labels else "--labels FILE names them, and --decoder tells how"
        raise ModelError(f"{told}; {options}") from error


def _open(model: ImportedModel) -> ImportedModel:
    """Check that the manifest as it will be written can be used, and that a stream could run the model."""
    if not model.draft.missing or all(table == "output" for table, _ in model.draft.missing):
        with held(str(model.path), model.content, written_file(model)):
            _check_runs(open_whole_model(str(model.path)))
    return model


def _check_runs(model: Model) -> None:
    manifest = model.manifest
    if manifest.output.decoder == "keyword" and manifest.audio is None:
        raise ModelError(f"{model.path}: takes pictures, and decoder 'keyword' is of sound")
    options = SessionOptions(variant=manifest.variants[0].name, threads=1)
    with closing(open_session(model, "cpu", options)) as session:
        if manifest.output.decoder != FEATURES:
            check_decoder_fits(session, model)
        elif manifest.audio is None:
            ImageInput(session.inputs[0], manifest.input)


def _is_asked() -> bool:
    """Return True if somebody can answer."""
    return sys.stdin.isatty()


def _asked_pixels(path: Path) -> str:
    """Ask what pixels a float model takes; where nobody can answer, say how to tell."""
    if not _is_asked():
        known = "; ".join(f"{name}: {text}" for name, text in _MEANINGS.items())
        raise ModelError(f"{path.name}: is float, and does not say what pixels it takes: give --pixels: {known}")
    click.echo(f"{plain(path.name)} is float, and does not say what pixels it was trained with:", err=True)
    for name, text in _MEANINGS.items():
        click.echo(f"  {name:9} {text}", err=True)
    answer: str = click.prompt("pixels", type=click.Choice(list(PIXELS)), err=True)
    return answer


def _report(model: ImportedModel) -> dict[str, Any]:
    sources = {".".join(map(str, keys)): text for keys, text in model.draft.sources.items()}
    return {
        "file": str(model.path),
        "sha256": model.draft.sha256,
        "manifest": msgspec.to_builtins(model.draft.manifest),
        "sources": sources,
        "missing": [".".join(keys) for keys in model.draft.missing],
        "remarks": list(model.remarks),
    }


def _print(model: ImportedModel) -> None:
    manifest, sources = model.draft.manifest, model.draft.sources
    table = open_table("key", "value", "from")
    for keys, value in _rows(model):
        table.add_row(".".join(keys), plain(value), plain(sources.get(keys, _stated(model, keys))))
    console(_WIDTH, markup=False).print(table)
    for remark in model.remarks:
        click.echo(plain(remark))
    path = plain(str(model.path))
    what = "SOUND.wav" if manifest.audio else "PICTURE.jpg"
    following = f"vedette models try {path} {what}"
    if manifest.is_embedding:
        following = f'model = "{path}" for a stream, then vedette teach STREAM NAME --states WORD,WORD'
    elif manifest.output.decoder == FEATURES:
        following = f"vedette optimise anomaly {path} OUT.tflite --data SOUND_PARTS"
    click.echo(f"{path}: written, with {model.path.stem}.toml beside it; next: {following}")


def _stated(model: ImportedModel, keys: tuple[str, ...]) -> str:
    table: Any = model.stated
    for key in keys:
        table = table.get(key, {}) if isinstance(table, dict) else {}
    return "given" if table else "default"


def _rows(model: ImportedModel) -> list[tuple[tuple[str, ...], str]]:
    manifest = model.draft.manifest
    labels = manifest.output.labels
    shown = ", ".join(label[:_LONGEST] for label in labels[:6]) + (
        f" … ({len(labels)})" if len(labels) > 6 else ""
    )
    rows: list[tuple[tuple[str, ...], str]] = [
        (("output", "decoder"), manifest.output.decoder),
        (("output", "labels"), shown or "none"),
        (("output", "score_threshold"), f"{manifest.output.score_threshold:g}"),
    ]
    if manifest.audio is None:
        picture = manifest.input
        rows += [
            (("input", "order"), picture.order),
            (("input", "resize"), picture.resize),
            (("input", "mean"), ", ".join(f"{one:g}" for one in picture.mean)),
            (("input", "std"), ", ".join(f"{one:g}" for one in picture.std)),
        ]
        return rows
    audio = manifest.audio
    options = ", ".join(f"{key} = {value}" for key, value in audio.options.items())
    found = {"rate_hz": audio.rate_hz, "frontend": audio.frontend, "every_s": audio.every_s, "options": options}
    return [*rows, *((("audio", key), str(value)) for key, value in found.items())]
