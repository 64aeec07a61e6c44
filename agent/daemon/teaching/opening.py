"""Tell whether a stream can be taught, and read what it was taught before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union, cast

from agent.comms.reporter import Reporter
from agent.config import StreamConfig

if TYPE_CHECKING:
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.streams.perception import Perception
    from agent.daemon.teaching.states import StreamStates
    from agent.daemon.teaching.words import StreamWords

Taught = Union["StreamStates", "StreamWords"]


def may_be_taught(config: StreamConfig) -> bool:
    """Return True unless a stream inspects parts, infers parts of its pictures, or infers what is hidden."""
    shows_hidden = config.hides and not config.mask_model
    return not (config.inspection or config.shows_part or shows_hidden)


def known_values(name: str, config: StreamConfig, state: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of each state that a stream was taught, from the files below the daemon's state folder.

    Files of a stream that can be taught nothing now are kept, and do not count.
    """
    from agent.daemon.teaching.taught import FOLDER, stored_values

    return stored_values(state / FOLDER, name) if may_be_taught(config) else {}


def open_taught(
    name: str, config: StreamConfig, state: Path, opened: Perception, reporter: Reporter
) -> Taught | None:
    """Read what a stream was taught, see `known_values`; None: it can be taught nothing."""
    manifest = opened.model.manifest
    if not may_be_taught(config) or (manifest.audio is not None and not manifest.is_embedding):
        return None
    from agent.daemon.teaching.taught import FOLDER

    if manifest.audio is not None:
        from agent.daemon.teaching.words import StreamWords

        return StreamWords(name, state / FOLDER, cast("UtterancePerception", opened), reporter)
    from agent.daemon.teaching.states import StreamStates

    return StreamStates(name, state / FOLDER, cast("VideoPerception", opened), reporter)
