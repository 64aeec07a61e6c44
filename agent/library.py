"""Models by name or path, ready for a backend; streams that run the same model share its bytes."""

from __future__ import annotations

from weakref import WeakValueDictionary

from agent.manifest import Model
from agent.storage.models import load_model

_open: WeakValueDictionary[tuple[str, str], Model] = WeakValueDictionary()


def open_model(name_or_path: str) -> Model:
    """The model of that name or path.

    Raises:
        ModelError: there is none, it is broken, or nothing tells how to use it.
    """
    model = load_model(name_or_path)
    return _open.setdefault((model.path, model.sha256), model)
