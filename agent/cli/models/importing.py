"""`vedette models import` and `pull`: write a model of a file, of the catalogue or of a URL."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.models.inspection import check_decoder_fits, value_at
from agent.cli.output import console, open_table, print_json, show_progress
from agent.compute.decode import DECODERS
from agent.compute.infer.backends import open_session
from agent.compute.infer.image_input import ImageInput
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.unprivileged import without_root
from agent.compute.manifest import FEATURES, Model
from agent.errors import ModelError, VedetteError
from agent.models.fetch import (
    CatalogueModel,
    fetch,
    file_name_of,
    find_in_catalogue,
    shown,
    with_task,
)
from agent.models.files import held
from agent.models.importer import (
    ARCHIVES,
    SUFFIXES,
    FoundModel,
    ImportedModel,
    check_free,
    find_model,
    prepare_import,
    read_labels,
    stem_of,
    write_import,
    written_file,
)
from agent.models.library import open_whole_model
from agent.storage.files import remove
from agent.text import plain

_WIDTH = 100
_MEANINGS = {
    "signed": "-1..1 (TensorFlow, MediaPipe, Teachable Machine)",
    "unit": "0..1 (Ultralytics, Edge Impulse)",
    "raw": "0..255 (EfficientNet of Keras)",
    "imagenet": "normalised by ImageNet's mean and deviation (PyTorch)",
}


class ModelImportOptions(Struct, frozen=True):
    """Options of `vedette models import`, see its help."""

    to: Path = Path()
    name: str = ""
    member: str = ""
    labels: Path | None = None
    decoder: str = ""
    pixels: str | None = None
    force: bool = False
    as_json: bool = False


def import_and_write(file: Path, options: ModelImportOptions) -> None:
    """Import a model and write it with its manifest.

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
    """Write a model that was found in a file, with its manifest.

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
        model = prepared(options.pixels or "")
        if ("input", "mean") in model.draft.missing or ("input", "std") in model.draft.missing:
            known = "; ".join(f"{name}: {text}" for name, text in _MEANINGS.items())
            raise ModelError(
                f"{path.name}: is float, and does not say what pixels it takes: give --pixels: {known}"
            )
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
    manifest = model.draft.manifest
    table = open_table("key", "value", "from")
    for keys, source in model.draft.sources.items():
        path = ".".join(map(str, keys))
        table.add_row(path, plain(value_at(manifest, path)), plain(source))
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


_CATALOGUE_WIDTH = 140


class _Wanted(Struct, frozen=True):
    """File to fetch.

    Attributes:
        url: of the file.
        sha256: of it.
        size: of it, bytes; 0: not known.
        entry: of the catalogue; None: it is not in there.
    """

    url: str
    sha256: str
    size: int = 0
    entry: CatalogueModel | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the file, such as `.tgz`."""
        name = file_name_of(self.url).lower()
        return next(one for one in (*SUFFIXES, *ARCHIVES) if name.endswith(one))

    @property
    def is_archive(self) -> bool:
        """True if the model lies in an archive."""
        return self.suffix in ARCHIVES


def list_catalogue(task: str, *, as_json: bool) -> None:
    """Print the models that can be fetched. Raises ModelError if there is no such task."""
    found = with_task(task)
    if as_json:
        print_json(found, indent=2)
        return
    table = open_table(
        "model", "task", "of what", "MB", "fetched", "licence", "accuracy", right=("MB", "fetched")
    )
    for one in found:
        own, fetched = f"{one.bytes / 1e6:.1f}", f"{one.fetched_bytes / 1e6:.1f}"
        table.add_row(one.name, one.task, _what(one), own, fetched, one.licence, one.accuracy)
    console(_CATALOGUE_WIDTH, markup=False).print(table)


def _what(one: CatalogueModel) -> str:
    return f"{one.description}; as INT8: bundled `{one.int8}`" if one.int8 else one.description


def pull(name: str, sha256: str | None, options: ModelImportOptions) -> None:
    """Fetch a model and write it with its manifest.

    What was fetched stays in the target folder until the model is written, so that nothing is fetched twice.

    Args:
        name: of the catalogue, or a URL.
        sha256: of the file at a URL; None: not given.
        options: how what was fetched is imported.

    Raises:
        ModelError: there is no such model, it cannot be fetched, is another file, or cannot be used.
        StorageError: a file cannot be written.
    """
    wanted = _wanted(name, sha256)
    imports = options if wanted.entry is None else _of_entry(wanted.entry, options)
    _check_target(wanted, imports)
    kept = imports.to / f".pull-{wanted.sha256[:12]}{wanted.suffix}"
    reached = _fetch(wanted, kept)
    try:
        import_found(_found(kept, wanted, imports, reached=reached), kept, imports)
    except VedetteError as error:
        told = str(error).replace(str(kept), shown(wanted.url))
        raise ModelError(f"{told}; what was fetched stays in {kept} for the next call") from error
    remove(kept)


def _check_target(wanted: _Wanted, imports: ModelImportOptions) -> None:
    """Check, before anything is fetched, that the result may be written."""
    if not imports.to.is_dir():
        raise ModelError(f"{imports.to}: there is no such folder: make it first")
    if imports.labels:
        read_labels(imports.labels)
    name = imports.name or ("" if wanted.is_archive else stem_of(file_name_of(wanted.url)))
    if name:
        check_free(imports.to / f"{name}{SUFFIXES[0]}", force=imports.force)


def _wanted(name: str, sha256: str | None) -> _Wanted:
    if "://" not in name:
        if sha256 is not None:
            raise ModelError(f"{plain(name)}: --sha256 is for a URL; the catalogue has those of its models")
        entry = find_in_catalogue(name)
        return _Wanted(entry.url, entry.sha256, entry.fetched_bytes, entry)
    file = file_name_of(name)
    if not file.lower().endswith((*SUFFIXES, *ARCHIVES)):
        expected = ", ".join((*SUFFIXES, *ARCHIVES))
        raise ModelError(f"{shown(name)}: expected a URL that ends in {expected}")
    if sha256 is None:
        raise ModelError(
            f"{shown(name)}: give --sha256, which its maker states, or `sha256sum` tells of a copy that you trust"
        )
    return _Wanted(name, sha256.lower())


def _of_entry(entry: CatalogueModel, given: ModelImportOptions) -> ModelImportOptions:
    if given.member:
        raise ModelError(f"{entry.name}: the catalogue says which file it is; --member is for a URL")
    return replace(
        given,
        name=given.name or entry.name,
        member=entry.member,
        decoder=given.decoder or entry.decoder,
    )


def _fetch(wanted: _Wanted, path: Path) -> bool:
    """Fetch a file; return False if an earlier call had fetched all of it, and no server was asked."""
    name = plain(file_name_of(wanted.url))

    def progress(there: int, total: int) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        show_progress(f"fetching {name}: {there / 1e6:.1f}{of} MB")

    try:
        reached = fetch(wanted.url, path, wanted.sha256, size=wanted.size, progress=progress)
    except KeyboardInterrupt:
        show_progress("")
        click.echo("not finished: the same command goes on", err=True)
        raise
    finally:
        show_progress("")
    how = "fetched" if reached else "taken from what an earlier pull fetched"
    click.echo(f"{name}: {how}, sha256 {wanted.sha256}", err=True)
    return reached


def _found(path: Path, wanted: _Wanted, imports: ModelImportOptions, *, reached: bool) -> FoundModel:
    """Return the model in what was fetched; its manifest says where it is from, as far as that is known."""
    found = find_model(path, imports.member)
    known = reached or wanted.entry is not None  # the catalogue says which address has this sha256
    stated = {**found.stated, **({"source": shown(wanted.url)} if known else {})}
    if wanted.entry is None:
        name = found.name if wanted.is_archive else stem_of(file_name_of(wanted.url))
        return replace(found, name=name, stated=stated)
    entry = wanted.entry
    stated |= {"licence": entry.licence, "description": f"{entry.description}; {entry.about}"}
    return replace(found, stated=stated, labels=found.labels or entry.labels)
