"""Results of measuring models on this board, kept in the state folder.

A measurement holds for the model, the runtime, the delegates and the board that it was made with.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.board.identity import read_board
from agent.board.proc import read_memory
from agent.board.processors import OtherLoad
from agent.compute.infer.benchmark import Measurement, Selection, decide, survey
from agent.compute.infer.delegates import DelegateProbe, probe_delegates
from agent.compute.infer.litert import load_runtime, runtime_version
from agent.compute.infer.session import CPU
from agent.compute.manifest import Model
from agent.config import SelectionConfig
from agent.errors import NO_JSON, StorageError
from agent.models.golden import golden
from agent.storage.state import MeasurementFiles
from agent.structs import from_json
from agent.text import plural

log = logging.getLogger(__name__)


class MeasurementKey(Struct, frozen=True):
    """Key of a measurement: everything that it depends on.

    Attributes:
        model: sha256 of the model's file.
        variants: that may run.
        golden: golden inputs and tolerance of the manifest.
        runtime: name and version.
        candidates: by name, a digest of the settings and files of each delegate.
        threads_max: most threads that the CPU was measured with.
        kernel: of the board.
        cpu: of the board, with a digest of its features.
        cores: that could be used.
    """

    model: str
    variants: tuple[str, ...]
    golden: str
    runtime: str
    candidates: dict[str, str]
    threads_max: int
    kernel: str
    cpu: str
    cores: int

    def differences(self, other: MeasurementKey) -> list[str]:
        """Return the names of the fields that differ."""
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]


def measurement_key(model: Model, found: Sequence[DelegateProbe], threads_max: int) -> MeasurementKey:
    """Return the key of a measurement made now."""
    board = read_board()
    golden = model.manifest.golden
    return MeasurementKey(
        model.sha256,
        tuple(variant.name for variant in model.manifest.variants),
        f"{' '.join(golden.files)} {golden.tolerance}",
        runtime_version(load_runtime()[0]),
        {one.name: _digest(one) for one in found if one.plan is not None},
        threads_max,
        board.kernel,
        f"{board.cpu}; {hashlib.sha256(' '.join(board.features).encode()).hexdigest()[:16]}",
        board.cores,
    )


def _digest(found: DelegateProbe) -> str:
    assert found.plan is not None
    settings = " ".join(f"{key}={value}" for key, value in found.plan.settings.items())
    parts = [found.plan.library, settings, *map(_stamp, found.parts)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(path: str) -> str:
    """Return what changes with a file: a driver is measured again when it was installed again."""
    try:
        stat = Path(path).stat()
    except OSError:
        return path
    return f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


_VERSION = 3
"""Version of the method of measuring; measurements of another version are void."""


class StoredMeasurement(Struct, frozen=True):
    """The measurement of one model.

    Attributes:
        version: of the method.
        circumstances: what the measurement depends on.
        measured: every candidate that was tried, or is missing on this board.
        at: when, UTC.
        busy: share of the processor that other processes used, 0..1; above about 0.25 the times are unreliable.
    """

    version: int
    circumstances: MeasurementKey
    measured: tuple[Measurement, ...]
    at: datetime
    busy: Annotated[float, Meta(ge=0.0, le=1.0)]


class StoredMeasurements:
    """Makes and keeps the measurements of the models of this board."""

    def __init__(self, files: MeasurementFiles, selection: SelectionConfig) -> None:
        self._files, self.selection = files, selection

    def delegates(self) -> list[DelegateProbe]:
        """Return the delegates of this board that the configuration allows. Raises BackendError."""
        allowed = self.selection.candidates
        return [] if allowed == () else probe_delegates(allowed or ())

    def load_valid(self, model: Model, found: Sequence[DelegateProbe]) -> StoredMeasurement | None:
        """Return the measurement of a model if it still holds; log why one does not."""
        try:
            return self.load(model, found)
        except StorageError as error:
            log.warning("%s; measuring again", error)
            return None

    def load(self, model: Model, found: Sequence[DelegateProbe]) -> StoredMeasurement | None:
        """Like `load_valid`, but raise StorageError if the stored measurement is damaged."""
        before = self._read(model)
        if before is None:
            return None
        now = measurement_key(model, found, self._threads_max)
        if different := before.circumstances.differences(now):
            log.info("%s: %s changed since it was measured", model.path, ", ".join(different))
            return None
        return before

    def measure_and_store(
        self, model: Model, found: Sequence[DelegateProbe], progress: Callable[[str], None]
    ) -> StoredMeasurement:
        """Measure a model and store the result. If it cannot be stored, log that and return it anyway.

        `progress` is called with a description before each candidate; an exception from it ends the measurement.

        Raises:
            ModelError, BackendError: not even the CPU runs the model.
        """
        made = self.measure(model, found, progress)
        try:
            self.store(model, made)
        except StorageError as error:
            log.warning("%s; measuring again after the next start", error)
        return made

    def measure(
        self, model: Model, found: Sequence[DelegateProbe], progress: Callable[[str], None]
    ) -> StoredMeasurement:
        """Like `measure_and_store`, without storing the result."""
        now = measurement_key(model, found, self._threads_max)
        busy = OtherLoad()
        measured = survey(
            model,
            found,
            self._threads_max,
            inputs=golden(model),
            spare_mb=spare_memory_mb(),
            software=False,
            progress=progress,
        )
        return StoredMeasurement(_VERSION, now, measured, datetime.now(UTC), round(busy.share(), 3))

    def store(self, model: Model, made: StoredMeasurement) -> None:
        """Write a measurement. Raises StorageError if that fails."""
        self._files.write(model.manifest.name, _key(model), msgspec.json.encode(made))

    def select(
        self, made: StoredMeasurement, found: Sequence[DelegateProbe], threads: int = 0, streams: int = 1
    ) -> Selection:
        """Select the best backend, see `decide`; several streams on the CPU share its cores."""
        best = decide(made.measured, found, self.selection.by, threads)
        share = max(1, read_board().cores // streams)
        if threads or best.cpu.threads <= share:
            return best
        return decide(made.measured, found, self.selection.by, share)

    @property
    def _threads_max(self) -> int:
        return min(self.selection.threads_max, read_board().cores)

    def _read(self, model: Model) -> StoredMeasurement | None:
        name, key = model.manifest.name, _key(model)
        content = self._files.read(name, key)
        try:
            made = from_json(content, StoredMeasurement) if content else None
        except NO_JSON as error:
            raise StorageError(f"{self._files.path(name, key)}: damaged: {error}") from error
        if made is None or made.version != _VERSION:
            return None
        if not _is_plausible(made):
            raise StorageError(f"{self._files.path(name, key)}: damaged: its figures cannot be true")
        return made


def _is_plausible(made: StoredMeasurement) -> bool:
    """Return True unless a damaged file would start threads that were never measured."""
    cpu = [one for one in made.measured if one.name == CPU and not one.refused and one.p50_ms > 0.0]
    most = made.circumstances.threads_max
    return any(one.threads > 0 for one in cpu) and all(0 <= one.threads <= most for one in made.measured)


def spare_memory_mb() -> float:
    """Return the memory that measuring may use, MB: half of what is available."""
    return read_memory().available_mb / 2.0


def _key(model: Model) -> str:
    variants = " ".join(variant.name for variant in model.manifest.variants)
    return hashlib.sha256(f"{model.sha256} {variants}".encode()).hexdigest()


def log_selection(model: Model, selected: Selection) -> None:
    """Log what each backend takes, and which is chosen."""
    by_cpu = selected.by == "energy"
    for one in selected.measured:
        what = f"{one.name} with {plural(one.threads, 'thread')}" if one.threads else one.name
        if one.p50_ms:
            cost = f"{one.cpu_ms:.2f} ms of CPU time" if by_cpu else f"{one.p50_ms:.2f} ms"
            log.info("%s: %s: %s%s", model.path, what, cost, f": {one.refused}" if one.refused else "")
        elif one.here:
            log.info("%s: %s: %s", model.path, what, one.refused)
    plan = selected.chosen
    on = f"the CPU with {plural(plan.threads, 'thread')}" if plan == selected.cpu else plan.backend
    log.info("%s: now runs on %s", model.path, on)
