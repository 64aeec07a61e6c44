"""The place of clips: whether one can be saved there now, and if not, why."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from agent.config import StorageConfig
from agent.errors import StorageError, reason_of
from agent.storage.shelf import clips_in, is_tight

_PROBE = bytes(4096)


def check_writable(folder: Path) -> None:
    """Write a little into a file without a name, which is gone before it reaches the disk itself.

    Args:
        folder: that a clip is to lie in.

    Raises:
        StorageError: nothing can be written there, with the reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            if probe.write(_PROBE) < len(_PROBE):
                raise OSError(28, os.strerror(28))
    except OSError as error:
        raise StorageError(f"{folder}: clips cannot be saved there: {reason_of(error)}") from error


def check_room(folder: Path, config: StorageConfig, more: int, at: Path | None = None) -> None:
    """Whether more fits once every clip that is there has gone.

    Args:
        folder: of all clips.
        at: a folder on the same disk that is there, where `folder` need not be.
        config: what clips have to leave to others.
        more: bytes that are about to come.

    Raises:
        StorageError: it does not, or the folder cannot be read.
    """
    try:
        free = shutil.disk_usage(at or folder).free
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {reason_of(error)}") from error
    clips = sum(entry.bytes for entry in clips_in(folder))
    if why := is_tight(folder, config, free + clips, more):
        raise StorageError(why)
