"""One candidate of a search: build, measure, train in rungs, quantise, score.

Latency and size are measured before the training, of the INT8 file with random weights: they do not depend on
them, and a candidate over the budget is not trained. Each rung trains anew with a whole schedule, since the
accuracy in the midst of a schedule says little about its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from optuna.exceptions import OptunaError

from agent.errors import ConfigError, FleetError, ModelError, StorageError
from agent.models.version_writer import write_first
from agent.optimise.classifier.data import check_logits
from agent.optimise.evaluate import score
from agent.optimise.factory import call_factory
from agent.optimise.graph.from_torch import export, float_tflite
from agent.optimise.pruning.file import training_settings
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe, Recipe
from agent.optimise.recipe.budget import Budget, parse_budget
from agent.optimise.report import OptimiseReport
from agent.optimise.search.comparison import Figures, reason_to_stop
from agent.optimise.search.data import SearchData
from agent.optimise.search.latency import LatencyMeter
from agent.optimise.search.study import SearchTrial
from agent.optimise.train import TrainingStep, evaluate, fit
from agent.storage.files import make_folder, remove, write_atomic
from agent.text import plural

INT8, FLOAT = "int8.tflite", "float.tflite"
_FEW = 8
"""Examples for the ranges of a file that is only measured."""

Progress = Callable[[str], None]
_ENDS_THE_SEARCH = (StorageError, ConfigError, FleetError, OptunaError, OSError)
"""Errors that are not the candidate's fault."""


class SearchInterruptedError(Exception):
    """The time of a search is over."""


class SearchSpace(Struct, frozen=True):
    """What candidates are made of.

    Attributes:
        build: the user's function.
        source: where it is from.
        recipe: of the search.
        data: examples.
        meter: of latency.
        folder: for checkpoints and files.
    """

    build: Any
    source: str
    recipe: Recipe
    data: SearchData
    meter: LatencyMeter
    folder: Path


def trial_folder(folder: Path, origin: int) -> Path:
    """Return the folder for the files of a trial."""
    return folder / "trials" / f"{origin:05d}"


def remove_checkpoints(folder: Path) -> None:
    """Remove what a trial that has ended needs no more, and its folder if nothing is left in it.

    Args:
        folder: of the trial; it may be missing. What a killed process was about to write is removed as well.
    """
    if folder.is_dir():
        remove(*folder.glob("rung-*.checkpoint"), *folder.glob(".*.tmp"))
        with suppress(OSError):  # the files of its network lie in it
            folder.rmdir()


class SearchCandidate:
    """A network of the search space, which is measured, trained rung by rung, quantised and scored as a trial."""

    def __init__(
        self,
        space: SearchSpace,
        trial: SearchTrial,
        finished_rung: Callable[[str], Sequence[Figures]],
        progress: Progress,
        keep_on: Callable[[], bool],
    ) -> None:
        """Prepare the work on a trial.

        Args:
            space: what candidates are made of.
            trial: to work on.
            finished_rung: returns the figures of all other trials that have finished a rung.
            progress: told what is being done.
            keep_on: asked after each training step; False: the time is over.
        """
        self._space, self._trial, self._finished = space, trial, finished_rung
        self._progress, self._keep_on = progress, keep_on
        self._search = space.recipe.search
        self._folder = trial_folder(space.folder, trial.origin)
        self._budget = parse_budget(self._search.budget) if self._search.budget else Budget()

    def run(self) -> None:
        """Work on the trial, and report its end to the study.

        Raises:
            SearchInterruptedError: the time is over.
            StorageError: there is no room for checkpoints. FleetError: the board cannot be asked.
        """
        try:
            self._work()
        except (SearchInterruptedError, *_ENDS_THE_SEARCH):
            raise
        except Exception as error:  # the user's own network, whose code and size may do anything
            self._tell("failed")
            self._trial.fail(_reason(error))
        remove_checkpoints(self._folder)

    def _work(self) -> None:
        self._measure_untrained()
        over = self._budget.missed(size=float(self._figures(0.0).size), latency_ms=self._figures(0.0).latency_ms)
        if over:
            self._trial.stop(f"over the budget: {'; '.join(over)}")
            return
        module = None
        for epochs in self._search.rungs:
            last = epochs == self._search.rungs[-1]
            if last or rung_name(epochs) not in self._trial.noted("rungs", {}):
                module = self._train(epochs)
            if not last and (reason := self._reason_to_stop(rung_name(epochs))):
                self._trial.stop(f"after {plural(float(epochs), 'epoch')}: {reason}")
                return
        self._finish(module)

    def _build(self) -> Any:
        torch.manual_seed(self._search.seed)
        return call_factory(self._space.build, self._space.source, self._trial.parameters)

    def _measure_untrained(self) -> None:
        if self._trial.noted("latency_ms") is not None:
            return
        self._tell("measuring the latency")
        taken = self._space.data.manifest.input
        content = float_tflite(self._build(), self._search.shape, mean=taken.mean[0], std=taken.std[0])
        check_logits(content, self._space.source)
        few = self._space.data.seen.take(range(min(_FEW, len(self._space.data.seen))))
        found = quantise(content, [few], QuantiseRecipe(method="int8", examples=_FEW)).content
        busy: list[str] = []
        latency_ms = self._space.meter.measure(found, busy.append)
        self._trial.note(busy="; ".join(busy), size=len(found), latency_ms=latency_ms)

    def _figures(self, accuracy: float) -> Figures:
        return Figures(accuracy, self._trial.noted("latency_ms"), self._trial.noted("size"))

    def _train(self, epochs: float) -> Any:
        """Return the module after a rung, and note its accuracy."""
        make_folder(self._folder)
        module, name = self._build(), rung_name(epochs)
        taken, seen = self._space.data.manifest.input, self._space.data.seen
        base = training_settings(
            self._space.recipe, taken, self._search.shape, len(seen), pictures=seen.are_pixels
        )
        settings = replace(base, epochs=epochs)

        def step(done: TrainingStep) -> None:
            self._tell(f"training {plural(float(epochs), 'epoch')}, {done.done * 100 // done.total} %")
            if done.done < done.total and not self._keep_on():
                raise SearchInterruptedError

        checkpoint = self._folder / f"rung-{name}.checkpoint"
        fit(module, *self._space.data.training, settings, checkpoint=checkpoint, progress=step)
        accuracy = evaluate(module, *self._space.data.test, normalisation=settings.normalisation)
        self._trial.note(rungs={**self._trial.noted("rungs", {}), name: accuracy})
        return module

    def _reason_to_stop(self, rung: str) -> str:
        own = self._figures(self._trial.noted("rungs")[rung])
        return reason_to_stop(own, self._finished(rung), self._search.objectives)

    def _finish(self, module: Any) -> None:
        """Write the files of the trained module, score the INT8 one, and report the objectives."""
        self._tell("quantising")
        search, data = self._search, self._space.data
        taken = data.manifest.input
        exported = export(module.cpu(), search.shape, mean=taken.mean[0], std=taken.std[0])
        recipe = QuantiseRecipe(method="int8", examples=self._space.recipe.quantise.examples)
        content = quantise(exported.content, [data.seen], recipe).content
        write_atomic(self._folder / INT8, content)
        own = hashlib.sha256(exported.content).hexdigest()
        report = OptimiseReport("search", self._space.source, sha256_after=own, learned=data.learned)
        built = msgspec.to_builtins(report)
        write_first(self._folder / FLOAT, exported.content, data.manifest_keys, built, force=True)
        self._tell("scoring")
        accuracy = score(content, data.compared, data.manifest).value
        unseen = score(content, data.unseen, data.manifest)
        self._trial.note(
            accuracy=accuracy,
            size=len(content),
            unseen={"value": unseen.value, "count": unseen.count, "interval": unseen.interval},
            sha256=hashlib.sha256(content).hexdigest(),
            parameters=exported.parameters,
            multiply_adds=exported.multiply_adds,
        )
        known = {"accuracy": accuracy, "latency": self._trial.noted("latency_ms"), "size": float(len(content))}
        self._trial.complete([known[name] for name in search.objectives])

    def _tell(self, what: str) -> None:
        self._progress(f"trial {self._trial.number}: {what}")


def rung_name(epochs: float) -> str:
    """Return the name of a rung in a study."""
    return f"{epochs:g}"


def _reason(error: Exception) -> str:
    told = str(error).strip().splitlines() or [""]
    return told[0] if isinstance(error, ModelError) else f"{type(error).__name__}: {told[0]}"
