"""Runs a search: one worker of a study, which others may share."""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from optuna.exceptions import UpdateFinishedTrialError

from agent.errors import ConfigError, ModelError
from agent.optimise.evaluate import doubt_guesses
from agent.optimise.factory import find_factory
from agent.optimise.inputs import examples_path
from agent.optimise.recipe import Recipe, read_recipe
from agent.optimise.search.candidate import (
    Figures,
    Progress,
    SearchCandidate,
    SearchInterruptedError,
    SearchSpace,
    read_search_data,
)
from agent.optimise.search.latency import BoardMeter, LatencyMeter, LocalMeter
from agent.optimise.search.results import SearchResult, read_result
from agent.optimise.search.study import PLACE, SearchStudy, SearchTimings, SearchTrial, study_errors
from agent.storage.files import make_folder

_ALL_FAIL = 5
"""A search ends if so many candidates have failed, and no other has not."""
_QUIET: Progress = lambda _: None  # noqa: E731


class SearchRequest(Struct, frozen=True):
    """What `vedette optimise search` is asked to do.

    Attributes:
        recipe: path.
        study: see `open_study`.
        files: folder for networks; None: that of the study.
        trials: number of trials of the study; None: no limit.
        seconds: after which the search ends; None: no limit.
        board: see `BoardMeter`; empty: this machine.
        data: path of the examples; None: the recipe names it.
        rounds: see `time_ms`.
        timings: see `SearchTimings`.
        command: that repeats it, for reports.
    """

    recipe: Path
    study: str
    files: Path | None = None
    trials: int | None = None
    seconds: float | None = None
    board: str = ""
    data: Path | None = None
    rounds: int = 30
    timings: SearchTimings = SearchTimings()
    command: str = ""

    @property
    def folder(self) -> Path:
        """Folder for networks."""
        return self.files or Path(self.study)


def search(request: SearchRequest, progress: Progress = _QUIET, tell: Progress = _QUIET) -> SearchResult:
    """Work on a study until it has its number of trials, or the time is over.

    Args:
        request: see `SearchRequest`.
        progress: called with what is being done.
        tell: called with a line for each trial that has ended.

    Raises:
        ConfigError: the recipe cannot be used, or is not that of the study.
        ModelError: the space or the examples cannot be used, or all candidates fail.
        StorageError: the study or a network cannot be written. FleetError: the board cannot be asked.
    """
    worker = _Worker(request, progress, tell)
    with study_errors(request.study):
        worker.run()
    found = read_result(request.study)
    for line in worker.doubts(found):
        tell(line)
    return found


class _Worker:
    """One process of a search."""

    def __init__(self, request: SearchRequest, progress: Progress, tell: Progress) -> None:
        self._request, self._progress, self._tell = request, progress, tell
        recipe = read_recipe(request.recipe).recipe
        self._space = open_space(request, recipe)
        self._space.meter.check()  # before the study is begun with a board that is not there
        make_folder(request.folder)
        search = recipe.search
        with study_errors(request.study):
            self._study = SearchStudy(request.study, search.parameters, search.seed, request.timings)
            self._study.join(dict(_identity(self._space)), _facts(self._space))
        for line in (self._space.data.description, *self._space.data.seen.remarks):
            tell(line)
        self._end = None if request.seconds is None else time.monotonic() + request.seconds

    def run(self) -> None:
        """Work until there is nothing to do."""
        while self._time_is_left():
            self._study.check()
            self._check_failures()
            trial = self._study.claim(self._request.trials)
            if trial is not None:
                self._evaluate(trial)
            elif self._study.others_run():
                self._progress("waiting for the trials of other workers")
                time.sleep(self._request.timings.poll_s)
            else:
                return

    def doubts(self, found: SearchResult) -> tuple[str, ...]:
        """Return a line if the most accurate network is right hardly more often than one that guesses."""
        known = [one.accuracy for one in found.trials if one.accuracy is not None]
        return doubt_guesses(max(known), self._space.data.compared) if known else ()

    def _time_is_left(self) -> bool:
        return self._end is None or time.monotonic() < self._end

    def _evaluate(self, trial: SearchTrial) -> None:
        run = SearchCandidate(
            self._space, trial, lambda rung: self._others(trial, rung), self._progress, self._time_is_left
        )
        try:
            with trial.signs_of_life(self._request.timings.beat_s):
                run.run()
        except UpdateFinishedTrialError:
            self._tell(f"trial {trial.number}: another worker has taken it over")
        except SearchInterruptedError:
            self._study.repeat(trial)
        except ConfigError:  # the study is one of another recipe
            trial.drop()
            raise
        except BaseException:
            with suppress(Exception):  # the error that is on its way counts
                self._study.repeat(trial)
            raise
        else:
            self._tell(f"trial {trial.number}: {self._end_of(trial)}")

    def _end_of(self, trial: SearchTrial) -> str:
        if reason := trial.noted("reason"):
            return str(reason)
        size, latency = trial.noted("size") / 1e3, trial.noted("latency_ms")
        return f"{trial.noted('accuracy'):.2%}, {latency:.3g} ms, {size:.4g} kB"

    def _others(self, trial: SearchTrial, rung: str) -> list[Figures]:
        """Return the figures of all other trials that have finished a rung."""
        found = []
        for one in self._study.trials():
            facts = one.user_attrs
            if one.number != trial.number and rung in facts.get("rungs", {}):
                found.append(Figures(facts["rungs"][rung], facts["latency_ms"], facts["size"]))
        return found

    def _check_failures(self) -> None:
        ended = [one for one in self._study.trials() if one.state.is_finished()]
        failed = [one for one in ended if one.state.name == "FAIL"]
        if len(failed) >= _ALL_FAIL and len(failed) == len(ended):
            reason = failed[-1].user_attrs["reason"]
            raise ModelError(
                f"{self._space.source}: all of the first {len(failed)} candidates fail: {reason}; mend it, and "
                f"begin anew with another --study: {self._request.study} keeps nothing but these failures"
            )


def open_space(request: SearchRequest, recipe: Recipe) -> SearchSpace:
    """Read all that candidates are made of.

    Raises:
        ConfigError: the recipe lacks something. ModelError: the function or the examples cannot be used.
    """
    search = recipe.search
    if not search.space or not search.parameters:
        raise ConfigError(f"{request.recipe}: [search] needs space and parameters")
    file, _, name = search.space.rpartition(":")
    source = f"{request.recipe.parent / file}:{name}"
    build = find_factory(source)
    _check_parameters(build, source, list(search.parameters))
    data = read_search_data(examples_path(request.data, request.recipe, recipe), recipe)
    meter: LatencyMeter = LocalMeter(request.rounds)
    if request.board:
        meter = BoardMeter(request.board, data.manifest_keys)
    return SearchSpace(build, source, recipe, data, meter, request.folder, request.command)


def _check_parameters(build: Callable[..., Any], source: str, names: Sequence[str]) -> None:
    """Check that a function can be called with these keyword arguments."""
    try:
        signature = inspect.signature(build)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ModelError(f"{source}: does not fit [search.parameters] of the recipe: {error}") from error


def _identity(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """Yield all that must be the same for each worker of a study."""
    recipe, search = space.recipe, space.recipe.search
    file, _, name = space.source.rpartition(":")
    crc = zlib.crc32(Path(file).read_bytes())
    yield "[search] space", f"{Path(file).name}:{name}, CRC {crc:08x}"
    for key, value in msgspec.to_builtins(replace(search, parameters={}, space="")).items():
        if key not in ("parameters", "space"):
            yield f"[search] {key}", str(value)
    for key, parameter in search.parameters.items():
        yield f"[search.parameters] {key}", _short(parameter)
    for key, value in msgspec.to_builtins(recipe.train).items():
        if key != "epochs":
            yield f"[train] {key}", str(value)
    yield "[quantise] examples", str(recipe.quantise.examples)
    yield "[data] held_out", str(recipe.data.held_out)
    yield "the set of examples", space.data.fingerprint
    yield PLACE, space.meter.place


def _short(parameter: Struct) -> str:
    stated = {
        name: value for name, value in msgspec.to_builtins(parameter).items() if value not in (None, [], False)
    }
    return str(stated)


def _facts(space: SearchSpace) -> dict[str, Any]:
    """Return what those who read the study need."""
    return {
        "budget": space.recipe.search.budget,
        "measured_on": space.meter.place,
        "examples": space.data.description,
    }
