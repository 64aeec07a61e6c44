"""Models by name or path, ready for a backend; streams that run the same model share its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from weakref import WeakValueDictionary

from agent.compute.decode.metadata import manifest_of
from agent.compute.infer.modelfile import read_modelfile
from agent.errors import ModelError
from agent.manifest import Model
from agent.storage.models import load_file

_open: WeakValueDictionary[tuple[str, str], Model] = WeakValueDictionary()


def open_model(name_or_path: str) -> Model:
    """The model of that name or path.

    Raises:
        ModelError: there is none, it is broken, or nothing tells how to use it.
    """
    content, manifest = load_file(name_or_path)
    if manifest is None:
        try:
            inputs, outputs = read_modelfile(content).ends()
        except ModelError as error:
            raise ModelError(f"{name_or_path}: {error}") from None
        manifest = manifest_of(content, inputs, outputs, Path(name_or_path).stem)
    sha256 = hashlib.sha256(content).hexdigest()
    return _open.setdefault((name_or_path, sha256), Model(content, sha256, manifest, name_or_path))
