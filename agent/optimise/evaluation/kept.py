"""Results of an evaluation, stored file by file, so that an interrupted one continues where it was.

A result has a key, the hash of all that it depends on: the model, the example, and how it was run. The file has
lines of JSON; a line that was cut off is left out.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from msgspec import Struct

from agent.compute.manifest import Model
from agent.errors import ModelError, reason_of
from agent.storage.files import add_line, refuse_special
from agent.structs import from_json

T = TypeVar("T")
_EVERY_S = 1.0
"""Results of this time are written together: to sync each would take longer than a small model."""


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
    """Results by key, in memory and in a file. A context, at whose end the last ones are written.

    Attributes:
        path: results file; None: nothing is stored.
        reused: number of results that were not computed again.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Load stored results; the file may be missing.

        Raises:
            ModelError: the file cannot be read, or holds something else.
        """
        self.path, self.reused = path, 0
        self._waiting, self._written_s = list[bytes](), time.monotonic()
        self._found = {} if path is None else _read(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a stored result; None: there is none."""
        raw = self._found.get(key)
        if raw is None:
            return None
        try:
            found = from_json(bytes(raw), kind)
        except msgspec.MsgspecError:
            return None
        self.reused += 1
        return found

    def add(self, key: str, name: str, result: Any) -> None:
        """Store a result under the name of its example. Raises StorageError if it cannot be written."""
        if self.path is not None:
            self._waiting.append(msgspec.json.encode({"key": key, "name": name, "result": result}))
            if time.monotonic() - self._written_s >= _EVERY_S:
                self._write()

    def _write(self) -> None:
        if self.path is not None and self._waiting:
            add_line(self.path, b"\n".join(self._waiting))
        self._waiting.clear()
        self._written_s = time.monotonic()


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
