"""One candidate of a search: build, measure, train in rungs, quantise, score.

Latency and size are measured before the training, of the INT8 file with random weights: they do not depend on
them, and a candidate over the budget is not trained. Each rung trains anew with a whole schedule, since the
accuracy in the midst of a schedule says little about its end.

Successive halving (Jamieson, Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016) in its asynchronous
form (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020): a candidate goes to the next
rung if it is in the better half of those of similar latency that have finished this rung so far, so that fast
networks are not compared with large ones.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from optuna.exceptions import OptunaError

from agent.compute.manifest import InputManifest, Manifest, OutputManifest
from agent.errors import ConfigError, FleetError, ModelError, StorageError
from agent.models.writer import write_first
from agent.optimise.data import Examples
from agent.optimise.evaluate import score
from agent.optimise.factory import call_factory
from agent.optimise.graph.from_torch import export, float_tflite
from agent.optimise.pruning.file import training_inputs, training_settings
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe, Recipe
from agent.optimise.recipe.budget import Budget, parse_budget
from agent.optimise.report import OptimiseReport, StepResult
from agent.optimise.search.latency import LatencyMeter
from agent.optimise.search.study import SearchTrial
from agent.optimise.source import learned_sample
from agent.optimise.train import Pictures, TrainingStep, evaluate, fit
from agent.optimise.training.data import check_classes, check_logits, read_class_examples, untaught
from agent.optimise.tune import split
from agent.storage.files import make_folder
from agent.text import plural

INT8, FLOAT = "int8.tflite", "float.tflite"
_FEW = 8
"""Examples for the ranges of a file that is only measured."""

Progress = Callable[[str], None]
_ENDS_THE_SEARCH = (StorageError, ConfigError, FleetError, OptunaError, OSError)
"""Errors that are not the candidate's fault."""


class SearchInterruptedError(Exception):
    """The time of a search is over."""


class SearchData(Struct, frozen=True):
    """Examples with classes, in parts.

    Attributes:
        seen: for training and for the ranges of INT8.
        compared: by which candidates are compared.
        unseen: which decide nothing.
        pictures: of `seen`, [n, height, width, channels]: uint8, or float32 of what is no picture.
        compared_pictures: of `compared`.
        manifest: of every candidate.
        learned: digests of `seen`, see `agent.optimise.source.learned_sample`.
        fingerprint: of all examples.
        description: of where they are from.
    """

    seen: Examples
    compared: Examples
    unseen: Examples
    pictures: Pictures
    compared_pictures: Pictures
    manifest: Manifest
    learned: tuple[str, ...]
    fingerprint: str
    description: str

    @property
    def manifest_keys(self) -> dict[str, Any]:
        """The keys of the manifest of a candidate's file."""
        keys = msgspec.to_builtins(self.manifest)
        chosen = {"input": ("order", "mean", "std", "pixels"), "output": ("decoder", "labels")}
        found = {table: {name: keys[table][name] for name in names} for table, names in chosen.items()}
        if self.manifest.input.pixels:
            del found["input"]["pixels"]
        return found

    @property
    def training(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pictures and labels of `seen`."""
        assert self.seen.labels is not None
        return self.pictures, self.seen.labels

    @property
    def test(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pictures and labels of `compared`."""
        assert self.compared.labels is not None
        return self.compared_pictures, self.compared.labels


def read_search_data(path: Path, recipe: Recipe) -> SearchData:
    """Read the examples of a search.

    Args:
        path: see `agent.optimise.data`.
        recipe: its sections `[search]` and `[data]` count.

    Raises:
        ModelError: they cannot be read, have no classes or too few to learn from, or do not fit the shape.
    """
    preparation = InputManifest(mean=(recipe.search.mean,) * 3, std=(recipe.search.std,) * 3)
    shape, limit, source = recipe.search.shape, recipe.data.limit, recipe.search.space
    examples, classes = read_class_examples(path, shape, preparation, limit=limit, source=source)
    if not examples.are_pixels:
        preparation = InputManifest(pixels=False)
    seen, held = split(examples, recipe.data.held_out)
    check_classes(examples, seen)
    compared, unseen = split(held, 0.5)
    names = tuple(examples.names) or tuple(map(str, range(classes)))
    seen.remarks += untaught(np.asarray(seen.labels), np.asarray(held.labels), names)
    inputs, labels = training_inputs(seen, preparation), np.ascontiguousarray(examples.labels)
    return SearchData(
        seen=seen,
        compared=compared,
        unseen=unseen,
        pictures=inputs,
        compared_pictures=training_inputs(compared, preparation),
        manifest=Manifest("candidate", OutputManifest("classify", names), preparation),
        learned=learned_sample(seen),
        fingerprint=f"{len(examples)}, CRC {zlib.crc32(inputs.data, zlib.crc32(labels.data)):08x}",
        description=examples.description,
    )


class SearchSpace(Struct, frozen=True):
    """What candidates are made of.

    Attributes:
        build: the user's function.
        source: where it is from.
        recipe: of the search.
        data: examples.
        meter: of latency.
        folder: for files.
        command: that began the search, for reports.
    """

    build: Any
    source: str
    recipe: Recipe
    data: SearchData
    meter: LatencyMeter
    folder: Path
    command: str


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder for the files of a trial."""
    return folder / "trials" / f"{number:05d}"


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
        self._budget = parse_budget(self._search.budget) if self._search.budget else Budget()

    def run(self) -> None:
        """Work on the trial, and report its end to the study.

        Raises:
            SearchInterruptedError: the time is over.
            StorageError: there is no room for its files. FleetError: the board cannot be asked.
        """
        try:
            self._work()
        except (SearchInterruptedError, *_ENDS_THE_SEARCH):
            raise
        except Exception as error:  # the user's own network, whose code and size may do anything
            self._tell("failed")
            self._trial.fail(_reason(error))

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
        latency_ms = self._space.meter.measure(found)
        self._trial.note(size=len(found), latency_ms=latency_ms)

    def _figures(self, accuracy: float) -> Figures:
        return Figures(accuracy, self._trial.noted("latency_ms"), self._trial.noted("size"))

    def _train(self, epochs: float) -> Any:
        """Return the module after a rung, and note its accuracy."""
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

        fit(module, *self._space.data.training, settings, progress=step)
        accuracy = evaluate(module, *self._space.data.test, normalisation=settings.normalisation)
        self._trial.note(rungs={**self._trial.noted("rungs", {}), name: accuracy})
        return module

    def _reason_to_stop(self, rung: str) -> str:
        own = self._figures(self._trial.noted("rungs")[rung])
        return reason_to_stop(own, self._finished(rung))

    def _finish(self, module: Any) -> None:
        """Write the files of the trained module, score the INT8 one, and report what trials are compared by."""
        self._tell("quantising")
        data, taken = self._space.data, self._space.data.manifest.input
        exported = export(module.cpu(), self._search.shape, mean=taken.mean[0], std=taken.std[0])
        recipe = QuantiseRecipe(method="int8", examples=self._space.recipe.quantise.examples)
        content = quantise(exported.content, [data.seen], recipe).content
        self._tell("scoring")
        found = self._figures(score(content, data.compared, data.manifest).value)
        folder = trial_folder(self._space.folder, self._trial.number)
        make_folder(folder)
        made = f"{self._space.source}, trial {self._trial.number}"
        report = OptimiseReport("search", made, learned=data.learned)
        self._write(folder / FLOAT, exported.content, report)
        self._write(folder / INT8, content, self._scored(report, content, found))
        self._trial.note(accuracy=found.accuracy, size=len(content))
        self._trial.complete([found.accuracy, found.latency_ms, float(len(content))])

    def _scored(self, report: OptimiseReport, content: bytes, found: Figures) -> OptimiseReport:
        """Return a report with the figures, and the score on examples that decided nothing."""
        unseen = score(content, self._space.data.unseen, self._space.data.manifest)
        notes = tuple(f"{name} = {value}" for name, value in self._trial.parameters.items())
        step = StepResult("search", unseen.metric, unseen.value, unseen.interval, len(content), found.latency_ms)
        return replace(
            report,
            machine=self._space.meter.place,
            command=self._space.command,
            examples=f"{self._space.data.description}; {unseen.count} of them for this score",
            budget=self._search.budget,
            steps=(replace(step, notes=notes),),
            remarks=(f"the candidates were compared on others, where this one has {found.accuracy:.2%}",),
        )

    def _write(self, path: Path, content: bytes, report: OptimiseReport) -> None:
        told = msgspec.to_builtins(replace(report, sha256_after=hashlib.sha256(content).hexdigest()))
        write_first(path, content, self._space.data.manifest_keys, told, force=True)

    def _tell(self, what: str) -> None:
        self._progress(f"trial {self._trial.number}: {what}")


def rung_name(epochs: float) -> str:
    """Return the name of a rung in a study."""
    return f"{epochs:g}"


def _reason(error: Exception) -> str:
    told = str(error).strip().splitlines() or [""]
    return told[0] if isinstance(error, ModelError) else f"{type(error).__name__}: {told[0]}"


SIMILAR = 1.25
"""Latencies whose ratio is at most this are similar."""


class Figures(Struct, frozen=True):
    """What candidates are compared by.

    Attributes:
        accuracy: 0..1; of a rung, or of the INT8 file.
        latency_ms: of the INT8 file, ms.
        size: of the INT8 file, bytes.
    """

    accuracy: float
    latency_ms: float
    size: int

    @property
    def values(self) -> tuple[float, float, float]:
        """What is compared; less is better."""
        return -self.accuracy, self.latency_ms, float(self.size)


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return True if one is nowhere worse and somewhere better; less is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def pareto_front(candidates: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the candidates that no other one beats, in order; less is better."""
    return [number for number, one in enumerate(candidates) if not any(beats(other, one) for other in candidates)]


def reason_to_stop(own: Figures, others: Iterable[Figures]) -> str:
    """Say why a candidate is not trained further; empty: it is.

    Args:
        own: figures of the candidate after a rung.
        others: of those that have finished the same rung.
    """
    others = list(others)
    if not any(beats(other.values, own.values) for other in others):
        return ""
    peers = [one for one in others if _similar(own, one)]
    better = sum(one.accuracy > own.accuracy for one in peers)
    if better < (len(peers) + 2) // 2:
        return ""
    return f"{better} of {len(peers)} similar candidates are more accurate"


def _similar(one: Figures, other: Figures) -> bool:
    low, high = sorted((one.latency_ms, other.latency_ms))
    return high <= low * SIMILAR
