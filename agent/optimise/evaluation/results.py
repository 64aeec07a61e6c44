"""Results that an interrupted evaluation has stored.

A result has a key, the hash of all that it depends on: the model, the recording, and how it was heard. The file
has lines of JSON; a line that was cut off is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.compute.manifest import Model
from agent.errors import ModelError, reason_of
from agent.storage.files import add_line, refuse_special
from agent.structs import from_json

T = TypeVar("T")


class _Line(Struct, frozen=True):
    key: str
    name: str
    result: msgspec.Raw


def result_key(*parts: str) -> str:
    """Return the hash of what a result depends on."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def model_key(model: Model, variant: str) -> str:
    """Return the hash of a model and of how it is run: its file, its manifest and the variant."""
    return result_key(model.sha256, msgspec.json.encode(model.manifest).decode(), variant)


class KeptResults:
    """Results by key, in memory and in a file.

    Attributes:
        reused: number of results that were not computed again.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Load stored results.

        Args:
            path: results file, may be missing; None stores nothing.

        Raises:
            ModelError: the file cannot be read, or holds something else.
        """
        self._path, self.reused = path, 0
        self._found = {} if path is None else _read(path)

    def computed(self, key: str, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """Return a stored result, or compute it, and store it under the name of its example.

        Raises:
            StorageError: the file cannot be written.
        """
        if (raw := self._found.get(key)) is not None:
            try:
                found = from_json(bytes(raw), kind)
            except msgspec.MsgspecError:
                pass  # of another version
            else:
                self.reused += 1
                return found
        found = compute()
        if self._path is not None:
            add_line(self._path, msgspec.json.encode({"key": key, "name": name, "result": found}))
        return found


def _read(path: Path) -> dict[str, msgspec.Raw]:
    refuse_special(path, ModelError)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {reason_of(error)}") from None
    found = {}
    for line in lines:
        try:
            one = from_json(line, _Line)
        except msgspec.MsgspecError:
            continue  # cut off
        found[one.key] = one.result
    if lines and not found and not lines[0].startswith(b'{"key"'):
        raise ModelError(f"{path}: is no file of results: name another by --results, or delete it")
    return found
