"""The models that a bundle brings, gathered: the file, its manifest with what that names, its golden answers."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import BundleError
from agent.library import open_whole_model
from agent.manifest import Model
from agent.storage.models import golden_paths, load_file, manifest_path, read, read_text
from agent.storage.wakeword import PREFIX, SUFFIX
from agent.update import goldens


def gather(name_or_path: str) -> Iterator[tuple[str, bytes]]:
    """The files of a model by their paths in a bundle; the CPU is asked for the golden answers.

    Args:
        name_or_path: see `agent.storage.models.load_file`.

    Raises:
        BundleError: it has no manifest. ModelError: it is broken, or the CPU does not run it.
    """
    if load_file(name_or_path)[1] is None:
        raise BundleError(
            f"{name_or_path}: has no manifest {Path(name_or_path).stem}.toml beside it: "
            f"`vedette models inspect {name_or_path} --write-manifest` writes one of what is known"
        )
    model, stem = open_whole_model(name_or_path), Path(name_or_path).stem
    yield f"models/{stem}.tflite", model.content
    yield f"models/{stem}.toml", _manifest(model, name_or_path, stem)
    for path in golden_paths(name_or_path, model.manifest):
        yield f"models/{path.name}", read(path)
    yield f"golden/{stem}.npz", goldens.make(model.content, model.manifest)


def _manifest(model: Model, name_or_path: str, stem: str) -> bytes:
    """As it is, but for what it says of other files: the labels stand in it, and the hash is the model's."""
    import tomli_w

    if name_or_path.startswith(PREFIX) or Path(name_or_path).suffix == SUFFIX:
        data: dict[str, Any] = _told(msgspec.to_builtins(model.manifest))
    else:
        data = tomllib.loads(read_text(manifest_path(name_or_path)))
    data["file"], data["sha256"] = f"{stem}.tflite", hashlib.sha256(model.content).hexdigest()
    data.setdefault("output", {})["labels"] = list(model.manifest.output.labels)
    return tomli_w.dumps(data).encode()


def _told(value: Any) -> Any:
    """Without what TOML cannot say: nothing."""
    if isinstance(value, dict):
        return {key: _told(one) for key, one in value.items() if one is not None}
    return [_told(one) for one in value] if isinstance(value, (list, tuple)) else value
