"""Checkpoints of runs that can be interrupted: written as a whole, and refused by a run that is another one.

A run has a key: what must be the same for the result to be the same, as texts by name. An error says which name
differs.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import CheckpointError, StorageError, reason_of
from agent.optimise.data import Examples
from agent.storage.files import refuse_special, remove, write_atomic

SAVE_EVERY_S = 10.0
_FORMAT = 2
_OTHER = "remove it, or write the result elsewhere"

Key = Mapping[str, str]
"""Values of all that a run depends on, as text by name."""


def run_key(module: Any, pictures: NDArray[Any], labels: NDArray[Any], *settings: Struct) -> dict[str, str]:
    """Return the key of a run that begins with this module.

    Args:
        module: a torch module as it is before the run.
        pictures: training pictures.
        labels: their classes.
        settings: of the run.
    """
    key = _data_key(pictures.shape, _crc(pictures), labels)  # first: a batch follows the number of pictures
    key |= {
        f"{type(one).__name__.removesuffix('Settings').removesuffix('Recipe').lower()} {name}": repr(value)
        for one in settings
        for name, value in msgspec.to_builtins(one).items()
    }
    return key | module_key(module)


def examples_key(examples: Examples) -> dict[str, str]:
    """Return the part of a run's key that tells its examples: what the model takes of each, and the classes."""
    crc = 0
    for index in range(len(examples)):
        crc = _crc(examples.batch([index]), crc)
    return _data_key((len(examples), *examples.shape), crc, examples.labels)


def _data_key(shape: Sequence[int], crc: int, labels: NDArray[Any] | None) -> dict[str, str]:
    told = "none" if labels is None else f"{len(labels)}, CRC {_crc(labels):08x}"
    return {"pictures": f"{list(shape)}, CRC {crc:08x}", "labels": told}


def module_key(module: Any) -> dict[str, str]:
    """Return the part of a run's key that tells with which module it begins."""
    key, crc = {"module": type(module).__name__}, 0
    for name, one in module.state_dict().items():
        key[f"shape of {name}"] = str(list(one.shape))
        crc = zlib.crc32(one.detach().cpu().contiguous().numpy().tobytes(), crc)
    return key | {"weights at the start": f"CRC {crc:08x}"}


def _crc(values: NDArray[Any], crc: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data, crc)


def write_checkpoint(path: Path, key: Key, state: Mapping[str, Any]) -> None:
    """Replace a checkpoint.

    Args:
        path: its folder exists.
        key: of the run.
        state: what torch can load without running code: tensors, numbers, texts, and containers of these.

    Raises:
        StorageError: it cannot be written; the one before it is still there.
    """
    content = io.BytesIO()
    torch.save({"format": _FORMAT, "key": dict(key), "state": dict(state)}, content)
    write_atomic(path, content.getvalue())


def read_checkpoint(path: Path, key: Key, device: Any = "cpu") -> dict[str, Any] | None:
    """Return the state of a checkpoint; None: there is no such file.

    Args:
        path: of the file.
        key: of this run.
        device: to which tensors are loaded.

    Raises:
        StorageError: it cannot be read.
        CheckpointError: it is no checkpoint, or belongs to another run.
    """
    refuse_special(path, StorageError)
    try:
        found = torch.load(io.BytesIO(path.read_bytes()), map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error
    except Exception as error:  # what torch raises for a file of another kind has many classes
        raise CheckpointError(f"{path}: is no checkpoint of a run: {_OTHER}") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: is no checkpoint of this version: {_OTHER}")
    then = found["key"]
    if differing := next((name for name in (*key, *then) if key.get(name) != then.get(name)), None):
        was, now = then.get(differing, "not there"), key.get(differing, "not there")
        raise CheckpointError(f"{path}: belongs to another run ({differing} was {was}, is now {now}): {_OTHER}")
    state: dict[str, Any] = found["state"]
    return state


class Resumable(Protocol):
    """A run whose state is what torch can load without running code."""

    def state(self) -> dict[str, Any]:
        """Return the state; one of its parts may be the module."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` has returned."""
        ...


class Checkpoint:
    """The file from which an interrupted run goes on; without a path nothing is kept."""

    def __init__(self, path: Path | None, key: Callable[[], Key], run: Resumable, device: Any = "cpu") -> None:
        """Go on from the file; or write it, since a disk that refuses it is to be found now and not in an hour.

        Args:
            path: of the file.
            key: of the run.
            run: of which no step is done.
            device: to which tensors are loaded.

        Raises:
            StorageError, CheckpointError: see `read_checkpoint` and `write_checkpoint`.
        """
        self._path, self._run = path, run
        self._key: Key = key() if path else {}
        state = read_checkpoint(path, self._key, device) if path else None
        if state is not None:
            run.load_state(state)
        else:
            self.save()
        self._saved = time.monotonic()

    def save(self) -> None:
        """Write the state."""
        if self._path is not None:
            write_checkpoint(self._path, self._key, self._run.state())

    def save_at_times(self, *, ends: bool) -> None:
        """Write the state every ten seconds, and at the end."""
        if ends or time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()
            self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a run that would fail again, and stand in the way of other settings."""
        if self._path is not None:
            remove(self._path)
