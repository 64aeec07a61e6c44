"""Write manifests: a complete one with the origin of each key, or a changed copy."""

from __future__ import annotations

import copy
import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import lacks_labels
from agent.compute.infer.backends import ends_of
from agent.compute.manifest import Manifest
from agent.config.toml import Keys, TomlFile, to_toml
from agent.errors import ModelError, NormalisationError
from agent.models.files import beside, load_file, manifest_path, model_path, read, read_text, report_path
from agent.models.library import complete_manifest, look_up
from agent.storage.files import write_atomic


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
    golden = (model.parent / name for name in content.manifest.golden.files)
    if files := list(missing_files([model, *golden], own.parent)):
        raise ModelError(
            f"{own}: a manifest lies beside its model, and {files[0].name} is not in that folder: copy "
            f"{files[0]} there first, or leave --manifest out"
        )
    stated = load_file(name_or_path)[1]
    text = manifest_text(content, _file_key(model, own), stated.data if stated else {})
    write_atomic(own, text.encode())
    return own


def manifest_text(content: Draft, file: str, stated: Mapping[str, Any]) -> str:
    """Return a complete manifest with a comment on the origin of each key.

    Args:
        content: of the manifest.
        file: name of the model; empty: left out.
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


def _file_key(model: Path, own: Path) -> str:
    """Return the value of a manifest's key `file`; empty: left out, since TOML holds UTF-8 names only.

    Raises:
        ModelError: the manifest must name the file and cannot.
    """
    try:
        model.name.encode()
    except UnicodeEncodeError:
        if own == model.with_suffix(".toml"):
            return ""
        text = f"{own}: cannot name {model.name}, which is not UTF-8: rename the model, or leave --manifest out"
        raise ModelError(text) from None
    return model.name


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
