"""Surveys: what was measured of a model on this board, kept until something that it depends on changes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.circumstances import Circumstances, Seen, circumstances
from agent.compute.infer.backend import Plan
from agent.compute.infer.finding import Found, candidates
from agent.compute.infer.measure import Measured
from agent.compute.infer.verdict import Verdict, decide
from agent.config import SelectionConfig
from agent.errors import NO_JSON, StorageError
from agent.golden import golden
from agent.health.board import read_board
from agent.health.machine import Busy
from agent.health.memory import read_memory
from agent.manifest import Model
from agent.storage.verdicts import Verdicts

log = logging.getLogger(__name__)

_VERSION = 3
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
    busy: Annotated[float, Meta(ge=0.0, le=1.0)]


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
        try:
            return self.kept(model, found)
        except StorageError as error:
            log.warning("%s; it is measured anew", error)
            return None

    def kept(self, model: Model, found: Sequence[Found]) -> Survey | None:
        """The same.

        Raises:
            StorageError: it is damaged.
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
        made = self.measure(model, found, progress)
        try:
            self.keep(model, made)
        except StorageError as error:
            log.warning("%s; it will be measured again after the next start", error)
        return made

    def measure(self, model: Model, found: Sequence[Found], progress: Callable[[str], None]) -> Survey:
        """The same, without keeping it."""
        from agent.compute.infer.selection import survey

        now, files = circumstances(model, found, self._threads_max, {})
        busy = Busy()
        measured = survey(
            model,
            found,
            self._threads_max,
            inputs=golden(model),
            spare_mb=spare_memory_mb(),
            software=False,
            progress=progress,
        )
        return Survey(_VERSION, now, files, measured, datetime.now(UTC), round(busy.others(), 3))

    def keep(self, model: Model, made: Survey) -> None:
        """Write it, for the next start.

        Raises:
            StorageError: it cannot be written.
        """
        self._verdicts.write(model.manifest.name, _key(model), msgspec.json.encode(made))

    def write_anew(self) -> None:
        """Write again what is known, see `Verdicts.write_anew`."""
        try:
            self._verdicts.write_anew()
        except StorageError as error:
            log.warning("%s; it will be measured again after the next start", error)

    def verdict(self, made: Survey, found: Sequence[Found], threads: int = 0) -> Verdict:
        """What is best, see `decide`."""
        return decide(made.measured, found, self.selection.by, threads)

    @property
    def _threads_max(self) -> int:
        return min(self.selection.threads_max, read_board().cores)

    def _read(self, model: Model) -> Survey | None:
        name, key = model.manifest.name, _key(model)
        content = self._verdicts.read(name, key)
        try:
            made = msgspec.json.decode(content, type=Survey) if content else None
            if made is None or made.version != _VERSION:
                return None
            why = _implausible(made)
        except NO_JSON as error:
            why = str(error)
        if why:
            raise StorageError(f"{self._verdicts.path(name, key)}: damaged: {why}")
        return made


def _implausible(made: Survey) -> str:
    """Why this was never measured; empty if it may have been."""
    cpu, most = Plan().backend, made.circumstances.threads_max
    for one in made.measured:
        if not (1 <= one.threads <= most if one.name == cpu else one.threads == 0):
            return f"it tells of {one.name[:60]!r} with {one.threads} threads, where at most {most} were tried"
        if not one.refused and not (one.here and one.p50_ms > 0.0):
            return f"it tells that {one.name[:60]!r} answers, and not in what time"
    if all(one.refused for one in made.measured if one.name == cpu):
        return "it does not tell that the CPU runs the model"
    return ""


def spare_memory_mb() -> float:
    """Memory that measuring may take: half of what could be had now, MB."""
    return read_memory().available_mb / 2.0


def _key(model: Model) -> str:
    rungs = " ".join(rung.name for rung in model.manifest.rungs)
    return hashlib.sha256(f"{model.sha256} {rungs}".encode()).hexdigest()
