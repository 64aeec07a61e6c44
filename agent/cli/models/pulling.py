"""`vedette models pull`: fetch a model of the catalogue or of a URL, and import it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.models.importing import ModelImportOptions, import_found
from agent.cli.optimise.progress import show_progress
from agent.cli.output import console, open_table, print_json
from agent.errors import ModelError, VedetteError
from agent.models.fetch import (
    CatalogueModel,
    check_file,
    fetch,
    file_name_of,
    find_in_catalogue,
    shown,
    with_task,
)
from agent.models.importer import ARCHIVES, SUFFIXES, FoundModel, check_free, find_model, read_labels, stem_of
from agent.storage.files import remove
from agent.text import plain

_WIDTH = 140


class PullOptions(Struct, frozen=True):
    """Options of `vedette models pull`.

    Attributes:
        sha256: of the file at a URL; None: not given.
        mirror: folder, or URL of one, that has the files in place of the servers of the catalogue; empty: none.
        imports: how what was fetched is imported.
    """

    sha256: str | None = None
    mirror: str = ""
    imports: ModelImportOptions = ModelImportOptions()


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
    console(_WIDTH, markup=False).print(table)


def _what(one: CatalogueModel) -> str:
    return f"{one.description}; as INT8: bundled `{one.int8}`" if one.int8 else one.description


def pull(name: str, options: PullOptions) -> None:
    """Fetch a model and write it with its manifest.

    What was fetched stays in the target folder until the model is written, so that nothing is fetched twice.

    Args:
        name: of the catalogue, or a URL.
        options: see there.

    Raises:
        ModelError: there is no such model, it cannot be fetched, is another file, or cannot be used.
        StorageError: a file cannot be written.
    """
    wanted = _wanted(name, options)
    imports = options.imports if wanted.entry is None else _of_entry(wanted.entry, options.imports)
    _check_target(wanted, imports)
    kept = imports.to / f".pull-{wanted.sha256[:12]}{wanted.suffix}"
    source = _mirrored(wanted, options.mirror)
    path = source if isinstance(source, Path) else kept
    reached = isinstance(source, Path) or _fetch(source, path, wanted)
    try:
        import_found(_found(path, wanted, imports, reached=reached), path, imports)
    except VedetteError as error:
        told = str(error).replace(str(path), shown(wanted.url))
        if path == kept:
            told += f"; what was fetched stays in {kept} for the next call"
        raise ModelError(told) from error
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


def _wanted(name: str, options: PullOptions) -> _Wanted:
    if "://" not in name:
        if options.sha256 is not None:
            raise ModelError(f"{plain(name)}: --sha256 is for a URL; the catalogue has those of its models")
        entry = find_in_catalogue(name)
        return _Wanted(entry.url, entry.sha256, entry.fetched_bytes, entry)
    file = file_name_of(name)
    if not file.lower().endswith((*SUFFIXES, *ARCHIVES)):
        expected = ", ".join((*SUFFIXES, *ARCHIVES))
        raise ModelError(f"{shown(name)}: expected a URL that ends in {expected}")
    if options.sha256 is None:
        raise ModelError(
            f"{shown(name)}: give --sha256, which its maker states, or `sha256sum` tells of a copy that you trust"
        )
    return _Wanted(name, options.sha256.lower())


def _of_entry(entry: CatalogueModel, given: ModelImportOptions) -> ModelImportOptions:
    if given.member:
        raise ModelError(f"{entry.name}: the catalogue says which file it is; --member is for a URL")
    return replace(
        given,
        name=given.name or entry.name,
        member=entry.member,
        decoder=given.decoder or entry.decoder,
    )


def _mirrored(wanted: _Wanted, mirror: str) -> str | Path:
    """Return where the file is: a URL, or a path in a folder that is the mirror."""
    name = file_name_of(wanted.url)
    if "://" in mirror:
        if "?" in mirror or "#" in mirror:
            raise ModelError(f"{shown(mirror)}: expected the address of a folder, without ? and #")
        return f"{mirror.rstrip('/')}/{quote(name)}"
    if not mirror:
        return wanted.url
    if not Path(mirror).is_dir():
        raise ModelError(f"{plain(mirror)}: there is no such folder")
    path = Path(mirror) / name
    if not path.is_file():
        raise ModelError(f"{mirror}: has no {plain(name)}: copy it from {shown(wanted.url)}")
    check_file(path, wanted.sha256)
    return path


def _fetch(url: str, path: Path, wanted: _Wanted) -> bool:
    """Fetch a file; return False if an earlier call had fetched all of it, and no server was asked."""
    name = plain(file_name_of(url))

    def progress(there: int, total: int) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        show_progress(f"fetching {name}: {there / 1e6:.1f}{of} MB")

    try:
        reached = fetch(url, path, wanted.sha256, size=wanted.size, progress=progress)
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
