"""An append-only log of JSON lines, each with the hash of the one before: what was changed later shows.

A log whose end was removed, or which was written anew as a whole, is sound by itself: whoever has noted the hash
of the last line sees that, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.errors import NO_JSON, StorageError
from agent.storage.files import add_line, owned_file, storage_errors

_LINE_MAX = 1024 * 1024
Record = TypeVar("Record", bound=Struct)


class AuditLog(AbstractContextManager["AuditLog[Record]"], Generic[Record]):
    """A log that one process appends to.

    Attributes:
        records: all that are in it, in order.
        head: hash of the last line; empty: there is none.
        dropped: bytes at its end that a power cut had left of a record, and that were removed.
    """

    def __init__(self, path: Path, decode: Callable[[bytes], Record]) -> None:
        """Lock, read and check a log; it is created if there is none.

        Args:
            path: of the log; its folder exists.
            decode: returns a record, which has a field `previous`; raises as msgspec does.

        Raises:
            StorageError: another process has it, a line is damaged, or was changed.
        """
        self._path, self._decode = path, decode
        with ExitStack() as stack:
            stack.enter_context(owned_file(path))
            self.dropped = _without_torn_end(path)
            pairs = list(read_audit(path, decode))
            self.records, self.head = [one for one, _ in pairs], pairs[-1][1] if pairs else ""
            self._opened = stack.pop_all()

    def append(self, record: Record) -> None:
        """Write a record to the disk, with the hash of the one before.

        Raises:
            StorageError: the disk refuses it.
        """
        made = replace(record, previous=self.head)
        line = msgspec.json.encode(made)
        add_line(self._path, line)
        self.head = _hash(line)
        self.records.append(made)

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _without_torn_end(path: Path) -> int:
    """Remove what follows the last newline; return its bytes."""
    with storage_errors(f"{path}: cannot be written"), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LINE_MAX))
        tail = file.read()
        torn = len(tail) - tail.rfind(b"\n") - 1
        if torn:
            file.truncate(size - torn)
            os.fsync(file.fileno())
    return torn


def read_audit(path: Path, decode: Callable[[bytes], Record]) -> Iterator[tuple[Record, str]]:
    """Yield the records of a log and the hash of each line.

    Args:
        path: of the log.
        decode: see `AuditLog`.

    Raises:
        StorageError: it cannot be read, a line is damaged, or was changed, removed or inserted.
    """
    head = ""
    with storage_errors(f"{path}: cannot be read"), path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE_MAX + 1), b""), 1):
            content = line.rstrip(b"\n")
            if len(line) > _LINE_MAX or content == line:
                raise StorageError(f"{path}: line {number} is cut off")
            try:
                record = decode(content)
            except NO_JSON as error:
                raise StorageError(f"{path}: line {number} is damaged: {error}") from None
            if getattr(record, "previous", None) != head:
                raise StorageError(
                    f"{path}: line {number} does not follow the one before: that was changed, removed or inserted"
                )
            head = _hash(content)
            yield record, head
