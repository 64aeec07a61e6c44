"""Surveys: what was measured of a model on this board, kept until something that it depends on changes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from agent.circumstances import Circumstances, Seen, circumstances
from agent.compute.infer.finding import Found, candidates
from agent.compute.infer.measure import Measured
from agent.compute.infer.selection import Verdict, decide, survey
from agent.config import SelectionConfig
from agent.errors import NO_JSON, StorageError
from agent.golden import golden
from agent.health.board import read_board
from agent.health.machine import Busy
from agent.manifest import Model
from agent.storage.verdicts import Verdicts

log = logging.getLogger(__name__)

_VERSION = 1
"""Of what is measured and how: another one makes every survey old."""


class Survey(Struct, frozen=True):
    """What was measured.

    Attributes:
        version: see the module.
        circumstances: that it depends on.
        files: of the candidates, as they were found.
        measured: everything that was tried, and what was found missing.
        at: when, UTC.
        busy: share of the processor that others used meanwhile, 0..1: above a quarter or so, times say little.
    """

    version: int
    circumstances: Circumstances
    files: dict[str, Seen]
    measured: tuple[Measured, ...]
    at: datetime
    busy: float


class Surveys:
    """Of the models of this board."""

    def __init__(self, verdicts: Verdicts, selection: SelectionConfig) -> None:
        self._verdicts, self.selection = verdicts, selection

    def found(self) -> list[Found]:
        """What may run models besides the CPU, as far as the configuration allows.

        Raises:
            BackendError: a candidate of the configuration is none.
        """
        allowed = self.selection.candidates
        return [] if allowed == () else candidates(allowed or ())

    def known(self, model: Model, found: Sequence[Found]) -> Survey | None:
        """The survey of this model that still holds.

        One that is damaged, or that something has changed since, is none; the log says so.
        """
        before = self._read(model)
        if before is None:
            return None
        now, _ = circumstances(model, found, self._threads_max, before.files)
        if different := before.circumstances.differences(now):
            log.info("%s: %s changed since it was measured", model.path, ", ".join(different))
            return None
        return before

    def make(self, model: Model, found: Sequence[Found], progress: Callable[[str], None]) -> Survey:
        """Measure, and keep it. What cannot be kept is said, and used all the same.

        Args:
            model: to be run.
            found: by `found`.
            progress: is told what is measured next; what it raises ends the survey.

        Raises:
            ModelError, BackendError: not even the CPU runs the model.
        """
        now, files = circumstances(model, found, self._threads_max, {})
        busy = Busy()
        measured = survey(model, found, self._threads_max, inputs=golden(model), progress=progress)
        made = Survey(_VERSION, now, files, measured, datetime.now(UTC), round(busy.others(), 3))
        try:
            self._verdicts.write(model.manifest.name, _key(model), msgspec.json.encode(made))
        except StorageError as error:
            log.warning("%s; it will be measured again after the next start", error)
        return made

    def verdict(self, made: Survey, found: Sequence[Found], threads: int = 0) -> Verdict:
        """What is best, see `decide`."""
        return decide(made.measured, found, self.selection.by, threads)

    @property
    def _threads_max(self) -> int:
        return min(self.selection.threads_max, read_board().cores)

    def _read(self, model: Model) -> Survey | None:
        name, key = model.manifest.name, _key(model)
        try:
            content = self._verdicts.read(name, key)
            made = msgspec.json.decode(content, type=Survey) if content else None
        except (StorageError, *NO_JSON) as error:
            log.warning("%s: damaged, so it is measured anew: %s", self._verdicts.path(name, key), error)
            return None
        if made is None or made.version != _VERSION:
            return None
        return made if any(one.name == "cpu" and not one.refused for one in made.measured) else None


def _key(model: Model) -> str:
    rungs = " ".join(rung.name for rung in model.manifest.rungs)
    return hashlib.sha256(f"{model.sha256} {rungs}".encode()).hexdigest()
