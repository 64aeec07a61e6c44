"""An append-only log of JSON lines, each with the hash of the one before: what was changed later shows.

The hash of the last line is in a file of its own beside the log. Nothing is secret: whoever writes both anew
makes a sound log, which shows only to those who have noted a hash of the old one.
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
from agent.storage.files import add_line, owned_file, storage_errors, write_atomic

_LINE_MAX = 1024 * 1024
_MODE = 0o600
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
            path.chmod(_MODE)
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
        write_atomic(head_path(self._path), f"{self.head}\n".encode(), _MODE, follow=False)
        self.records.append(made)

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def head_path(path: Path) -> Path:
    """Return the path of the file with the hash of a log's last line."""
    return path.with_suffix(".head")


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
    head, before, count = "", "", 0
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
            head, before, count = _hash(content), head, number
            yield record, head
    _check_head(path, head, before, count)


def _check_head(path: Path, head: str, before: str, count: int) -> None:
    """Check that the last line is the one that was written last; a power cut may leave its hash unwritten."""
    beside = head_path(path)
    try:
        noted = beside.read_text("ascii").strip()
    except FileNotFoundError:
        noted = ""
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{beside}: cannot be read: {error}") from error
    if noted == head or (noted == before and count):
        return
    if not noted:
        raise StorageError(f"{beside}: is gone; it has the hash of the last line of {path.name}")
    raise StorageError(
        f"{path}: its last lines were changed or removed: {beside.name} has the hash of another one"
    )
