"""Models by name or path, ready for a backend; streams that run the same rung of a model share its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from msgspec.structs import replace

from agent.compute.decode.metadata import manifest_of
from agent.compute.infer.extract import only_signature
from agent.compute.infer.modelfile import ModelFile, read_modelfile
from agent.errors import ModelError
from agent.manifest import Manifest, Model, Rung
from agent.storage.models import load_file

_open: WeakValueDictionary[tuple[str, str, str], Model] = WeakValueDictionary()


def open_model(name_or_path: str, rung: str = "") -> Model:
    """The model of that name or path with the rungs that may run, and nothing of the others.

    Args:
        name_or_path: see `agent.storage.models.load_file`.
        rung: its name, `auto` or empty, see `agent.manifest.Manifest.climbed`.

    Raises:
        ModelError: there is none, it is broken, or nothing tells how to use it.
    """
    content, manifest = load_file(name_or_path)
    sha256 = hashlib.sha256(content).hexdigest()
    with named(name_or_path):
        manifest = manifest or guessed(content, read_modelfile(content), name_or_path)
        kept = _kept(manifest, rung)
        key, all_there_are = (name_or_path, sha256, " ".join(one.name for one in kept)), len(manifest.rungs)
        manifest = replace(manifest, rungs=kept)
        known = _open.get(key)
        if known is not None and known.manifest == manifest:  # it may have been written anew for the same file
            return known
        if len(kept) == 1 < all_there_are:
            content = only_signature(content, kept[0].signature)
    _open[key] = model = Model(content, sha256, manifest, name_or_path)
    return model


def open_whole_model(name_or_path: str) -> Model:
    """The model of that name or path with every rung.

    Raises:
        ModelError: see `open_model`.
    """
    content, manifest = load_file(name_or_path)
    with named(name_or_path):
        manifest = manifest or guessed(content, read_modelfile(content), name_or_path)
    return Model(content, hashlib.sha256(content).hexdigest(), manifest, name_or_path)


def open_manifest(name_or_path: str) -> Manifest:
    """The manifest of the model of that name or path, with every rung.

    Raises:
        ModelError: see `open_model`.
    """
    content, manifest = load_file(name_or_path)
    with named(name_or_path):
        return manifest or guessed(content, read_modelfile(content), name_or_path)


@contextmanager
def named(name_or_path: str) -> Iterator[None]:
    """Errors inside begin with the model that they are about.

    Raises:
        ModelError: as inside, of the same kind.
    """
    try:
        yield
    except ModelError as error:
        if str(error).startswith(f"{name_or_path}: "):
            raise
        raise type(error)(f"{name_or_path}: {error}") from None


def _kept(manifest: Manifest, rung: str) -> tuple[Rung, ...]:
    """The rungs that may run: every one of a ladder, else those that lead to the one asked for; deepest first."""
    return manifest.climbed(rung)[::-1] or manifest.chain(rung)[::-1]


def guessed(content: bytes, modelfile: ModelFile, path: str) -> Manifest:
    """The manifest of a model that has none beside it, named after its file.

    Raises:
        ModelError: see `manifest_of`.
    """
    return manifest_of(content, *modelfile.ends(), Path(path).stem)
