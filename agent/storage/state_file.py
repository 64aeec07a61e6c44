"""Small files that are read at the start and replaced as a whole.

`StateFile` is durable. The order to run new models beside those in use is not: the updater leaves it in memory
for the daemon, and a power cut drops it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, reason_of
from agent.storage.files import STATE_MODE, make_folder, read_regular, sync_folder, write_atomic

_LARGEST = 1024**2
_ASIDE = ".damaged"


class StateFile:
    """A file in the state folder. After a power cut it holds the old content or the new."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the content; None: there is no file.

        Raises:
            StorageError: it cannot be read, is far too large, or is not a plain file.
        """
        try:
            return read_regular(self.path, _LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {reason_of(error)}") from error

    def write(self, content: bytes) -> None:
        """Replace the content; an empty content deletes the file.

        Raises:
            StorageError: the disk refuses; the old content is still there.
        """
        if content:
            write_atomic(self.path, content, STATE_MODE, follow=False)
            return
        try:
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be deleted: {reason_of(error)}") from error

    def set_aside(self) -> Path:
        """Keep a damaged file for people to look at, and return its new path.

        Its old name stays until another file is written: after a power cut, damage must not look like a missing
        file. What is not a plain file is moved.
        """
        aside = self.path.with_name(self.path.name + _ASIDE)
        with suppress(OSError):
            if stat.S_ISREG(self.path.lstat().st_mode):
                aside.unlink(missing_ok=True)
                os.link(self.path, aside)
            else:
                self.path.replace(aside)
        return aside


FILE = "vedette-update/shadow.json"
"""Path of the order below `/run`."""
_SHADOWORDER_LARGEST = 64 * 1024


Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""Limited, since the daemon is not trusted: JSON encoders cannot write a larger integer."""


class ShadowOrder(Struct, frozen=True):
    """Order to run new models beside those in use.

    Attributes:
        update: sha256 of the update's bundle.
        models: folder of the models in use, as configurations name it.
        candidates: folder of the new models; they belong to those of the same file name.
        every: compare one in `every` inferred pictures.
    """

    update: str
    models: str
    candidates: str
    every: Annotated[int, Meta(ge=1)] = 1


class ShadowReport(Struct, frozen=True):
    """Comparison of a stream's model with a new one that runs beside it; a part of `health.json`.

    Attributes:
        compared: inputs in which either model found something.
        agreement: mean F1 of one model's detections against the other's, 0..1; None without a comparison.
        infer_p95_ms: 95th percentile of the new model's latest inference times, ms; None: there were none.
        present_p95_ms: that of the stream's own model on the same inputs, ms.
        failed: why the new model stopped; empty: it runs.
    """

    compared: Count = 0
    agreement: float | None = None
    infer_p95_ms: float | None = None
    present_p95_ms: float | None = None
    failed: str = ""


def give(path: Path, order: ShadowOrder) -> None:
    """Write an order.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path.parent)
    write_atomic(path, msgspec.json.encode(order), follow=False, durable=False)
    try:  # independent of the operator's umask: the daemon is another user
        path.parent.chmod(0o755)
        path.chmod(0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made readable: {reason_of(error)}") from error


def take_back(path: Path) -> None:
    """Delete the order, if there is one.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be deleted: {reason_of(error)}") from error


def read(path: Path) -> ShadowOrder | None:
    """Return the order; None: there is none, or it is damaged."""
    try:
        return msgspec.json.decode(read_regular(path, _SHADOWORDER_LARGEST), type=ShadowOrder)
    except (OSError, StorageError, *NO_JSON):
        return None
