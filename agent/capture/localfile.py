"""Files and folders that a source names: where what the system says of them becomes a `SourceError`."""

from __future__ import annotations

import os
from pathlib import Path

from agent.capture.uri import Address
from agent.errors import SourceError, reason_of

SCHEMES = ("file", "dir", "wav")
"""Schemes of sources that are files or folders."""


def status(address: Address) -> os.stat_result | None:
    """Return the status of the file or folder of a source; None: there is none.

    Raises:
        SourceError: it cannot be looked at; its cause is a PermissionError where a right is missing.
    """
    try:
        return Path(address.target).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL character
        raise SourceError(f"{address.shown}: cannot be read: {reason_of(error)}") from error


def exists(address: Address) -> bool:
    """Return whether the file or folder of a source is there.

    Raises:
        SourceError: see `status`.
    """
    return status(address) is not None
