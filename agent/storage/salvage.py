"""Salvage: clips that the last run left half written are completed, or removed when nothing is in them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from agent.clips import Clip
from agent.errors import reason_of
from agent.storage.clipfile import repair
from agent.storage.shelf import folder_name, make_folder, parts_in

log = logging.getLogger(__name__)


def salvage(folder: Path, tell: Callable[[Clip], None]) -> None:
    """Look through a folder of clips, which is created if need be.

    Args:
        folder: of all clips.
        tell: called with each that was completed.

    Raises:
        OSError: the folder cannot be made or read, or a broken clip not be removed.
    """
    make_folder(folder)
    for part in parts_in(folder):
        _mend(part, tell)


def _mend(part: Path, tell: Callable[[Clip], None]) -> None:
    try:
        clip = repair(part)
        if clip is not None and folder_name(clip.occasion.stream) != part.parent.name:
            raise ValueError("it lies in another stream's folder")
    except ValueError as error:
        log.warning("clip %s: was cut off and is removed: %s", part, error)
        part.unlink(missing_ok=True)
    except OSError as error:
        log.warning("clip %s: was cut off and cannot be completed: %s", part, reason_of(error))
    else:
        if clip is not None:
            tell(clip)
