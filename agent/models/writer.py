"""Write manifests and models: a complete manifest with the origin of each key, a changed copy, or a new model.

A new model, or a new version of one, is written with its manifest and a report: all of these files, or none.
"""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import lacks_labels
from agent.compute.infer.tensors import ends_of
from agent.compute.manifest import Manifest, check_manifest, read_manifest
from agent.compute.tflite.read import read_modelfile
from agent.config.toml import TomlFile, to_toml
from agent.errors import ModelError, NormalisationError
from agent.models.files import beside, load_file, manifest_path, model_path, read, read_text, report_path
from agent.models.library import complete_manifest, look_up
from agent.storage.files import make_folder, refuse_special, write_atomic, write_together
from agent.structs import Keys
from agent.text import plain


class Draft(Struct, frozen=True):
    """Content for a new manifest of a model.

    Attributes:
        manifest: with every known key.
        sha256: of the model.
        sources: origin of the keys that were found or guessed; the others were stated, or are defaults.
        missing: unknown keys: of `[input]`, which has placeholders there, and `[output] labels`.
    """

    manifest: Manifest
    sha256: str
    sources: dict[tuple[str, ...], str]
    missing: tuple[tuple[str, str], ...] = ()


def draft(name_or_path: str) -> Draft:
    """Return the content for a new manifest, even if `[input] mean` and `std` are unknown."""
    try:
        known = look_up(name_or_path, thorough=True)
        return Draft(known.manifest, known.sha256, dict(known.completed.sources), _unnamed(known.manifest))
    except NormalisationError:
        pass
    content, stated = load_file(name_or_path)
    keys: dict[str, Any] = copy.deepcopy({} if stated is None else stated.data)
    pixels = keys.setdefault("input", {})
    missing = tuple(key for key in ("mean", "std") if key not in pixels)
    pixels |= dict.fromkeys(missing, [127.5] * 3)
    sha256 = hashlib.sha256(content).hexdigest()
    ask = partial(ends_of, content, sha256, name_or_path, None)
    found = complete_manifest(content, TomlFile(name_or_path, keys, {}), name_or_path, ask)
    unknown = (*(("input", key) for key in missing), *_unnamed(found.manifest))
    return Draft(found.manifest, sha256, found.sources, unknown)


def _unnamed(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return the key of the labels if they are unknown."""
    return (("output", "labels"),) if lacks_labels(manifest.output) else ()


def write_new(name_or_path: str, path: str, content: Draft, *, force: bool = False) -> Path:
    """Write a complete manifest with a comment on the origin of each key. Return its path.

    Keys that are missing are written as comments, to be filled in by the user.

    Args:
        name_or_path: the model, see `agent.models.files.load_file`.
        path: of the manifest, in the model's folder; empty: the model's path with the suffix `.toml`.
        content: of the manifest.
        force: replace an existing manifest.

    Raises:
        ModelError: a manifest exists, or the model does not. StorageError: it cannot be written.
    """
    model = model_path(name_or_path)
    own = Path(path) if path else model.with_suffix(".toml")
    if own.suffix != ".toml":
        raise ModelError(f"{own}: a manifest is a .toml file")
    if own.exists() and not force:
        raise ModelError(f"{own}: is there already; --force replaces it")
    if plain(model.name) != model.name:
        raise ModelError(f"{own}: cannot name {model.name}, which cannot be printed: rename the model")
    golden = (model.parent / name for name in content.manifest.golden.files)
    if files := list(missing_files([model, *golden], own.parent)):
        raise ModelError(
            f"{own}: a manifest lies beside its model, and {files[0].name} is not in that folder: copy "
            f"{files[0]} there first, or leave --manifest out"
        )
    stated = load_file(name_or_path)[1]
    text = manifest_text(content, model.name, stated.data if stated else {})
    write_atomic(own, text.encode())
    return own


def manifest_text(content: Draft, file: str, stated: Mapping[str, Any]) -> str:
    """Return a complete manifest with a comment on the origin of each key.

    Args:
        content: of the manifest.
        file: name of the model.
        stated: keys that need no comment.
    """
    whole = replace(content.manifest, file=file, sha256=content.sha256)
    keys = _without_defaults(msgspec.to_builtins(whole))
    if verification := keys.get("verification"):  # files beside the manifest, whose paths are known by now
        verification |= {key: Path(verification[key]).name for key in ("model", "head")}
    for table, key in content.missing:
        keys.get(table, {}).pop(key, None)
    text = to_toml(keys, _comments(keys, content.sources, stated))
    for table, key in reversed(content.missing):
        text = text.replace(f"[{table}]\n", f"[{table}]\n{_placeholder(key)}\n", 1)
    return text


def _placeholder(key: str) -> str:
    """Return a comment line for an unknown key."""
    if key == "labels":
        return '# labels = "labels.txt"  # to be filled in: a file beside this one, a class in each line'
    return f"# {key} = [127.5, 127.5, 127.5]  # to be filled in: this is for -1..1; see the model's source"


def _without_defaults(keys: dict[str, Any]) -> dict[str, Any]:
    """Leave out empty values, and defaults of tables that few models have."""
    usual = msgspec.to_builtins(Manifest())
    rare = [key for key in ("golden", "variants") if keys[key] == usual[key]]
    stated = {key: value for key, value in keys.items() if key not in rare and value not in ("", None)}
    if stated.get("audio"):
        stated.pop("input")
    return stated


def _comments(
    keys: Mapping[str, Any], sources: Mapping[tuple[str, ...], str], stated: Mapping[str, Any]
) -> dict[Keys, str]:
    """Return the origin of each key that was not stated."""
    comments: dict[Keys, str] = {}
    for table in ("input", "output", "audio"):
        for key in keys.get(table, {}):
            if key != "options" and key not in stated.get(table, {}):
                comments[table, key] = "default"
    found: Mapping[Any, str] = sources
    return comments | dict(found)


def rewrite(name_or_path: str, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a changed copy of a model's manifest. Comments in it are lost.

    Args:
        name_or_path: the model, with a TOML manifest.
        path: of the copy, replaced as a whole or not at all. The files that it names are copied beside it, and
            the model's licence, and its report, which says what it has learned from.
        change: changes the parsed document.

    Raises:
        ModelError: there is no manifest, or different files of these names are there.
        StorageError: the copy cannot be written.
    """
    import tomli_w

    manifest = manifest_path(name_or_path)
    data = tomllib.loads(read_text(manifest))
    model, *others = files_of(manifest, data)
    missing = list(missing_files([model, *others], path.parent))
    told = report_path(model), model.with_suffix(".LICENSE")
    missing += (file for file in told if file.is_file() and not (path.parent / file.name).exists())
    data["file"] = model.name
    change(data)
    for file in missing:
        write_atomic(path.parent / file.name, read(file))
    write_atomic(path, tomli_w.dumps(data).encode())


def check_place(name_or_path: str, path: Path) -> None:
    """Raise ModelError if `rewrite` would for this path, or would replace what is no manifest of the model."""
    manifest = manifest_path(name_or_path)
    files = files_of(manifest, tomllib.loads(read_text(manifest)))
    for _ in missing_files(files, path.parent):
        pass
    if path.exists() and path.resolve() != manifest.resolve():
        with suppress(tomllib.TOMLDecodeError):
            if files_of(path, tomllib.loads(read_text(path)))[0].name == files[0].name:
                return
        raise ModelError(f"{path}: is there already, and is no manifest of {files[0].name}: choose another name")


def set_variants(keys: Mapping[str, Mapping[str, float | None]]) -> Callable[[dict[str, Any]], None]:
    """Return a change for `rewrite` that sets keys of variants by their name; None removes a key."""

    def change(manifest: dict[str, Any]) -> None:
        for variant in manifest["variants"]:
            for key, value in keys.get(variant["name"], {}).items():
                variant.pop(key, None)
                if value is not None:
                    variant[key] = value

    return change


def files_of(manifest: Path, data: Mapping[str, Any]) -> list[Path]:
    """Return the files that a manifest names: its model, labels, golden files and the head of its verification.

    Args:
        manifest: its path.
        data: the parsed document.

    Raises:
        ModelError: a file would lie in another folder.
    """
    files = [beside(manifest, data.get("file") or manifest.with_suffix(".tflite").name, "file")]
    if isinstance(labels := data.get("output", {}).get("labels"), str):
        files.append(beside(manifest, labels, "labels"))
    files += (beside(manifest, name, "golden.files") for name in data.get("golden", {}).get("files", ()))
    if verification := data.get("verification"):
        files.append(beside(manifest, verification["head"], "verification.head"))
    return files


def missing_files(files: list[Path], folder: Path) -> Iterator[Path]:
    """Yield the files that are not in the folder yet.

    Raises:
        ModelError: a different file of that name is there.
    """
    for file in files:
        there = folder / file.name
        if not there.exists():
            yield file
        elif not there.samefile(file) and read(there) != read(file):
            raise ModelError(
                f"{there}: differs from {file}, which the manifest names; "
                "choose another folder, or move the file away"
            )


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
