"""The order to run new models beside those in use: who updates the board leaves it, and the daemon follows it.

It lies in memory: after a power cut there is none, and nothing runs beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, reason_of
from agent.storage.durable import make_folder, write_passing
from agent.storage.regular import read_regular

FILE = "vedette-update/shadow.json"
"""Below the folder for what runs, `/run`."""
_LARGEST = 64 * 1024


class ShadowOrder(Struct, frozen=True):
    """What is to run beside.

    Attributes:
        update: which update this is for: the sha256 of its bundle.
        models: folder of the models in use, as configurations name it.
        candidates: folder of the new ones; those of the same file name belong together.
        every: of the pictures that are inferred, each so many-th is compared.
    """

    update: str
    models: str
    candidates: str
    every: Annotated[int, Meta(ge=1)] = 1


def give(path: Path, order: ShadowOrder) -> None:
    """Leave an order.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path.parent)
    write_passing(path, msgspec.json.encode(order))
    try:  # whatever the umask of an operator: the daemon is another user
        path.parent.chmod(0o755)
        path.chmod(0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made readable: {reason_of(error)}") from error


def take_back(path: Path) -> None:
    """Drop the order, if there is one.

    Raises:
        StorageError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be deleted: {reason_of(error)}") from error


def read(path: Path) -> ShadowOrder | None:
    """The order that is there; None: there is none that can be followed."""
    try:
        return msgspec.json.decode(read_regular(path, _LARGEST), type=ShadowOrder)
    except (OSError, StorageError, *NO_JSON):
        return None
