"""Results of an evaluation, kept file by file, so that one that was interrupted goes on where it was.

A result has a key, the hash of all that it depends on: the model, the example, and how it was run. What has
changed has another key, so that results of two models or of two contents are never mixed. The file is of lines of
JSON; a line that was cut off is left out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from agent.compute.manifest import Model
from agent.errors import ModelError, reason_of
from agent.storage.files import add_line, refuse_special, remove
from agent.structs import from_json

T = TypeVar("T")
_VERSION = "1"
"""Version of the results: raised when the same input gives another one."""
_BEGINNING = b'{"key"'
_EVERY_S = 1.0
"""Results of so long are written together: to sync each would take longer than a small model."""


class _Line(Struct, frozen=True):
    key: str
    name: str
    result: msgspec.Raw


def result_key(*parts: str) -> str:
    """Return the hash of what a result depends on."""
    text = "\0".join((_VERSION, *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def model_key(model: Model, variant: str) -> str:
    """Return the hash of a model and of how it is run: its file, its manifest and the variant."""
    return result_key(model.sha256, msgspec.json.encode(model.manifest).decode(), variant)


class KeptResults:
    """Results by key, in memory and in a file. For one thread.

    Attributes:
        reused: number of results that were not computed again.
    """

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        """Read what is kept.

        Args:
            path: of the file, which need not exist; None: nothing is kept.
            fresh: forget it.

        Raises:
            ModelError: the file cannot be read, or is none of results.
        """
        self._path, self._waiting, self._written_s = path, list[bytes](), time.monotonic()
        self._found: dict[str, msgspec.Raw] = {}
        self.reused = 0
        if path is None:
            return
        refuse_special(path, ModelError)
        found = _read(path)
        if fresh:
            remove(path)
        else:
            self._found = found

    @property
    def is_kept(self) -> bool:
        """True if results are kept in a file."""
        return self._path is not None

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a kept result; None: there is none."""
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
        """Keep a result under the name of its example. Raises StorageError if it cannot be written."""
        if self._path is None:
            return
        self._waiting.append(msgspec.json.encode({"key": key, "name": name, "result": result}))
        if time.monotonic() - self._written_s >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._path is not None and self._waiting:
            add_line(self._path, b"\n".join(self._waiting))
        self._waiting.clear()
        self._written_s = time.monotonic()


@contextmanager
def keep_results(path: Path | None, *, fresh: bool = False) -> Iterator[KeptResults]:
    """Open `KeptResults`; what waits is written at the end, also after an error or an interruption."""
    kept = KeptResults(path, fresh=fresh)
    try:
        yield kept
    finally:
        kept.write()


def _read(path: Path) -> dict[str, msgspec.Raw]:
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
    if lines and not any(line.startswith(_BEGINNING) for line in lines):
        raise ModelError(f"{path}: is no file of results: name another by --results, or delete it")
    return found
