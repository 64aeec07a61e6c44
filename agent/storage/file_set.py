"""Write several files that belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from agent.errors import StorageError, reason_of
from agent.storage.files import open_replacement, refuse_special, sync_folder


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace files, all of them or, if the disk refuses one, none.

    All contents are on the disk before the first rename. A power cut between two renames leaves the first
    files of the mapping new and the others as they were: the file that makes the set valid comes last.

    Args:
        files: whole contents by path, in the order in which they are renamed. Folders exist; links are followed.

    Raises:
        StorageError: a file cannot be written; files that were not there before are removed again.
    """
    targets: dict[Path, bytes] = {}
    for path, data in files.items():
        refuse_special(path, StorageError)
        targets[_resolved(path)] = data
    created = [path for path in targets if not path.exists()]
    try:
        _replace(targets)
    except BaseException as error:
        for path in created:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            told = f"{next(iter(files)).parent}: cannot be written to: {reason_of(error)}"
            raise StorageError(told) from error
        raise


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a RuntimeError: links that lead to each other
        raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error


def _replace(files: Mapping[Path, bytes]) -> None:
    with ExitStack() as renames:  # contexts end in the reverse order
        for path, data in reversed(list(files.items())):
            file = renames.enter_context(open_replacement(path, durable=False))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for folder in {path.parent for path in files}:
        sync_folder(folder)
