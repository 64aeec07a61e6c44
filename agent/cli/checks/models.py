"""What runs the models of this board best, as it was measured, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.compute.infer.backend import AUTO
from agent.compute.infer.finding import Found
from agent.compute.infer.measure import Measured
from agent.compute.infer.unprivileged import without_root
from agent.compute.infer.verdict import Verdict
from agent.config import Config
from agent.doctor.report import Finding
from agent.errors import StorageError, VedetteError
from agent.library import open_model_without_root
from agent.manifest import Model
from agent.plaintext import without_login
from agent.storage.models import bundled
from agent.storage.verdicts import Verdicts
from agent.surveys import Survey, Surveys
from agent.text import local_time

SECTION = "models on this hardware"
_BUSY = 0.25
"""Share of the processor: where others use more, what was measured says little."""
_FRESH = "vedette doctor --fresh measures it now"
_AGAIN = "measure again while nothing else runs on the board: sudo systemctl stop vedette; vedette doctor --fresh"

_MEASURE_S = 3600.0
"""For measuring all that may run a model, s: each device has minutes to open it."""


def findings(
    config: Config | None, state: Path, *, fresh: bool, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Finding]:
    """Each model whose backend is to be chosen, and how each candidate does.

    Args:
        config: whose streams name the models; None, or one without such streams: the bundled ones.
        state: the state folder.
        fresh: measure now, whatever is known, and keep it.
        progress: is told what is measured next.
    """
    surveys = Surveys(Verdicts(state), (config or Config()).selection)
    for name, rung in _models(config):
        try:
            model = open_model_without_root(name, rung)
        except VedetteError as error:
            yield _unusable(name, error, config)
            continue

        def tell(what: str, name: str = name) -> None:
            progress(f"{name}, {what}")

        yield from _of_model(surveys, name, model, fresh, tell)


def _of_model(
    surveys: Surveys, name: str, model: Model, fresh: bool, tell: Callable[[str], None]
) -> Iterator[Finding]:
    """What was measured of one model, or why nothing was."""
    try:
        found = surveys.found()
        made = _measured(surveys, model, found, tell) if fresh else surveys.kept(model, found)
    except StorageError as error:
        yield _unread(name, error)
    except VedetteError as error:
        yield Finding(SECTION, name, str(error), "problem", f"see why {name} cannot be used: {error}")
    else:
        if made is None:
            yield Finding(SECTION, name, f"not measured on this board, or something has changed since: {_FRESH}")
            return
        yield from of_survey(model, made, surveys.verdict(made, found), found)
        if fresh:
            yield from _kept(surveys, model, made)


def _measured(surveys: Surveys, model: Model, found: Sequence[Found], tell: Callable[[str], None]) -> Survey:
    return without_root(lambda: surveys.measure(model, found, tell), Survey, _MEASURE_S)


def _unusable(name: str, error: VedetteError, config: Config | None) -> Finding:
    """A problem once: the section of the configuration tells of the models that a configuration names."""
    if config is not None and config.streams:
        return Finding(SECTION, without_login(name), "cannot be used: see the section of the configuration")
    return Finding(SECTION, name, str(error), "problem", f"see why {name} cannot be used: {error}")


def _unread(name: str, error: StorageError) -> Finding:
    if isinstance(error.__cause__, PermissionError):  # it is the daemon's
        return Finding(SECTION, name, f"{error}; sudo vedette doctor may read it")
    return Finding(SECTION, name, str(error), "warning", _FRESH)


def _kept(surveys: Surveys, model: Model, made: Survey) -> Iterator[Finding]:
    """Nothing, or why the daemon will not know of it."""
    try:
        surveys.keep(model, made)
    except StorageError as error:
        value = f"was measured, and cannot be kept: {error}"
        yield Finding(SECTION, model.path, value, "warning", f"let what is measured be kept: {error}")


def of_survey(model: Model, made: Survey, verdict: Verdict, found: Sequence[Found]) -> Iterator[Finding]:
    """What was chosen, when, and what speaks against the others.

    Args:
        model: that was measured.
        made: what was measured.
        verdict: what follows.
        found: of this board.
    """
    plan = verdict.chosen
    best = next(one for one in verdict.measured if (one.name, one.threads) == (plan.backend, plan.threads))
    value = f"{_way(best)}, {_cost(best)}; measured {local_time(made.at)}, others used {made.busy:.0%}"
    if made.busy > _BUSY:
        yield Finding(SECTION, model.path, f"{value} of the processor", "warning", _AGAIN)
    else:
        yield Finding(SECTION, model.path, f"{value} of the processor")
    here = {one.name for one in found if one.plan is not None}
    for one in verdict.measured:
        if one is not best and (one.name == verdict.cpu.backend or one.name in here):
            yield Finding(SECTION, f"  {_way(one)}", one.refused or _cost(one))


def _models(config: Config | None) -> list[tuple[str, str]]:
    """Names and rungs, each once."""
    streams = config.streams.values() if config else ()
    wanted = [(one.model, one.rung) for one in streams if one.enabled and one.backend == AUTO]
    return list(dict.fromkeys(wanted)) or ([] if streams else [(name, "") for name in bundled()])


def _way(one: Measured) -> str:
    return f"{one.name}, {one.threads} thread{'s' * (one.threads != 1)}" if one.threads else one.name


def _cost(one: Measured) -> str:
    return f"{one.p50_ms:.2f} ms and {one.cpu_ms:.2f} ms of CPU time"
