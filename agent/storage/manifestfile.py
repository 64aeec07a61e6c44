"""A model's manifest, written anew: in its place, or elsewhere with the files that it names beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.errors import ModelError
from agent.storage.durable import write_atomic
from agent.storage.models import beside, manifest_path, read, read_text


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
    labels = data["output"].get("labels")
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
