"""Outcomes of vetting, kept in the state folder: a model that ran once on this board is opened at once.

An outcome holds for the bytes of a model, the versions of Vedette and of the runtime, and the processor. One that
speaks against a model holds for a day: a failing memory or an overheated board may have been the reason.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent import __version__
from agent.compute.infer.vetting import HOLDS_S, identity
from agent.errors import NO_JSON, StorageError
from agent.health.board import read_board
from agent.manifest import Model
from agent.plaintext import plain
from agent.storage.verdicts import Verdicts

log = logging.getLogger(__name__)

_VERSION = 1
"""Of this format and of what is run: another one makes every outcome old."""
_HOLDS = timedelta(seconds=HOLDS_S)
_LONGEST = 500
"""Characters of a reason."""
_FOLDER = "vetted"
_RUNTIMES = ("ai-edge-litert", "tflite-runtime")


class _Kept(Struct, frozen=True):
    """An outcome.

    Attributes:
        version: see the module.
        about: what it holds for, a digest.
        model: path of the model. at: when it was tried, UTC: both for people.
        reason: why it cannot be used; empty: it runs.
    """

    version: int
    about: str
    model: str
    at: Annotated[datetime, Meta(tz=True)]
    reason: Annotated[str, Meta(max_length=_LONGEST)] = ""


class Vetted:
    """The outcomes of one board; see `agent.compute.infer.vetting.Record`. Any thread may use it."""

    def __init__(self, state: Path) -> None:
        """Nothing is read or created before it is asked for.

        Args:
            state: the state folder.
        """
        self._files, self._said = Verdicts(state, _FOLDER), False

    def read(self, model: Model) -> str | None:
        """Give what is known of a model: why it cannot be used; empty: it runs; None: it is to be tried."""
        name, about = model.manifest.name, _about(model)
        try:
            content = self._files.read(name, about)
            kept = msgspec.json.decode(content, type=_Kept) if content else None
        except (StorageError, *NO_JSON) as error:
            path = self._files.path(name, about)
            self._say(f"{path}: {str(error).removeprefix(f'{path}: ')}; {model.path} is tried again")
            return None
        if kept is None or (kept.version, kept.about) != (_VERSION, about):
            return None
        if kept.reason and not timedelta() <= datetime.now(UTC) - kept.at < _HOLDS:
            return None
        return plain(kept.reason)

    def write(self, model: Model, reason: str) -> None:
        """Keep an outcome. Where the disk refuses, the model is tried again after the next start."""
        name, about = model.manifest.name, _about(model)
        kept = _Kept(_VERSION, about, model.path, datetime.now(UTC), plain(reason)[:_LONGEST])
        try:
            self._files.write(name, about, msgspec.json.encode(kept))
        except StorageError as error:
            self._say(f"{error}; new models are tried again after the next start")

    def write_anew(self) -> None:
        """Write again what is known, see `Verdicts.write_anew`."""
        try:
            self._files.write_anew()
        except StorageError as error:
            self._say(f"{error}; new models are tried again after the next start")

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s", text)


def _about(model: Model) -> str:
    return hashlib.sha256("\n".join(map(str, (*identity(model), *_here()))).encode()).hexdigest()


@functools.cache
def _here() -> tuple[str, ...]:
    """What an outcome depends on besides the model, none of which changes while this process runs."""
    board = read_board()
    features = hashlib.sha256(" ".join(board.features).encode()).hexdigest()
    return __version__, *map(_installed, _RUNTIMES), platform.machine(), board.cpu, features


def _installed(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""
