"""A model's manifest, written anew: in its place, or elsewhere with the files that it names beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent.errors import ModelError
from agent.manifest import Manifest
from agent.storage.durable import write_atomic
from agent.storage.models import beside, load_file, manifest_path, model_path, read, read_text
from agent.tomlfile import Keys, to_toml


def rewrite(name_or_path: str, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a model's manifest anew, changed; remarks in it are lost.

    Args:
        name_or_path: the model, with a TOML manifest.
        path: where to, replaced as a whole or not at all. The files that it names are copied beside it.
        change: is given the parsed document.

    Raises:
        ModelError: it has none, or other files of these names are there. StorageError: it cannot be written.
    """
    import tomli_w

    manifest = manifest_path(name_or_path)
    data = tomllib.loads(read_text(manifest))
    model, *others = _named(manifest, data)
    missing = list(_missing([model, *others], path.parent))
    data["file"] = model.name
    change(data)
    for file in missing:
        write_atomic(path.parent / file.name, read(file))
    write_atomic(path, tomli_w.dumps(data).encode())


def write_new(
    name_or_path: str,
    path: str,
    manifest: Manifest,
    sha256: str,
    sources: Mapping[tuple[str, ...], str],
    missing: Sequence[tuple[str, str]] = (),
    *,
    force: bool = False,
) -> Path:
    """Write a complete manifest, with a comment on the source of each key; give its path.

    Args:
        name_or_path: the model, see `agent.storage.models.load_file`.
        path: of the manifest, in the model's folder; empty: of the same stem.
        manifest: with every key.
        sha256: of the model.
        sources: where keys came from that were found or guessed; the others were stated, or are defaults.
        missing: keys that are to be filled in, with their tables: they are written as comments.
        force: replace a manifest that is there.

    Raises:
        ModelError: a manifest is there, or the model is not. StorageError: it cannot be written.
    """
    model = model_path(name_or_path)
    own = Path(path) if path else model.with_suffix(".toml")
    if own.suffix != ".toml":
        raise ModelError(f"{own}: a manifest is a .toml file")
    if own.exists() and not force:
        raise ModelError(f"{own}: is there already; --force replaces it")
    if files := list(_missing([model, *(model.parent / name for name in manifest.golden.files)], own.parent)):
        raise ModelError(
            f"{own}: a manifest lies beside its model, and {files[0].name} is not in that folder: copy "
            f"{files[0]} there first, or leave --manifest out"
        )
    keys = _told(msgspec.to_builtins(replace(manifest, file=_file_key(model, own), sha256=sha256)))
    stated = load_file(name_or_path)[1]
    for table, key in missing:
        keys.get(table, {}).pop(key, None)
    text = to_toml(keys, _comments(keys, sources, stated.data if stated else {}))
    for table, key in reversed(missing):
        text = text.replace(f"[{table}]\n", f"[{table}]\n{_to_fill_in(key)}\n", 1)
    write_atomic(own, text.encode())
    return own


def _file_key(model: Path, own: Path) -> str:
    """Return what a manifest says of its file; empty: nothing, as TOML cannot hold a name that is not UTF-8.

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


def _to_fill_in(key: str) -> str:
    """A line for a key that nothing tells."""
    if key == "labels":
        return '# labels = "labels.txt"  # to be filled in: a file beside this one, a class in each line'
    return f"# {key} = [127.5, 127.5, 127.5]  # to be filled in: this is for -1..1; the model's source tells it"


def _told(keys: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty or a default of parts that few models have."""
    usual = msgspec.to_builtins(Manifest())
    rare = [key for key in ("golden", "rungs") if keys[key] == usual[key]]
    told = {key: value for key, value in keys.items() if key not in rare and value not in ("", None)}
    if told.get("audio"):
        told.pop("input")
    return told


def _comments(
    keys: Mapping[str, Any], sources: Mapping[tuple[str, ...], str], stated: Mapping[str, Any]
) -> dict[Keys, str]:
    """Where each key came from that was not stated."""
    comments: dict[Keys, str] = {}
    for table in ("input", "output", "audio"):
        for key in keys.get(table, {}):
            if key != "options" and key not in stated.get(table, {}):
                comments[table, key] = "default"
    found: Mapping[Any, str] = sources
    return comments | dict(found)


def check_place(name_or_path: str, path: Path) -> None:
    """Refuse a place where `rewrite` would be refused.

    Raises:
        ModelError: see `rewrite`.
    """
    manifest = manifest_path(name_or_path)
    for _ in _missing(_named(manifest, tomllib.loads(read_text(manifest))), path.parent):
        pass


def set_rungs(keys: Mapping[str, Mapping[str, float | None]]) -> Callable[[dict[str, Any]], None]:
    """For `rewrite`: set keys of rungs, by their name; None takes a key away."""

    def change(manifest: dict[str, Any]) -> None:
        for rung in manifest["rungs"]:
            for key, value in keys.get(rung["name"], {}).items():
                rung.pop(key, None)
                if value is not None:
                    rung[key] = value

    return change


def _named(manifest: Path, data: Mapping[str, Any]) -> list[Path]:
    """The files that a manifest names: its model, and its labels where they are a file."""
    files = [beside(manifest, data.get("file") or manifest.with_suffix(".tflite").name, "file")]
    labels = data.get("output", {}).get("labels")
    return [*files, beside(manifest, labels, "labels")] if isinstance(labels, str) else files


def _missing(files: list[Path], folder: Path) -> Iterator[Path]:
    """Those that are not in the folder yet."""
    for file in files:
        there = folder / file.name
        if not there.exists():
            yield file
        elif not there.samefile(file) and read(there) != read(file):
            raise ModelError(
                f"{there}: is another file than {file}, which the manifest names; "
                "take another folder, or move it away"
            )
