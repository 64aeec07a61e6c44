"""Load a network: from a user's file, `path.py:factory`, a function that returns a `torch.nn.Module`, or by name.

A file of weights that `save_module` has written names the arguments of the function as well.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import io
import pickle
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from agent.errors import ModelError
from agent.optimise.graph.from_torch import first_line, import_torch
from agent.optimise.recipe import DETECTOR
from agent.text import plural

_NESTED = ("state_dict", "model")
"""Keys under which checkpoints keep the weights."""
_FACTORY, _PARAMETERS, _LEARNED = "factory", "parameters", "learned"
"""Keys for where a module is from, the arguments of that function, and what the weights were trained on."""
_NONE: Mapping[str, Any] = {}
_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of names in weights that were saved from a wrapped module: of several devices, or compiled."""


def load_factory(source: str, weights: Path | None = None) -> Any:
    """Import a file, call a function in it, and return the `torch.nn.Module` that it gives.

    The file's folder can be imported from while it is imported, and while the function runs. Both run with the
    user's rights. What they print goes to stderr.

    Args:
        source: `path.py:factory`, or the name of one of our networks. The function takes no
            arguments but those that are in the file of weights. A subclass of `Module` is such a function.
        weights: a file of `torch.save` with the module's state dict, alone or under `state_dict` or `model`.

    Raises:
        ModelError: there is no such file or function, it fails or returns something else, or the weights do not
            fit.
    """
    factory = find_factory(source)
    if weights is None:
        if _is_name(source):
            raise ModelError(
                f"{source}: give --weights too, the .pt file that `vedette optimise train` has written"
            )
        return call_factory(factory, source)
    stored = _read_weights(weights)
    parameters = _parameters(stored)
    try:
        module = call_factory(factory, source, parameters)
    except ModelError as error:
        if not parameters:
            raise
        given = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        raise ModelError(f"{error}; {weights} was written for {stored[_FACTORY]} with {given}") from error
    _load(module, weights, stored)
    return module


def load_weights(module: Any, path: Path, classes: int | None = None) -> None:
    """Load a state dict into a module.

    Args:
        module: as it was built.
        path: see `load_factory`.
        classes: number of classes that it was built for; None: not known.

    Raises:
        ModelError: there is no such file, or the weights do not fit.
    """
    stored = _read_weights(path)
    made = _parameters(stored).get("classes")
    if classes is not None and isinstance(made, int) and made != classes:
        raise ModelError(f"{path}: was trained for {plural(made, 'class', 'classes')}, and there are {classes}")
    _load(module, path, stored)


def _parameters(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that `save_module` has written; others' files may use the name for something else."""
    found = stored.get(_PARAMETERS)
    own = (
        isinstance(stored.get(_FACTORY), str)
        and isinstance(found, dict)
        and all(isinstance(k, str) for k in found)
    )
    return found if own and found else {}


def _load(module: Any, path: Path, stored: dict[str, Any]) -> None:
    for key in _NESTED:
        if isinstance(stored.get(key), dict):
            stored = stored[key]
    _fill(module, path, {_bare(str(name)): value for name, value in stored.items()})


def learned_of(weights: Path | None) -> tuple[str, ...]:
    """Return the digests of examples that `save_module` has written into a file of weights; empty: none.

    Raises:
        ModelError: there is no such file.
    """
    stored = {} if weights is None else _read_weights(weights)
    found = stored.get(_LEARNED)
    own = isinstance(stored.get(_FACTORY), str) and isinstance(found, list)
    return tuple(map(str, found)) if own and found else ()


def save_module(module: Any, source: str, parameters: dict[str, Any], learned: Sequence[str] = ()) -> bytes:
    """Return a file of weights for `load_factory`.

    Args:
        module: whose state it holds.
        source: that the module is from.
        parameters: the function was called with, numbers and texts.
        learned: digests of examples that it was trained on, see `agent.optimise.source.learned_sample`.
    """
    written, state = io.BytesIO(), {name: value.cpu() for name, value in module.state_dict().items()}
    origin = {_FACTORY: source, _PARAMETERS: parameters, _LEARNED: list(learned)}
    import_torch().save({**origin, "state_dict": state}, written)
    return written.getvalue()


def build_classifier(source: str, classes: int) -> tuple[Any, dict[str, Any]]:
    """Return a module that is not trained, and the arguments of its function: `classes`, if it takes that.

    Args:
        source: see `load_factory`.
        classes: number of outputs.

    Raises:
        ModelError: as `load_factory`.
    """
    factory = find_factory(source)
    try:
        takes = "classes" in inspect.signature(factory).parameters
    except ValueError:  # it is written in C
        takes = False
    parameters = {"classes": classes} if takes else {}
    return call_factory(factory, source, parameters), parameters


def find_factory(source: str) -> Any:
    """Import a file and return a function in it.

    Args:
        source: see `load_factory`; the function may take arguments.

    Raises:
        ModelError: there is no such file or function.
    """
    import_torch()
    if _is_name(source):
        return _networks()[source]
    path, name = _split(source)
    return _find(_import(path), path, name)


def _is_name(source: str) -> bool:
    """Return True for the name of one of our networks; raise ModelError for another that may be meant as one."""
    networks = _networks()
    if source not in networks and source.isidentifier():
        raise ModelError(
            f"{source}: there is no such network: expected {', '.join(networks)}, or path.py:factory"
        )
    return source in networks


def _networks() -> dict[str, Any]:
    """Return the functions of our networks by name."""
    from agent.optimise.training.networks import NETWORKS, detector

    return {**NETWORKS, DETECTOR: detector}


def call_factory(factory: Any, source: str, parameters: Mapping[str, Any] = _NONE) -> Any:
    """Return the `torch.nn.Module` that a function gives.

    Args:
        factory: from `find_factory`.
        source: where it is from.
        parameters: keyword arguments.

    Raises:
        ModelError: it fails or returns something else.
    """
    torch, path = import_torch(), Path(source.rpartition(":")[0])
    try:
        with contextlib.redirect_stdout(sys.stderr), _importable(path):
            module = factory(**parameters)
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        raise ModelError(f"{source}: {_told(error, path)}") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{source}: returned {type(module).__name__}: expected a torch.nn.Module")
    return module


def _split(source: str) -> tuple[Path, str]:
    file, _, name = source.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ModelError(f"{source}: expected path.py:factory, a function that returns a torch.nn.Module")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    return path, name


def _import(path: Path) -> ModuleType:
    """Import a file under its own name, so that classes in it can be pickled."""
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) != str(path.resolve()):
        raise ModelError(f"{path}: a module called {path.stem} is loaded already: give the file another name")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        with contextlib.redirect_stdout(sys.stderr), _importable(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        del sys.modules[path.stem]
        raise ModelError(f"{path}: cannot be imported: {_told(error, path)}") from error
    return module


@contextlib.contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Let modules of a file's folder be imported while the context lasts."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _find(module: ModuleType, path: Path, name: str) -> Any:
    found = getattr(module, name, None)
    if callable(found):
        return found
    names = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
    near = difflib.get_close_matches(name, names, 1)
    told = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(names)) or 'none'}"
    raise ModelError(f"{path}: has no function {name!r}; {told}")


def _told(error: BaseException, path: Path) -> str:
    """Return an error of the user's code with the line of their file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == path.name
    ]
    at = f"line {lines[-1]}: " if lines else ""
    return f"{at}{type(error).__name__}: {first_line(error)}"


def _read_weights(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = import_torch().load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:  # torch's text tells how to run code that is in the file
        told = "expected tensors only, as torch.save(module.state_dict(), PATH) writes them"
        raise ModelError(f"{path}: no weights that torch.save has written: {told}") from error
    except Exception as error:  # torch raises what its readers raise
        raise ModelError(f"{path}: no weights that torch.save has written: {first_line(error)}") from error
    if not isinstance(stored, dict):
        raise ModelError(f"{path}: holds {type(stored).__name__}: expected a state dict")
    return stored


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _fill(module: Any, path: Path, stored: dict[str, Any]) -> None:
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in stored]
    faults += [f"{name} is not of this module" for name in stored if name not in own]
    for name, value in own.items():
        shape = getattr(stored.get(name, value), "shape", None)
        if shape != value.shape:
            wanted = list(value.shape)
            faults.append(f"{name} is {list(shape) if shape is not None else 'no tensor'}, not {wanted}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ModelError(f"{path}: the weights do not fit {type(module).__name__}: {faults[0]}{more}")
    module.load_state_dict(stored)
