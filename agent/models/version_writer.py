"""Write a new model, or a new version of one, with its manifest and a report: all of these files, or none."""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.compute.manifest import check_manifest, read_manifest
from agent.compute.tflite.read import read_modelfile
from agent.config.toml import TomlFile
from agent.errors import ModelError
from agent.models.files import load_file, model_path, read, read_text
from agent.models.manifest_writer import files_of, missing_files
from agent.storage.files import make_folder, refuse_special, write_together

_MANIFEST, _REPORT = ".toml", ".report.json"
_FLOAT, _BITS = ", float", {"int8": 8, "int4": 4}
_OF_MANIFESTS = {"file", "name", "sha256", "input", "output", "audio"}
"""Keys, one of which every manifest has."""


def check_first(
    out: Path, *, force: bool = False, inputs: Iterable[Path | None] = (), others: Iterable[str] = ()
) -> None:
    """Check that a new model, its manifest and a report may be written, before the work that makes it.

    Args:
        out: the `.tflite` file to write.
        force: files may be replaced, but no input.
        inputs: files and folders that are read; None is left out.
        others: suffixes of more files that are written beside it.

    Raises:
        ModelError: there is no such folder, a file is there already, or would replace an input.
        StorageError: the folder cannot be written.
    """
    if not out.parent.is_dir():
        raise ModelError(f"{out}: there is no folder {out.parent}: make it first")
    files = [out, *(out.with_suffix(suffix) for suffix in (_MANIFEST, _REPORT, *others))]
    refuse_inputs(files, inputs)
    _check_free(files, force=force)
    _check_manifest_there(out.with_suffix(_MANIFEST))
    make_folder(out.parent)


def refuse_inputs(files: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Check that no file or folder that will be written is one that is read.

    Args:
        files: files and folders to write.
        inputs: files and folders that are read; None is left out.

    Raises:
        ModelError: one is, also by another name.
    """
    read_too = [path for path in inputs if path is not None]
    for file in files:
        for path in read_too:
            if _is_same(file, path):
                raise ModelError(
                    f"{file}: would replace {path}, which is read: choose another name for the result"
                )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):  # one is missing, or links lead to each other
        return False


def _check_free(files: Iterable[Path], *, force: bool) -> None:
    for file in files:
        if file.exists() and not force:
            raise ModelError(f"{file}: exists; --force replaces it")
        refuse_special(file, ModelError)


def _check_manifest_there(path: Path) -> None:
    """Check that what a manifest will replace is one, and no recipe or configuration. Raises ModelError."""
    with suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        if found and not found.keys() & _OF_MANIFESTS:
            raise ModelError(
                f"{path}: would be replaced by the manifest of the result, and is none, since it has "
                f"{', '.join(sorted(found))} only: choose another name for the result"
            )


def write_first(
    out: Path,
    content: bytes,
    keys: Mapping[str, Any],
    report: Mapping[str, Any],
    *,
    force: bool = False,
    others: Mapping[str, bytes] | None = None,
) -> None:
    """Write a new model, its manifest, and a report, `OUT.report.json`: all, or none.

    Args:
        out: the `.tflite` file; the manifest lies beside it with the suffix `.toml`.
        content: of the file.
        keys: of the manifest, but for `file` and `sha256`.
        report: what was done, as JSON.
        force: files may be replaced.
        others: contents of more files beside it, by suffix.

    Raises:
        ModelError: the manifest would not be valid, or a file is there by now.
        StorageError: a file cannot be written.
    """
    import tomli_w

    data = {"file": out.name, "sha256": hashlib.sha256(content).hexdigest(), **keys}
    text = tomli_w.dumps(data)
    check_manifest(read_manifest(text, str(out.with_suffix(_MANIFEST))))
    files = {_MANIFEST: text.encode(), _REPORT: _json(report), **(others or {})}
    _write_set(out, files, content, force=force)


def _json(report: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report))


def _write_set(
    out: Path, beside_it: Mapping[str, bytes], content: bytes, copies: Iterable[Path] = (), *, force: bool
) -> None:
    """Write a model last: until then its new manifest, which has its hash, fits no model."""
    files = {out.with_suffix(suffix): data for suffix, data in beside_it.items()}
    _check_free([*files, out], force=force)
    write_together({out.parent / file.name: read(file) for file in copies} | files | {out: content})


def check_version(
    name_or_path: str,
    out: Path,
    *,
    force: bool = False,
    inputs: Iterable[Path | None] = (),
    others: Iterable[str] = (),
) -> None:
    """Check that a new version of a model may be written, before the work that makes it.

    Args:
        name_or_path: the model. It and the files that its manifest names are inputs.
        out: the `.tflite` file to write, as in `write_version`.
        force: files may be replaced, but no input.
        inputs: more files and folders that are read; None is left out.
        others: suffixes of more files that are written beside it.

    Raises:
        ModelError: there is no such model or folder, a file that its manifest names is missing, or a file is
            there already or would replace an input.
        StorageError: the folder cannot be written.
    """
    stated = load_file(name_or_path)[1]
    own = list(_files(stated)) if stated else []
    copies = [out.parent / file.name for file in own]
    read_too = [model_path(name_or_path), *([Path(stated.path)] if stated else []), *own, *copies]
    check_first(out, force=force, inputs=[*read_too, *inputs], others=others)
    manifest = out.with_suffix(_MANIFEST)
    if stated is None and manifest.exists():
        raise ModelError(
            f"{manifest}: would be the manifest of {out.name}; {name_or_path} has none: move it away"
        )
    for file in missing_files(own, out.parent):
        if not file.is_file():
            raise ModelError(f"{file}: no such file, and the manifest of {name_or_path} names it")


def write_version(
    name_or_path: str,
    out: Path,
    content: bytes,
    report: Mapping[str, Any],
    *,
    force: bool = False,
    others: Mapping[str, bytes] | None = None,
    keys: Mapping[str, Any] | None = None,
) -> None:
    """Write a new version of a model, its manifest if it has one, and a report, `OUT.report.json`: all, or none.

    The labels and golden files that the manifest names are copied beside it. A description that ends in `, float`
    names the numbers of a quantised file instead.

    Args:
        name_or_path: the model.
        out: the new `.tflite` file; the manifest lies beside it with the suffix `.toml`.
        content: of the new file.
        report: what was done, as JSON.
        force: files may be replaced.
        others: contents of more files beside it, by suffix.
        keys: of the manifest, which replace those of the model's; the new version then always has one.

    Raises:
        ModelError: the manifest would not be valid, the files that it names cannot be read, different ones are
            there, or a file is there by now.
        StorageError: a file cannot be written.
    """
    import tomli_w

    stated = load_file(name_or_path)[1]
    files, copies = {_REPORT: _json(report), **(others or {})}, []
    if stated is not None or keys:
        copies = list(missing_files(list(_files(stated)), out.parent)) if stated else []
        own = {"file": out.name, "sha256": hashlib.sha256(content).hexdigest()}
        data = _merged(_document(stated) if stated else {}, {**(keys or {}), **own})
        if isinstance(described := data.get("description"), str):
            data["description"] = describe_numbers(described, _weight_bits(content))
        files = {_MANIFEST: tomli_w.dumps(data).encode(), **files}
    _write_set(out, files, content, copies, force=force)


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys with changes; of tables, key by key."""
    found = dict(data)
    for key, value in changes.items():
        before = found.get(key)
        found[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def describe_numbers(description: str, bits: Collection[int]) -> str:
    """Return a description that ends in `, float` with the numbers of a quantised file instead.

    Args:
        description: of the float file.
        bits: widths of the new file's weights; without 4 and 8 it is float.
    """
    found = " and ".join(f"INT{width}" for width in (4, 8) if width in bits)
    is_old = bool(found) and description.endswith(_FLOAT)
    return f"{description.removesuffix(_FLOAT)}, {found}" if is_old else description


def _weight_bits(content: bytes) -> set[int]:
    tensors = (tensor for graph in read_modelfile(content).subgraphs for tensor in graph.tensors)
    return {_BITS[str(tensor.dtype)] for tensor in tensors if tensor.size and str(tensor.dtype) in _BITS}


def _document(stated: TomlFile) -> dict[str, Any]:
    """Return a manifest as its file has it; one that is not TOML, as it was understood."""
    path = Path(stated.path)
    return tomllib.loads(read_text(path)) if path.suffix == ".toml" else copy.deepcopy(stated.data)


def _files(stated: TomlFile) -> Iterator[Path]:
    """Yield the labels, the golden files and the head of the verification of a model."""
    yield from files_of(Path(stated.path), _document(stated))[1:]
