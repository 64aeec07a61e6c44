"""Outcomes of vetting models on this board, kept in the state folder.

An outcome holds for the bytes of a model, the versions of Vedette and of the runtime, and the processor. A
refusal lapses after a day, since failing memory or an overheated board may have caused it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent import __version__
from agent.board.identity import read_board
from agent.compute.infer.litert import RUNTIMES, Runtime, runtime_version
from agent.compute.infer.vetting import HOLDS_S, identity
from agent.compute.manifest import Model
from agent.errors import NO_JSON, StorageError
from agent.storage.state import MeasurementFiles
from agent.structs import from_json
from agent.text import plain

log = logging.getLogger(__name__)
_VERSION = 2
"""Version of the format and of the vetting; outcomes of another version are void."""
_HOLDS = timedelta(seconds=HOLDS_S)
_REASON_MAX = 500
"""Most characters of a reason."""
_FOLDER = "vetted"


class _Outcome(Struct, frozen=True):
    """Outcome of vetting one model: the reason why it cannot be used, empty if it runs.

    It holds as long as `about`, the digest of what it depends on, is the same.
    """

    version: int
    about: str
    model: str
    at: Annotated[datetime, Meta(tz=True)]
    reason: Annotated[str, Meta(max_length=_REASON_MAX)] = ""


class VettingRecord:
    """Stored outcomes; see `agent.compute.infer.vetting.Record`. Any thread may use it."""

    def __init__(self, state: Path) -> None:
        self._files, self._has_failed = MeasurementFiles(state, _FOLDER), False

    def read(self, model: Model) -> str | None:
        """Return why a model cannot be used; empty: it runs; None: it must be vetted."""
        name, about = model.manifest.name, _digest_of(model)
        try:
            content = self._files.read(name, about)
            kept = from_json(content, _Outcome) if content else None
        except (StorageError, *NO_JSON) as error:
            path = self._files.path(name, about)
            self._log_once(f"{path}: {str(error).removeprefix(f'{path}: ')}; vetting {model.path} again")
            return None
        if kept is None or (kept.version, kept.about) != (_VERSION, about):
            return None
        if kept.reason and not timedelta() <= datetime.now(UTC) - kept.at < _HOLDS:
            return None
        return plain(kept.reason)

    def write(self, model: Model, reason: str) -> None:
        """Store an outcome. If that fails, the model is vetted again after the next start."""
        name, about = model.manifest.name, _digest_of(model)
        kept = _Outcome(_VERSION, about, model.path, datetime.now(UTC), plain(reason)[:_REASON_MAX])
        try:
            self._files.write(name, about, msgspec.json.encode(kept))
        except StorageError as error:
            self._log_once(f"{error}; new models are vetted again after the next start")

    def _log_once(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("%s", text)


def _digest_of(model: Model) -> str:
    return hashlib.sha256("\n".join(map(str, (*identity(model), *_environment()))).encode()).hexdigest()


@functools.cache
def _environment() -> tuple[str, ...]:
    """Describe what an outcome depends on besides the model; constant while this process runs."""
    board = read_board()
    features = hashlib.sha256(" ".join(board.features).encode()).hexdigest()
    return __version__, *map(_installed, RUNTIMES), platform.machine(), board.cpu, features


def _installed(name: Runtime) -> str:
    try:
        return runtime_version(name)
    except ImportError:
        return ""
