"""Take a model out of what tools hand over: a bare file, or an archive with labels beside it.

Content is untrusted: no name in an archive is used as a path, and nothing is unpacked to disk.
Source of the archives' layouts: Teachable Machine's export (model.tflite, model_unquant.tflite, labels.txt),
Ultralytics' folders of several precisions, and Edge Impulse's files, which end in .lite.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from msgspec import Struct

from agent.compute.decode.metadata import entries_of
from agent.compute.manifest import check_manifest, read_manifest
from agent.compute.tflite.read import read_modelfile
from agent.config.toml import TomlFile, to_toml
from agent.errors import ModelError
from agent.models.files import held, load_file, read, read_text
from agent.models.writer import Draft, draft, manifest_text
from agent.storage.files import write_together
from agent.text import plain, plural

SUFFIXES = (".tflite", ".lite")
PIXELS: dict[str, tuple[list[float], list[float]]] = {
    "signed": ([127.5] * 3, [127.5] * 3),
    "unit": ([0.0] * 3, [255.0] * 3),
    "raw": ([0.0] * 3, [1.0] * 3),
    "imagenet": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
}
"""`mean` and `std` by what the training took: pixels in -1..1, 0..1 or 0..255, or normalised as for ImageNet."""
_TEACHABLE = "Teachable Machine"
_LABELS = ("labels.txt", "label.txt", "labelmap.txt", "classes.txt", "class_names.txt")
_LARGEST, _LARGEST_TEXT = 256 * 1024**2, 1024**2
"""Most bytes of a model, also of all that an archive packed by gzip unpacks to, and of labels in one."""
_GZIP = 31
"""`wbits` of zlib for gzip."""
ARCHIVES = (".zip", ".whl", ".tgz", ".tar.gz")
_START, _PART, _MAGIC = 64, 1024**2, b"TFL3"
_LONGEST_STEM = 100
_MOST = 10_000
"""Most files in an archive."""
_NUMBERED = re.compile(r"(\d{1,9})[\s:,]+(\S.*)")
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
)


class _Packed(NamedTuple):
    """A file in an archive, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _files_in(content: bytes, path: Path) -> list[_Packed]:
    """List the files of an archive, without folders and links."""
    if path.suffix.lower() in (".zip", ".whl"):
        if (count := entries_of(content)) > _MOST:
            raise ModelError(f"{path}: has {count} files: expected at most {_MOST}")
        packed = zipfile.ZipFile(io.BytesIO(content))
        infos = [one for one in packed.infolist() if not one.is_dir()]
        return [_Packed(one.filename, one.file_size, partial(packed.open, one)) for one in infos]
    unpacker = zlib.decompressobj(wbits=_GZIP)
    unpacked = io.BytesIO(unpacker.decompress(content, _LARGEST))
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError(f"it ends early, or unpacks to more than {_LARGEST / 1e6:.0f} MB")
    archive = tarfile.TarFile(fileobj=unpacked)
    members = list(itertools.islice(archive, _MOST + 1))
    if len(members) > _MOST:
        raise ModelError(f"{path}: has more than {_MOST} files")
    return [_Packed(one.name, one.size, partial(archive.extractfile, one)) for one in members if one.isreg()]


class FoundModel(Struct, frozen=True):
    """A model as it was handed over.

    Attributes:
        content: of the `.tflite`.
        name: stem of the file, fit for a file name.
        labels: that lay beside it.
        stated: keys of the manifest beside it.
        origin: tool that made it; empty: not known.
        remarks: what was decided, for people.
    """

    content: bytes
    name: str
    labels: tuple[str, ...] = ()
    stated: dict[str, Any] = {}
    origin: str = ""
    remarks: tuple[str, ...] = ()


class ImportedModel(Struct, frozen=True):
    """A model with its manifest, ready to be written.

    Attributes:
        content: of the `.tflite`.
        path: where it will lie.
        stated: keys that are known from elsewhere than the file.
        draft: of the manifest.
        remarks: what was decided, for people.
    """

    content: bytes
    path: Path
    stated: dict[str, Any]
    draft: Draft
    remarks: tuple[str, ...] = ()


def find_model(path: Path, member: str = "") -> FoundModel:
    """Read a model out of a file or an archive.

    Args:
        path: a `.tflite`, a `.lite`, or an archive with one in it: a `.zip`, a wheel, or a `.tgz`.
        member: name in the archive, where it has several models; its end is enough.

    Raises:
        ModelError: there is no model, there are several, or the archive is damaged or too large.
    """
    if path.suffix.lower() in SUFFIXES:
        if member:
            raise ModelError(f"{path}: is no archive, and --member names a file in one")
        return _beside_manifest(path)
    if not path.name.lower().endswith(ARCHIVES):
        raise ModelError(f"{path}: expected a .tflite, a .lite, or a {', '.join(ARCHIVES)} with one in it")
    content = read(path, _LARGEST)
    try:
        return _in_archive(_files_in(content, path), path, member)
    except _BROKEN as error:
        raise ModelError(f"{path}: cannot be read as an archive: {error}") from None


def _beside_manifest(path: Path) -> FoundModel:
    content, name = _model(read(path), str(path)), stem_of(path.name)
    own = [path.with_suffix(suffix) for suffix in (".toml", ".json") if path.with_suffix(suffix).is_file()]
    if not own:
        return FoundModel(content, name)
    if path.suffix != SUFFIXES[0]:
        told = f"{plain(own[0].name)} beside it is not used: it would be the manifest of {name}{SUFFIXES[0]}"
        return FoundModel(content, name, remarks=(told,))
    try:
        manifest = load_file(path if own[0].suffix == ".toml" else own[0])[1]
    except ModelError as error:
        if own[0].suffix == ".toml":
            raise
        return FoundModel(content, name, remarks=(f"{plain(str(error))}: not used",))  # of another tool
    files = ("file", "sha256", "golden")  # golden files are not copied
    stated = {} if manifest is None else {key: value for key, value in manifest.data.items() if key not in files}
    return FoundModel(content, name, stated=stated, remarks=(f"keys of {plain(own[0].name)} beside it",))


def _in_archive(packed: list[_Packed], path: Path, member: str) -> FoundModel:
    files = [one for one in packed if not one.name.startswith("__MACOSX/")]
    models = [one for one in files if one.name.lower().endswith(SUFFIXES)]
    chosen = [one for one in models if one.name.endswith(member)] if member else models
    if len(chosen) != 1:
        raise ModelError(f"{path}: {_told(models, chosen, member)}")
    (file,) = chosen
    inner, place = PurePosixPath(file.name), f"{path}: {plain(file.name)}"
    content = _model(_read(file, _LARGEST, place), place)
    remarks = [f"{plain(file.name)} out of the archive"]
    labels, numbered = tuple[str, ...](), False
    if listed := _labels_beside(files, inner):
        labels, numbered = _labels(_read(listed, _LARGEST_TEXT, str(path)), str(path))
        named = plain(listed.name)
        remarks += [f"{plural(len(labels), 'label')} from {named}" if labels else f"{named} is empty: no labels"]
    teachable = numbered and inner.name in ("model.tflite", "model_unquant.tflite")
    stem, origin = (path.name, _TEACHABLE) if teachable else (inner.name, "")
    return FoundModel(content, stem_of(stem), labels, origin=origin, remarks=tuple(remarks))


def _told(models: list[_Packed], chosen: list[_Packed], member: str) -> str:
    """Say why not exactly one model was chosen."""
    if not models:
        return "no .tflite in it; models of other kinds (.onnx, .pt, .h5, saved_model) have to be converted first"
    names = ", ".join(f"{plain(one.name)} ({one.size / 1e6:.1f} MB)" for one in models[:8])
    if len({one.name for one in chosen}) < len(chosen):
        return f"has {len(chosen)} files called {plain(chosen[0].name)}: pack it again with one"
    if member:
        return f"--member {plain(member)} fits {len(chosen)} of its models: {names}"
    return f"has {len(models)} models: name one by --member: {names}"


def _read(file: _Packed, largest: int, place: str) -> bytes:
    if file.size > largest:
        raise ModelError(f"{place}: {file.size / 1e6:.0f} MB: expected at most {largest / 1e6:.0f}")
    stream = file.open()
    assert stream is not None  # it is regular
    with stream:
        content = io.BytesIO(stream.read(_START))
        if largest == _LARGEST and content.getvalue()[4:8] != _MAGIC:  # what is no model need not be unpacked
            return content.getvalue()
        content.seek(0, io.SEEK_END)
        while part := stream.read(_PART):
            if content.tell() + len(part) > file.size:
                raise ModelError(f"{place}: is larger than the archive says")
            content.write(part)
    return content.getvalue()


def _model(content: bytes, place: str) -> bytes:
    if content[4:8] != _MAGIC:
        kind = (
            "an HTML page"
            if content.lstrip()[:1] == b"<"
            else "a Git LFS pointer"
            if content[:8] == b"version "
            else ""
        )
        raise ModelError(f"{place}: is no TFLite model{f', but {kind}: fetch the file itself' if kind else ''}")
    return content


def stem_of(name: str) -> str:
    """Return the stem of a name, with nothing that a shell or a topic would mind."""
    return _NAME.sub("-", PurePosixPath(name).stem)[:_LONGEST_STEM].strip("-.") or "model"


def _labels_beside(files: list[_Packed], model: PurePosixPath) -> _Packed | None:
    """Return the list of labels that lies nearest to a model in its archive."""
    found = [one for one in files if PurePosixPath(one.name).name.lower() in _LABELS]
    near = [one for one in found if PurePosixPath(one.name).parent == model.parent]
    return next(iter(near or (found if len(found) == 1 else [])), None)


def _labels(content: bytes, place: str) -> tuple[tuple[str, ...], bool]:
    """Return labels, a line each, and if they were numbered from 0 on."""
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ModelError(f"{place}: its labels are not UTF-8, at byte {error.start}") from None
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if odd := [number for number, line in enumerate(lines, 1) if line and not line.isprintable()]:
        raise ModelError(f"{place}: label {odd[0]} has a character that cannot be printed")
    lines = [line or "???" for line in lines]
    numbers = [int(one[1]) for one in found if one]
    if lines and numbers == list(range(len(lines))):
        return tuple(one[2] for one in found if one), True
    return tuple(lines), False


def read_labels(path: Path) -> tuple[str, ...]:
    """Read labels, a line each; numbers in front of them are left out, if they count from 0.

    Raises:
        ModelError: the file cannot be read, or is empty.
    """
    labels = _labels(read_text(path).encode(), str(path))[0]
    if not labels:
        raise ModelError(f"{path}: no labels in it")
    return labels


def prepare_import(
    found: FoundModel,
    path: Path,
    *,
    labels: tuple[str, ...] = (),
    decoder: str = "",
    pixels: str = "",
) -> ImportedModel:
    """Complete the manifest of a model that is not on disk yet. Parses untrusted content.

    Args:
        found: the model.
        path: where it will lie.
        labels: of the classes; empty: those beside the model or in it.
        decoder: of its outputs; empty: guessed.
        pixels: key of `PIXELS`; empty: from the file, or by its origin.

    Raises:
        ModelError: it is damaged, cannot run here, or its outputs cannot be decoded.
    """
    pixels = pixels or ("signed" if found.origin == _TEACHABLE and _takes_floats(found.content) else "")
    stated = copy.deepcopy(found.stated)
    if labels or found.labels:
        stated.setdefault("output", {})["labels"] = list(labels or found.labels)
    if decoder:
        stated.setdefault("output", {})["decoder"] = decoder
    if pixels:
        mean, std = PIXELS[pixels]
        stated.setdefault("input", {}).update(mean=mean, std=std)
    if found.origin:
        stated["source"] = found.origin
    with held(str(path), found.content, _checked(stated, path)):
        known = draft(str(path))
    decided = (f"pixels are {pixels}, as {found.origin} has them",) if pixels and found.origin else ()
    return ImportedModel(found.content, path, stated, known, (*found.remarks, *decided))


def _takes_floats(content: bytes) -> bool:
    inputs = read_modelfile(content).ends("")[0]
    return bool(inputs) and not inputs[0].quantised


def _checked(stated: dict[str, Any], path: Path) -> TomlFile | None:
    """Return keys as those of a manifest file; None: there are none."""
    if not stated:
        return None
    file = read_manifest(to_toml(stated, {}), str(path.with_suffix(".toml")))
    check_manifest(file)
    return file


def _text(model: ImportedModel) -> str:
    return manifest_text(model.draft, model.path.name, model.stated)


def written_file(model: ImportedModel) -> TomlFile:
    """Return the manifest of an imported model as it will be written.

    Raises:
        ModelError: what was found in the model file makes no manifest.
    """
    file = read_manifest(_text(model), str(model.path.with_suffix(".toml")))
    check_manifest(file)
    return file


def write_import(model: ImportedModel, *, force: bool = False) -> None:
    """Write a model and its manifest: both, or none.

    Raises:
        ModelError: a file is there already. StorageError: a file cannot be written.
    """
    manifest = model.path.with_suffix(".toml")
    check_free(model.path, force=force)
    write_together({manifest: _text(model).encode(), model.path: model.content})


def check_free(path: Path, *, force: bool = False) -> None:
    """Check that a model and its manifest may be written.

    Raises:
        ModelError: there is no such folder, or a file is there already.
    """
    if not path.parent.is_dir():
        raise ModelError(f"{path.parent}: there is no such folder: make it first")
    for file in (path, path.with_suffix(".toml")):
        if os.path.lexists(file) and not force:
            raise ModelError(f"{file}: exists; --force replaces it, --name gives the model another name")
