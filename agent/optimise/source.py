"""Open the model that a step works on, also one whose outputs no decoder takes.

A step needs the input part of the manifest for its examples. Without labels the raw outputs are compared, so that
landmarks and other outputs that the daemon cannot decode can be quantised as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent.compute.decode.defaults import complete, facts_of
from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError, NormalisationError
from agent.models.files import load_file
from agent.models.library import open_manifest, prefixed_errors

_UNDECODED = "undecoded"
"""Stands for a decoder while a manifest is completed, so that none is guessed."""


def open_source(name_or_path: str, tell: Callable[[str], None]) -> Model:
    """Open a model for a step.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        tell: called with a line on each doubt about a model whose outputs cannot be decoded. Its manifest states
            no decoder.

    Raises:
        ModelError: there is no such model, it is broken, or its manifest cannot be used.
    """
    content, stated = load_file(name_or_path)
    try:
        manifest = open_manifest(name_or_path)
    except NormalisationError:
        raise
    except ModelError:
        if stated is not None and (stated.data.get("output", {}).get("decoder") or stated.data.get("variants")):
            raise
        manifest = _undecoded(name_or_path, content, {} if stated is None else stated.data, tell)
    return Model(content, hashlib.sha256(content).hexdigest(), manifest, name_or_path)


def _undecoded(
    name_or_path: str, content: bytes, keys: dict[str, object], tell: Callable[[str], None]
) -> Manifest:
    with prefixed_errors(name_or_path):
        facts = facts_of(content, read_modelfile(content))
        found = complete({**keys, "output": {"decoder": _UNDECODED}}, facts, Path(name_or_path).stem)
    for doubt in ("its outputs cannot be decoded, and are compared as they are", *found.doubts):
        tell(f"{name_or_path}: {doubt}")
    return replace(found.manifest, output=OutputManifest())
