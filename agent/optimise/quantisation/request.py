"""Quantises a model file with a recipe, trains it if its budget is missed, and reports the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode import build_decoder, options_kind
from agent.compute.manifest import ONLY_VARIANT, Model, Variant
from agent.compute.tflite.read import read_modelfile
from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.depth.stages import Stage, chain_of, deepest, join, split
from agent.optimise.evaluate import Score, doubt_guesses, score, time_ms
from agent.optimise.graph.fixed_shapes import fix_shapes
from agent.optimise.graph.from_torch import import_torch
from agent.optimise.inputs import examples_path
from agent.optimise.quantisation.lowering import lower_custom
from agent.optimise.quantise import (
    LayerBits,
    QuantisedModel,
    candidates_of,
    check_float,
    fixed_bits,
    quantise,
    read_layers,
    shapes_of,
)
from agent.optimise.recipe import Method, parse_recipe, read_recipe
from agent.optimise.recipe.budget import Budget, parse_budget
from agent.optimise.report import LayerResult, OptimiseReport, StepResult, describe_machine, told_slower
from agent.optimise.source import learned_doubts, learned_sample, open_source
from agent.optimise.tune import split as held_out
from agent.optimise.tune_steps import judged
from agent.structs import convert
from agent.text import plural

Progress = Callable[[str], None]
_QAT = "qat"
_DOUBTFUL = 0.02
_POOR = 0.05
"""Damage from which float activations are tried, see `_Measured`."""
_APART = "{} that are held out as well have decided on bits and training"
_ALSO = "the {} of these figures have also decided on bits and training: a loss may be told a little too small"
_TRAINED = "trained, since it loses {:.3g} pp"
_COMPARED = "of {} that were not trained on, it {}, and {} without training"
_NO_BETTER = "the file without it is kept: try more [qat] steps, or a lower learning_rate"
_NO_BETTER_FLOAT = "float activations are no better"
_TOO_LARGE = "its file takes {}, over the limit: the one without training is kept"
_SIGMOIDS = ("blazeface", "landmarks")
"""Decoders whose option `logits` means a sigmoid of a tensor that holds scores alone."""
_DOUBT = "it loses {:.3g} pp of {}: give examples of the kind that the model will see, more of them, or --qat"
_NO_CHOICE = "no layer is left that takes 4 bits: quantised by int8"
_WIDE = "no layer has 4 bits: INT8 meets the budget, or with 4 bits more would be lost than is allowed"
_RELEARN = (
    "score and time are those of the deepest exit; the thresholds of the exits are those of the float model: "
    "`vedette optimise calibrate` learns them again"
)


class QuantiseRequest(Struct, frozen=True):
    """What `vedette optimise quantise` is asked to do.

    Attributes:
        model: name or path of a float model.
        data: path of the examples; None: the recipe names it.
        recipe: path; None: defaults.
        method: empty: the recipe's.
        budget: see `parse_budget`; empty: the recipe's.
        qat: train: True: always, False: never, None: if the budget is missed without.
        limit: number of examples; None: the recipe's.
        checkpoint: file from which an interrupted training goes on; None: it begins anew.
        command: for the report.
    """

    model: str
    data: Path | None = None
    recipe: Path | None = None
    method: Method | None = None
    budget: str = ""
    qat: bool | None = None
    limit: int | None = None
    checkpoint: Path | None = None
    command: str = ""


class QuantisedFile(NamedTuple):
    """A quantised file and the report on it."""

    content: bytes
    report: OptimiseReport


def quantise_file(request: QuantiseRequest, progress: Progress, tell: Progress) -> QuantisedFile:
    """Quantise a model file.

    One part of the examples is for calibration and training. Those held out decide on bits and training; where
    there are enough of them, a quarter decides, and the report's figures are of the others.

    Args:
        request: see `QuantiseRequest`.
        progress: called with what is being done.
        tell: called with lines about the examples.

    Raises:
        ModelError: the model or the examples cannot be used. ConfigError: the recipe or the budget cannot.
        StorageError: the checkpoint cannot be read or written.
    """
    job = _Job(request, progress, tell)
    before = job.measured("float", job.content).step  # in another process first, where a crash does no harm
    found = job.quantised()
    integer = job.measured("quantise", found.content)
    steps = [before, integer.step]
    if job.chooses and (why := integer.poor(before)):
        other = job.quantised("dynamic")
        dynamic = job.measured("dynamic", other.content)
        kept = dynamic.rank(before) < integer.rank(before)
        steps.append(replace(dynamic.step, kept=kept, notes=(why if kept else f"{why}: {_NO_BETTER_FLOAT}",)))
        found = other if kept else found
    trains = request.qat or (request.qat is None and job.loses(found))
    if trains and job.can_be_met(steps[-1]):
        trained = job.trained(found)
        kept, notes = job.compared(found, trained)
        steps.append(replace(job.measured(_QAT, trained.content).step, kept=kept, notes=notes))
        found = trained if kept else found
    return QuantisedFile(job.file(found.content), job.report(found, steps))


class _Measured(NamedTuple):
    """A step, and the damage that it does.

    Attributes:
        step: with its score and time.
        damage: see `_Job._damage`, 0..1 and beyond; 0 where nothing is chosen by it.
    """

    step: StepResult
    damage: float

    def poor(self, before: StepResult) -> str:
        """Say why float activations may be better than INT8 ones; empty: they are not."""
        if self.damage > _POOR:
            return f"INT8 activations lose {self.damage:.1%} of the score or of the outputs"
        if told_slower(before, self.step, ""):
            return f"INT8 activations take {self.step.latency_ms:.3g} ms instead of {before.latency_ms:.3g}"
        return ""

    def rank(self, before: StepResult) -> tuple[bool, bool, float]:
        """Return what is less for the better of two models: it does little damage, and then is not slower."""
        return self.damage > _POOR, bool(told_slower(before, self.step, "")), self.step.latency_ms or 0.0


class _Job:
    """Everything that one request needs."""

    def __init__(self, request: QuantiseRequest, progress: Progress, tell: Progress) -> None:
        self._request, self._progress = request, progress
        self._file = read_recipe(request.recipe) if request.recipe else parse_recipe("", "")
        recipe = self._file.recipe.quantise
        self._recipe = replace(recipe, method=request.method or recipe.method)
        text = request.budget or recipe.budget
        self._budget = parse_budget(text) if text else Budget()
        model = open_source(request.model, tell)
        self._model, self._manifest = model, model.manifest
        self._logits = logit_outputs(model)
        self._stages: tuple[Stage, ...] = ()
        self.content = model.content
        if chain := chain_of(self._manifest.variants):
            self.content, self._stages = join(model.content, chain)
        check_float(lower_custom(self.content))
        self._seen, self._held = [], []
        variants = [self._manifest.variants[-1]] if self._stages else self._manifest.variants
        for variant in [one.name for one in variants] or [""]:
            seen, held = self._read(model, variant, tell)
            self._seen.append(seen)
            self._held.append(held)
        self.content = fix_shapes(self.content, shapes_of(self.content, self._seen[0]))
        layers = read_layers(self.content, integers=self._recipe.method != "dynamic")
        fixed = fixed_bits(layers, self._layer_bits)
        self._has_choice = bool(candidates_of(layers, fixed)) or 4 in fixed.values()
        self._falls_back = self._recipe.method == "mixed" and not (request.method or self._has_choice)
        if self._falls_back:
            self._recipe = replace(self._recipe, method="int8")
        self.chooses = recipe.method == "mixed" and not (request.method or text or request.qat or self._stages)
        self._reported, judging = judged(self._held[0])
        self._deciding = judging or self._reported
        self._judged = cache(lambda content: self._score(content, self._deciding))

    def _read(self, model: Model, variant: str, tell: Progress) -> tuple[Examples, Examples]:
        limit = self._request.limit or self._file.recipe.data.limit or None
        examples = read_examples(
            examples_path(self._request.data, self._request.recipe, self._file.recipe),
            model,
            variant,
            limit=limit,
        )
        seen, held = held_out(examples, self._file.recipe.data.held_out)
        if not self._seen:
            held.remarks += learned_doubts(model, seen, held)
            for line in (examples.description, *held.remarks):
                tell(line)
        return seen, held

    @property
    def _layer_bits(self) -> LayerBits | None:
        return self._file.layer_bits if self._recipe.layers else None

    @property
    def variant(self) -> str:
        """Return the variant on which figures are measured: the first."""
        return next((one.name for one in self._manifest.variants), "")

    def quantised(self, method: Method | None = None) -> QuantisedModel:
        """Quantise as the recipe says, or by another method."""
        return quantise(
            self.content,
            self._seen,
            replace(self._recipe, method=method or self._recipe.method),
            budget=self._budget if self._budget != Budget() else None,
            layer_bits=self._layer_bits,
            loss=self.loss,
            logits=self._logits,
            progress=self._progress,
        )

    def loss(self, content: bytes) -> float:
        """Return the loss of a file on the examples that decide."""
        return self._judged(self.content).value - self._judged(content).value

    def _damage(self, content: bytes) -> float:
        """Return the loss, or the error of the raw outputs as a share of their deviation, whichever is more."""
        return max(self.loss(content), self._judged(content).details.get("error", 0.0))

    def _score(self, content: bytes, examples: Examples) -> Score:
        if self._stages:
            alone = replace(self._manifest, variants=(Variant(ONLY_VARIANT),))
            return score(deepest(content), examples, alone, reference=deepest(self.content))
        return score(content, examples, self._manifest, reference=self.content, variant=self.variant)

    def file(self, content: bytes) -> bytes:
        """Return the file that is written: of a cascade, all exits are quantised in one graph, and then cut."""
        return split(content, self._stages) if self._stages else content

    def loses(self, found: QuantisedModel) -> bool:
        """Return True if the model loses more than the budget allows."""
        return self._budget.loss is not None and not self._budget.meets("loss", self.loss(found.content))

    def can_be_met(self, step: StepResult) -> bool:
        """Return False if the budget is missed by what training does not change: size or latency."""
        return not self._budget.missed(size=step.size, latency_ms=step.latency_ms)

    def trained(self, found: QuantisedModel) -> QuantisedModel:
        """Train the quantised model further."""
        import_torch()  # nothing else here needs it
        from agent.optimise.qat import train_quantised

        self.loss(found.content)  # that they cannot be scored is told now and not in an hour
        checkpoint, recipe = self._request.checkpoint, self._file.recipe.qat
        exits = range(0, 2 * len(self._stages), 2)
        return train_quantised(
            found, self._seen[0], recipe, exits=exits, checkpoint=checkpoint, progress=self._progress
        )

    def compared(self, found: QuantisedModel, trained: QuantisedModel) -> tuple[bool, tuple[str, ...]]:
        """Return True if the trained model is kept, and notes that tell why; by examples that it has not seen."""
        before, after = (self.loss(one.content) for one in (found, trained))
        kept = after < before or (self._request.qat is True and after == before)
        told = _COMPARED.format(plural(len(self._deciding), "example"), _told(after), _told(before))
        if self._request.qat is None:
            told = f"{_TRAINED.format(before * 100)}; {told}"
        if not self._budget.meets("size", size := len(self.file(trained.content))):
            return False, (f"{told}; {_TOO_LARGE.format(self._budget.amount('size', size))}",)
        return kept, (told if kept else f"{told}: {_NO_BETTER}",)

    def measured(self, name: str, content: bytes) -> _Measured:
        """Score a file on the examples that are reported, and time it against the float file."""
        self._progress(f"measuring {name}")
        alone = self._deciding is self._reported
        found = self._judged(content) if alone else self._score(content, self._reported)
        latency = self._times([self.content, content])[1]
        size = len(self.file(content))
        step = StepResult(name, found.metric, found.value, found.interval, size, latency)
        return _Measured(step, self._damage(content) if self.chooses else 0.0)

    def _times(self, contents: Sequence[bytes]) -> list[float]:
        contents = [deepest(one) for one in contents] if self._stages else contents
        return time_ms(contents)

    def report(self, found: QuantisedModel, steps: list[StepResult]) -> OptimiseReport:
        """Return the report on a result."""
        first, last = steps[0], [step for step in steps if step.kept][-1]
        loss = _lost(first, last)
        remarks = (
            [_DOUBT.format(loss * 100, last.metric)] if loss > _DOUBTFUL and self._budget.loss is None else []
        )
        remarks += told_slower(first, last, "the float model")
        if self._falls_back:
            remarks.append(_NO_CHOICE)
        narrow = any(layer.bits == 4 for layer in found.layers)
        of_bits = self._recipe.method == "mixed" and last.name != "dynamic"
        if of_bits and not narrow and self._budget.meets("loss", loss):
            remarks.append(_WIDE)
        if self._stages:
            remarks.append(_RELEARN)
        if not steps[-1].kept:
            remarks.append(f"{steps[-1].name}: {steps[-1].notes[0]}")
        remarks += (*doubt_guesses(first.score or 0.0, self._reported), *self._reported.remarks)
        if self._recipe.method == "mixed" or len(steps) > 2:
            told = _ALSO if self._deciding is self._reported else _APART
            remarks.append(told.format(plural(len(self._deciding), "example")))
        missed = self._budget.missed(size=last.size, loss=loss, latency_ms=last.latency_ms)
        return OptimiseReport(
            "quantise",
            self._request.model,
            self._model.sha256,
            "" if missed else hashlib.sha256(self.file(found.content)).hexdigest(),
            describe_machine(),
            self._request.command,
            self._reported.description,
            str(self._budget) if self._budget != Budget() else "",
            tuple(missed),
            tuple(steps),
            tuple(_layers(found)),
            remarks=tuple(remarks),
            learned=learned_sample(self._seen[0] if last.name == _QAT else None, self._model),
        )


def _the(examples: Examples) -> str:
    return f"the {plural(len(examples), 'example')}"


def _lost(before: StepResult, after: StepResult) -> float:
    return (before.score or 0.0) - (after.score or 0.0)


def _told(loss: float) -> str:
    return f"{'gains' if loss < 0 else 'loses'} {abs(loss) * 100:.3g} pp"


def logit_outputs(model: Model) -> tuple[int, ...]:
    """Return the places of outputs that hold nothing but scores of which the decoder takes the sigmoid."""
    output, variants = model.manifest.output, model.manifest.variants
    if output.decoder not in _SIGMOIDS:
        return ()
    options = convert(output.options, options_kind(output.decoder))
    if not getattr(options, "logits", False):
        return ()
    try:
        ends = read_modelfile(model.content).ends(variants[0].signature)
        decoder = build_decoder(model.manifest, *ends, DecodeConfig())
    except ModelError:
        return ()
    place: int | None = getattr(decoder, "scores_at", None)
    return () if place is None else (place,)


def _layers(found: QuantisedModel) -> Iterator[LayerResult]:
    for layer in found.layers:
        yield LayerResult(layer.name, layer.operation, layer.bits, layer.values, layer.sensitivity)
