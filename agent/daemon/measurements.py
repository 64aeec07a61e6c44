"""Surveys: what was measured of a model on this board, kept until something that it depends on changes."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent import __version__
from agent.board.identity import read_board
from agent.board.proc import read_memory
from agent.board.thermal import Busy
from agent.compute.infer.choice import Measurement, Selection, decide
from agent.compute.infer.delegates import DelegateProbe, probe_delegates
from agent.compute.infer.litert import load_runtime, runtime_version
from agent.compute.infer.session import BackendSpec
from agent.compute.infer.vetting.vetting import HOLDS_S, identity
from agent.compute.manifest import Model
from agent.config.device import SelectionConfig
from agent.errors import NO_JSON, StorageError, reason_of
from agent.models.library import golden
from agent.storage.files import SAFE, STATE_MODE, check_kind, open_replacement, read_regular
from agent.text import plain

# What a measurement depends on: when any of it changes, the measurement is of another board.


class FileStamp(Struct, frozen=True):
    """A file whose content is known for as long as the rest stays.

    Attributes:
        size: bytes. modified_ns, changed_ns, inode: as `stat` tells.
        sha256: of the content; empty: it cannot be read.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha256: str


class MeasurementKey(Struct, frozen=True):
    """Of a measurement.

    Attributes:
        model: sha256 of its file.
        variants: that may run.
        golden: what its manifest says of golden inputs.
        runtime: name and version.
        candidates: by name, how each is opened and the sha256 of all its files.
        threads_max: with how many the CPU was tried.
        kernel, cpu: of the board; cores: that could be used.
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
        """Names of what is not the same."""
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]


def circumstances(
    model: Model, found: Sequence[DelegateProbe], threads_max: int, files: Mapping[str, FileStamp]
) -> tuple[MeasurementKey, dict[str, FileStamp]]:
    """Those of now.

    Args:
        model: to be run.
        found: what may run it.
        threads_max: see `MeasurementKey`.
        files: known from before; those that look the same are not read again.

    Returns:
        the circumstances, and what is known of the files now.
    """
    board = read_board()
    now = {path: _seen(Path(path), files.get(path)) for one in found for path in one.parts}
    golden = model.manifest.golden
    return MeasurementKey(
        model.sha256,
        tuple(variant.name for variant in model.manifest.variants),
        f"{' '.join(golden.files)} {golden.tolerance}",
        runtime_version(load_runtime()[0]),
        {one.name: _digest(one, now) for one in found if one.plan is not None},
        threads_max,
        board.kernel,
        f"{board.cpu}; {hashlib.sha256(' '.join(board.features).encode()).hexdigest()[:16]}",
        board.cores,
    ), now


def _digest(found: DelegateProbe, files: Mapping[str, FileStamp]) -> str:
    assert found.plan is not None
    settings = " ".join(f"{key}={value}" for key, value in found.plan.settings.items())
    parts = [found.plan.library, settings, *(f"{path} {files[path].sha256}" for path in found.parts)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _seen(path: Path, before: FileStamp | None) -> FileStamp:
    try:
        stat = path.stat()
        now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if before is not None and now == (before.size, before.modified_ns, before.changed_ns, before.inode):
            return before
        with path.open("rb") as file:
            return FileStamp(*now, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return FileStamp(0, 0, 0, 0, "")


# What was measured of models on this board, a small file for each in the state folder.
#
# Root may write here for another user, whose folder it is and who may put links into it: none is followed.

_LARGEST = 1024**2


class MeasurementFiles:
    """The files. Each is replaced as a whole, so that two processes may write the same."""

    def __init__(self, state: Path, folder: str = "verdicts") -> None:
        """Nothing is created before the first is written.

        Args:
            state: the state folder.
            folder: name of the folder in it.
        """
        self._state, self._folder = state, state / folder
        self._known: dict[tuple[str, str], bytes] = {}

    def read(self, model: str, key: str) -> bytes:
        """What was written last; empty: nothing.

        Args:
            model: its name, for people who look into the folder.
            key: hex digits that tell it from others of that name.

        Raises:
            StorageError: it is there and cannot be read, is far too large, is no file, or is another user's.
        """
        path = self.path(model, key)
        try:
            with _opened(self._state) as state, _inside(state, self._folder) as folder:
                owners = {0, os.geteuid(), os.fstat(state).st_uid}
                content = self._known[model, key] = read_regular(path, _LARGEST, folder, owners)
                return content
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {reason_of(error)}") from error

    def write(self, model: str, key: str, content: bytes) -> None:
        """Replace it, and give it to the user whose the state folder is. The state folder is created if need be.

        Raises:
            StorageError: it cannot be written; what was there is still there.
        """
        path = self.path(model, key)
        try:
            self._state.mkdir(mode=0o750, parents=True, exist_ok=True)
            with _opened(self._state) as state:
                owner = os.fstat(state)
                created = _created(state, self._folder.name)
                with _inside(state, self._folder) as folder:
                    if created and _is_empty(folder):
                        _give(folder, owner)
                    new = f".{path.name}.{os.getpid()}.tmp"
                    with open_replacement(path, STATE_MODE, folder=folder, temporary=new) as file:
                        _give(file.fileno(), owner)
                        file.write(content)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {reason_of(error)}") from error
        self._known[model, key] = content

    def write_anew(self) -> None:
        """Write again what was read or written since the start: the folder was deleted.

        Raises:
            StorageError: one cannot be written.
        """
        for (model, key), content in list(self._known.items()):
            self.write(model, key, content)

    def path(self, model: str, key: str) -> Path:
        """Where it lies."""
        return self._folder / f"{re.sub(r'[^A-Za-z0-9_-]', '-', model)[:60]}-{key[:16]}.json"


@contextmanager
def _opened(state: Path) -> Iterator[int]:
    """The state folder, a descriptor. It may be a link, but for root not one that somebody else has put there."""
    if os.geteuid() == 0 and state.is_symlink() and state.lstat().st_uid != 0:
        raise StorageError(f"{state}: is a link of another user, which root does not follow: name its target")
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _inside(state: int, path: Path) -> Iterator[int]:
    """The folder of the verdicts, a descriptor."""
    check_kind(os.stat(path.name, dir_fd=state, follow_symlinks=False), stat.S_IFDIR, path)
    descriptor = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | SAFE, dir_fd=state)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _created(state: int, folder: str) -> bool:
    try:
        os.mkdir(folder, 0o750, dir_fd=state)
    except FileExistsError:
        return False
    os.fsync(state)
    return True


def _is_empty(folder: int) -> bool:
    """Whether it is the one that was just created, or at least none that hides something from the new owner."""
    with os.scandir(folder) as inside:
        return not any(inside)


def _give(descriptor: int, owner: os.stat_result) -> None:
    """What root measures is for the daemon, whose the state folder is."""
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


log = logging.getLogger(__name__)

_VERSION = 3
"""Of what is measured and how: another one makes every survey old."""


class StoredMeasurement(Struct, frozen=True):
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
    circumstances: MeasurementKey
    files: dict[str, FileStamp]
    measured: tuple[Measurement, ...]
    at: datetime
    busy: Annotated[float, Meta(ge=0.0, le=1.0)]


class StoredMeasurements:
    """Of the models of this board."""

    def __init__(self, verdicts: MeasurementFiles, selection: SelectionConfig) -> None:
        self._verdicts, self.selection = verdicts, selection

    def found(self) -> list[DelegateProbe]:
        """What may run models besides the CPU, as far as the configuration allows.

        Raises:
            BackendError: a candidate of the configuration is none.
        """
        allowed = self.selection.candidates
        return [] if allowed == () else probe_delegates(allowed or ())

    def load_valid(self, model: Model, found: Sequence[DelegateProbe]) -> StoredMeasurement | None:
        """The survey of this model that still holds.

        One that is damaged, or that something has changed since, is none; the log says so.
        """
        try:
            return self.load(model, found)
        except StorageError as error:
            log.warning("%s; it is measured anew", error)
            return None

    def load(self, model: Model, found: Sequence[DelegateProbe]) -> StoredMeasurement | None:
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

    def measure_and_store(
        self, model: Model, found: Sequence[DelegateProbe], progress: Callable[[str], None]
    ) -> StoredMeasurement:
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

    def measure(
        self, model: Model, found: Sequence[DelegateProbe], progress: Callable[[str], None]
    ) -> StoredMeasurement:
        """The same, without keeping it."""
        from agent.compute.infer.benchmark import survey

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
        return StoredMeasurement(_VERSION, now, files, measured, datetime.now(UTC), round(busy.others(), 3))

    def keep(self, model: Model, made: StoredMeasurement) -> None:
        """Write it, for the next start.

        Raises:
            StorageError: it cannot be written.
        """
        self._verdicts.write(model.manifest.name, _key(model), msgspec.json.encode(made))

    def write_anew(self) -> None:
        """Write again what is known, see `MeasurementFiles.write_anew`."""
        try:
            self._verdicts.write_anew()
        except StorageError as error:
            log.warning("%s; it will be measured again after the next start", error)

    def verdict(self, made: StoredMeasurement, found: Sequence[DelegateProbe], threads: int = 0) -> Selection:
        """What is best, see `decide`."""
        return decide(made.measured, found, self.selection.by, threads)

    @property
    def _threads_max(self) -> int:
        return min(self.selection.threads_max, read_board().cores)

    def _read(self, model: Model) -> StoredMeasurement | None:
        name, key = model.manifest.name, _key(model)
        content = self._verdicts.read(name, key)
        try:
            made = msgspec.json.decode(content, type=StoredMeasurement) if content else None
            if made is None or made.version != _VERSION:
                return None
            why = _implausible(made)
        except NO_JSON as error:
            why = str(error)
        if why:
            raise StorageError(f"{self._verdicts.path(name, key)}: damaged: {why}")
        return made


def _implausible(made: StoredMeasurement) -> str:
    """Why this was never measured; empty if it may have been."""
    cpu, most = BackendSpec().backend, made.circumstances.threads_max
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
    variants = " ".join(variant.name for variant in model.manifest.variants)
    return hashlib.sha256(f"{model.sha256} {variants}".encode()).hexdigest()


# Outcomes of vetting, kept in the state folder: a model that ran once on this board is opened at once.
#
# An outcome holds for the bytes of a model, the versions of Vedette and of the runtime, and the processor. One
# that speaks against a model holds for a day: a failing memory or an overheated board may have been the reason.

_VETTED_VERSION = 1
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


class VettingRecord:
    """The outcomes of one board; see `agent.compute.infer.vetting.vetting.Record`. Any thread may use it."""

    def __init__(self, state: Path) -> None:
        """Nothing is read or created before it is asked for.

        Args:
            state: the state folder.
        """
        self._files, self._said = MeasurementFiles(state, _FOLDER), False

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
        if kept is None or (kept.version, kept.about) != (_VETTED_VERSION, about):
            return None
        if kept.reason and not timedelta() <= datetime.now(UTC) - kept.at < _HOLDS:
            return None
        return plain(kept.reason)

    def write(self, model: Model, reason: str) -> None:
        """Keep an outcome. Where the disk refuses, the model is tried again after the next start."""
        name, about = model.manifest.name, _about(model)
        kept = _Kept(_VETTED_VERSION, about, model.path, datetime.now(UTC), plain(reason)[:_LONGEST])
        try:
            self._files.write(name, about, msgspec.json.encode(kept))
        except StorageError as error:
            self._say(f"{error}; new models are tried again after the next start")

    def write_anew(self) -> None:
        """Write again what is known, see `MeasurementFiles.write_anew`."""
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
