"""Comms: sockets to brokers, and what goes over them. Modules that libraries import without need are deferred."""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

_turn = threading.RLock()  # a module that is being loaded may import itself
_loaders: dict[str, Loader] = {}


def defer(name: str) -> None:
    """Load a module when something in it is first used, and not when it is imported. Any thread may use it.

    Does nothing if it is loaded already. `importlib.util.LazyLoader` loads a module as soon as an `import`
    statement finds it.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    _loaders[name] = spec.loader
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules, such as `warnings`, uses none
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _turn:
            loader = _loaders.pop(self.__name__, None)
            if loader is not None:
                loader.exec_module(self)
        return object.__getattribute__(self, name)


# paho imports it for the proxies of PySocks, which is not installed; with HTTP and e-mail it takes 3 MB.
defer("urllib.request")
# Of no use without TLS, and 1.3 MB.
defer("ssl")
