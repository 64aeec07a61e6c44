"""A study that processes and machines share: trials are claimed, reported, and taken over from dead workers.

The study is Optuna's: a journal in a folder, which may be a shared one, or a database. A trial that is running
has a number that its worker counts up. If the number stays the same for `SearchTimings.stale_s`, by the clock of
the worker that watches, the trial fails, and one with the same parameters waits for the next worker. What its
training has reached goes along.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import optuna
from msgspec import Struct
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend
from optuna.trial import TrialState

from agent.errors import ConfigError, ModelError, StorageError, reason_of
from agent.optimise.recipe import SearchParameter
from agent.storage.files import storage_errors

JOURNAL = "study.journal"
PLACE = "the latency's place"
"""Name, in the identity of a study, of where latency is measured."""
_NAME, _WORKER = "vedette", "worker "
"""Name of our study, and how the names of attributes begin that workers leave in it."""
_DIRECTIONS = ("maximize", "minimize", "minimize")
"""Of accuracy, latency and size."""
_DRIVERS = ("grpc", "redis", "sqlalchemy")
"""Packages whose errors Optuna lets through."""
_GRPC_PORT, _GRPC_S = 13000, 10
"""Port of `optuna.storages.run_grpc_proxy_server`, and how long is waited for it, s."""
_DRAWS = 1000
_ATTEMPTS = 3
"""Workers that may die on a trial before it fails."""
_STARTUP = 10
"""Trials that are drawn at random before the sampler learns from them."""
_INHERITED = ("latency_ms", "size", "rungs")

optuna.logging.set_verbosity(optuna.logging.ERROR)


class SearchTimings(Struct, frozen=True):
    """Times of a search, s.

    Attributes:
        beat_s: between two signs of life of a worker.
        stale_s: after which a worker without signs of life counts as dead.
        poll_s: between two looks at the trials of others.
    """

    beat_s: float = 10.0
    stale_s: float = 60.0
    poll_s: float = 2.0


@contextmanager
def study_errors(location: str) -> Iterator[None]:
    """Raise StorageError for what goes wrong with the storage of a study."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{location}: the study cannot be read or written: {reason_of(error)}") from error
    except Exception as error:
        if isinstance(error, OptunaError) or type(error).__module__.partition(".")[0] in _DRIVERS:
            details = getattr(error, "details", None)
            told = details() if callable(details) else str(error.__cause__ or error).partition("\n")[0]
            raise StorageError(f"{location}: the study cannot be used: {told}") from error
        raise


def open_study(location: str, *, make: bool = False) -> Any:
    """Open a study.

    Args:
        location: a folder; or the address of a database that SQLAlchemy knows, such as `postgresql://user@host/name`
            or `sqlite:///file`, of Redis, `redis://host`, or of Optuna's own server, `grpc://host:port`.
        make: make it if there is none.

    Raises:
        StorageError: it cannot be read or written. ModelError: there is none.
    """
    with study_errors(location):
        try:
            storage = _storage(location, make=make)
            if not make:
                return optuna.load_study(study_name=_NAME, storage=storage)
            return optuna.create_study(
                study_name=_NAME, storage=storage, directions=_DIRECTIONS, load_if_exists=True
            )
        except KeyError as error:
            raise ModelError(f"{location}: there is no study") from error
        except (ValueError, TypeError, AssertionError) as error:
            raise StorageError(f"{location}: holds no study that can be read: {error}") from error


def _storage(location: str, *, make: bool) -> Any:
    if "://" in location:
        try:
            return _database(location)
        except ImportError as error:
            raise ModelError(f"{location}: needs pip install {error.name or error}") from error
        except Exception:
            return _database(location)  # another worker has made the same tables at the same instant
    path = Path(location, JOURNAL)
    if make:
        with storage_errors(f"{location}: the folder of the study cannot be made"):
            path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise ModelError(f"{location}: there is no study: {JOURNAL} is missing")
    backend = JournalFileBackend(str(path))
    _mend(path)
    return optuna.storages.JournalStorage(backend)


def _database(location: str) -> Any:
    scheme, _, place = location.partition("://")
    if scheme == "grpc":
        host, _, port = place.rstrip("/").partition(":")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is experimental
            found = optuna.storages.GrpcStorageProxy(host=host, port=int(port or _GRPC_PORT))
        found.wait_server_ready(timeout=_GRPC_S)
        return found
    if scheme in ("redis", "rediss"):
        return optuna.storages.JournalStorage(JournalRedisBackend(location))
    driver = location.replace("postgresql://", "postgresql+psycopg://", 1)
    return optuna.storages.RDBStorage(driver, engine_kwargs={"pool_pre_ping": True})


def _mend(path: Path) -> None:
    """Cut off a line that a full disk or a power cut has left unfinished.

    Raises:
        ValueError: it is no journal.
    """
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if (whole := content.rfind(b"\n") + 1) < len(content):
            os.truncate(path, whole)
        for line in content[:whole].splitlines()[-1:]:
            msgspec.json.decode(line)
    finally:
        lock.release()


class SearchTrial:
    """A trial that this process works on.

    Its methods raise Optuna's UpdateFinishedTrialError if another worker has taken it over and ended it, and
    ConfigError, which leaves it out of the study, if the study is one of another recipe: two workers that begin
    it at the same instant both believe that it is theirs.

    Attributes:
        number: of the trial.
        parameters: of the candidate, by name.
    """

    def __init__(self, study: Any, trial: Any, parameters: Mapping[str, Any], check: Callable[[], None]) -> None:
        self._study, self._trial, self._check = study, trial, check
        self.number, self.parameters = int(trial.number), dict(parameters)

    @property
    def fresh(self) -> bool:
        """True if it continues no other."""
        return "attempt" not in self._trial.user_attrs

    def drawn(self, sampler: Any) -> dict[str, Any]:
        """Return parameters that a sampler draws from the same ranges."""
        ranges = self._trial.distributions.items()
        return {name: sampler.sample_independent(self._study, self._trial, name, one) for name, one in ranges}

    def note(self, **facts: Any) -> None:
        """Store facts: numbers, texts, lists and tables of these."""
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)

    def noted(self, name: str, default: Any = None) -> Any:
        """Return a fact that was stored, also by a worker that this one takes over from."""
        return self._trial.user_attrs.get(name, default)

    def complete(self, values: Sequence[float]) -> None:
        """Report accuracy, latency and size."""
        self._end(TrialState.COMPLETE, list(values))

    def stop(self, reason: str) -> None:
        """Report that the candidate is not trained further."""
        self.note(reason=reason)
        self._end(TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        """Report that the candidate cannot be used."""
        self.note(reason=reason)
        self._end(TrialState.FAIL)

    def drop(self) -> None:
        """Leave the trial out of the study."""
        with suppress(UpdateFinishedTrialError):
            self._tell(TrialState.FAIL)

    def _end(self, state: Any, values: Sequence[float] | None = None) -> None:
        try:
            self._check()
        except ConfigError:
            self.drop()
            raise
        self._tell(state, values)

    def _tell(self, state: Any, values: Sequence[float] | None = None) -> None:
        try:
            self._study.tell(self._trial, values, state=state)
        except ValueError as error:
            raise UpdateFinishedTrialError(str(error)) from error

    @contextmanager
    def signs_of_life(self, every_s: float) -> Iterator[None]:
        """Show others that this worker lives."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended, every_s), name="search-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat(self, ended: threading.Event, every_s: float) -> None:
        count = 0
        while not ended.wait(every_s):
            count += 1
            try:
                self.note(beat=count)
            except (OSError, OptunaError):
                return  # the worker meets it, too


class SearchStudy:
    """A study as one worker sees it."""

    def __init__(
        self,
        location: str,
        parameters: Mapping[str, SearchParameter],
        seed: int,
        timings: SearchTimings = SearchTimings(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or make a study. Raises as `open_study`."""
        self._clock = clock
        self.location, self._parameters, self._timings = location, parameters, timings
        self._study = open_study(location, make=True)
        self._me = f"{socket.gethostname()}:{os.getpid()}"
        self._identity: Mapping[str, str] = {}
        self._seen: dict[int, tuple[Any, float]] = {}
        self._exhausted = False
        number = sum(name.startswith(_WORKER) for name in self._study.user_attrs)
        self._study.set_user_attr(f"{_WORKER}{self._me}", number)
        self._random = optuna.samplers.RandomSampler(seed + number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in Optuna 4 it is experimental
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed + number, n_startup_trials=_STARTUP, constant_liar=True
            )

    def join(self, identity: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """State what this worker searches, or check that it is what the others search.

        A study without a trial becomes this worker's.

        Args:
            identity: all that must be the same for every worker, as texts by name.
            facts: for those who read the study.

        Raises:
            ConfigError: another worker searches something else; the message names the difference.
        """
        self._identity = identity
        if not self.trials():
            for name, value in facts.items():
                self._study.set_user_attr(name, value)
            self._study.set_user_attr("identity", dict(identity))
        self.check()

    def check(self) -> None:
        """Check that the study still is what this worker searches; raises as `join`."""
        identity = self._identity
        then: dict[str, str] = self._study.user_attrs.get("identity", {})
        for name in (*identity, *then):
            if identity.get(name) != then.get(name):
                was, now = (str(one.get(name, "not there")) for one in (then, identity))
                raise ConfigError(f"{self.location}: {_difference(name, was, now)}, or another --study")

    def trials(self) -> list[Any]:
        """Return all trials that count, as Optuna has them: not those that are continued by others."""
        return [one for one in self._study.get_trials(deepcopy=False) if counts(one)]

    def claim(self, limit: int | None) -> SearchTrial | None:
        """Return a trial to work on; None: there is none now, or for ever if no other worker has one.

        Args:
            limit: number of trials of the study; None: no limit.
        """
        self._take_over()
        trials = self.trials()
        waits = any(one.state == TrialState.WAITING for one in trials)
        if not waits and (self._exhausted or (limit is not None and len(trials) >= limit)):
            return None
        claimed = self._ask()
        if not claimed.fresh:
            return claimed
        before = [one for one in self.trials() if one.number < claimed.number]
        if limit is not None and len(before) >= limit:
            claimed.drop()
            return None
        if all(one.params != claimed.parameters for one in before):
            return claimed
        claimed.drop()
        return self._untried(claimed, limit)

    def others_run(self) -> bool:
        """Return True if a trial runs or waits."""
        return any(not one.state.is_finished() for one in self.trials())

    def repeat(self, trial: SearchTrial) -> None:
        """Put a trial back whose work was interrupted."""
        self._continue(self._frozen(trial.number), attempt=trial.noted("attempt", 1))

    def _ask(self) -> SearchTrial:
        trial = self._study.ask()
        trial.set_user_attr("worker", self._me)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ranges that are no multiple of their step
            found = {name: suggest(trial, name, one) for name, one in self._parameters.items()}
        return SearchTrial(self._study, trial, found, self.check)

    def _untried(self, claimed: SearchTrial, limit: int | None) -> SearchTrial | None:
        """Claim a random candidate that none has tried; None: all have been."""
        tried = [one.params for one in self.trials()]
        for _ in range(_DRAWS):
            drawn = claimed.drawn(self._random)
            if drawn not in tried:
                self._study.enqueue_trial(drawn)
                return self.claim(limit)
        self._exhausted = True
        return None

    def _frozen(self, number: int) -> Any:
        return next(one for one in self._study.get_trials(deepcopy=False) if one.number == number)

    def _take_over(self) -> None:
        """Put back the trials of workers that have died."""
        running = [one for one in self._study.get_trials(deepcopy=False) if one.state == TrialState.RUNNING]
        for trial in running:
            if self._is_dead(trial):
                self._continue(trial, attempt=trial.user_attrs.get("attempt", 1) + 1)

    def _is_dead(self, trial: Any) -> bool:
        now, sign = self._clock(), trial.user_attrs.get("beat")
        if trial.number not in self._seen or self._seen[trial.number][0] != sign:
            self._seen[trial.number] = sign, now
        return now - self._seen[trial.number][1] > self._timings.stale_s

    def _continue(self, trial: Any, attempt: int) -> None:
        """Let a trial fail, and let one with its parameters wait. If two workers do it, one of them succeeds."""
        try:
            self._study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return
        if set(trial.params) != set(self._parameters):
            return
        kept = {name: trial.user_attrs[name] for name in _INHERITED if name in trial.user_attrs}
        kept["attempt"] = attempt
        if attempt <= _ATTEMPTS:
            self._study.enqueue_trial(dict(trial.params), kept)
            return
        told = {"worker": trial.user_attrs.get("worker"), "reason": f"its worker has ended {_ATTEMPTS} times"}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=kept | told,
            )
        )


def _difference(name: str, was: str, now: str) -> str:
    """Say in what a worker and its study differ, and what it can do."""
    if name == PLACE:
        return (
            f"this study measures latency on {was}, and this worker would on {now}, whose times cannot be "
            "compared: give the same --board, or work on the same machine"
        )
    what = "another recipe" if name.startswith("[") else "other examples"
    return f"this study was begun with {what}: {name} was {was}, and is {now} here: use the same"


def counts(trial: Any) -> bool:
    """Return True if a trial counts: False for one that another continues."""
    return trial.state != TrialState.FAIL or "reason" in trial.user_attrs


def suggest(trial: Any, name: str, parameter: SearchParameter) -> Any:
    """Return a value that Optuna proposes."""
    if parameter.choices:
        return trial.suggest_categorical(name, list(parameter.choices))
    if parameter.whole:
        return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log)
    return trial.suggest_float(
        name, float(parameter.low or 0), float(parameter.high or 0), step=parameter.step, log=parameter.log
    )
