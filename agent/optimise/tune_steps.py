"""The steps that `vedette optimise tune` tries, and the tuning of a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import prefixed_errors
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import score
from agent.optimise.graph.from_torch import import_torch
from agent.optimise.graph.rewrite import check, rewrite_verified
from agent.optimise.inputs import examples_path
from agent.optimise.recipe import Method, Recipe, RecipeFile, parse_recipe, read_recipe
from agent.optimise.recipe.budget import Budget, parse_budget
from agent.optimise.report import LayerResult
from agent.optimise.source import learned_doubts, learned_sample, logits_keys, open_source
from agent.optimise.tune import (
    Meters,
    ModelState,
    Progress,
    TunedModel,
    TuningStep,
    is_float,
    split,
    tune,
)

if TYPE_CHECKING:
    from agent.optimise.quantise import QuantisedLayer, QuantisedModel

_JUDGING, _ENOUGH = 0.25, 200
"""Share of the held-out examples that judges the steps instead of giving the figures, and how many that have to
be: with fewer, chance would decide on a loss of one point, so that those of the figures judge as well. None is of
the part for the steps: a model that was trained on it knows it by heart, and would seem to lose by each step."""
_METHODS: dict[Method, tuple[Method, ...]] = {"mixed": ("int8", "mixed")}
"""Methods that are tried one after the other; the first before pruning, the others on what is pruned."""
_TRAIN, _PRUNE = "train", "prune"
"""Names of the steps that train and prune."""
CHECKPOINTS = (
    *(f"{method}{end}.checkpoint" for method in ("int8", "int4", "mixed") for end in ("", "-pruned")),
    "rounds.checkpoint",
    "anneal.checkpoint",
)
"""Files that steps may leave in the folder of a request: of quantised models that are trained, and of pruning."""


class TuneRequest(Struct, frozen=True):
    """What `vedette optimise tune` is asked to do.

    Attributes:
        model: name or path.
        data: path of the examples; None: the recipe names it.
        recipe: path; None: defaults.
        budget: see `parse_budget`; empty: the recipe's.
        limit: number of examples; 0: the recipe's.
        command: for the report.
        qat: train quantised models that lose too much.
        module: `path.py:factory` that the model was imported from, for pruning; empty: it is not pruned.
        weights: of the module; None: the factory loads them.
        folder: existing one for `CHECKPOINTS`, from which trainings of an interrupted run go on; None: they begin
            anew.
    """

    model: str
    data: Path | None = None
    recipe: Path | None = None
    budget: str = ""
    limit: int = 0
    command: str = ""
    qat: bool = True
    module: str = ""
    weights: Path | None = None
    folder: Path | None = None


def tune_file(
    request: TuneRequest,
    progress: Progress,
    tell: Callable[[str], None],
    meters: Meters = Meters(),  # noqa: B008 - it is frozen
) -> TunedModel:
    """Tune a model file.

    Args:
        request: see `TuneRequest`.
        progress: called with what is being done.
        tell: called with lines about the examples.
        meters: measure models.

    Raises:
        ModelError: the model or the examples cannot be used. ConfigError: the recipe or the budget cannot.
        CheckpointError: a checkpoint in `folder` belongs to another run.
    """
    file = read_recipe(request.recipe) if request.recipe else parse_recipe("", "")
    budget = parse_budget(text) if (text := request.budget or file.recipe.quantise.budget) else Budget()
    model = open_source(request.model, tell)
    if model.manifest.variants[0].after:
        raise ModelError(
            f"{request.model}: has exits, which tune cannot measure: quantise takes it, or tune the model "
            "first and give it exits then"
        )
    _check_model(model, file)
    if not is_float(model.content):
        tell(f"{request.model}: is quantised already: give the float model; of this one, only the graph is fused")
    limit = request.limit or file.recipe.data.limit or None
    path, parts = examples_path(request.data, request.recipe, file.recipe), []
    for variant in model.manifest.variants:  # of the same examples, in the sizes of all variants
        examples = read_examples(path, model, variant.name, limit=limit)
        parts.append(split(examples, file.recipe.data.held_out))
    parts[0][1].remarks += learned_doubts(model, *parts[0])
    for line in (examples.description, *parts[0][1].remarks):
        tell(line)
    if request.module:
        _check_pruning(model, parts[0][0], file, request)
    reported, judging = judged(parts[0][1])
    seen = [one for one, _ in parts]
    found = tune(
        model,
        reported,
        steps_of(model, seen, file, budget, request, judging or reported),
        budget,
        judging=judging,
        command=request.command,
        meters=meters,
        progress=progress,
    )
    report = replace(found.report, learned=_learned(found, model, parts[0][0]))
    return replace(found, keys=logits_keys(model, found.content), report=report)


def _learned(found: TunedModel, model: Model, seen: Examples) -> tuple[str, ...]:
    """Return digests of what a result has learned from: also of the part for the steps, if one has trained it."""
    trained = any(one.kept and one.name.startswith((_TRAIN, _PRUNE)) for one in found.report.steps)
    return learned_sample(seen if trained else None, model)


def judged(held_out: Examples) -> tuple[Examples, Examples | None]:
    """Return those held-out examples that are for the figures, and others that judge; None: there are too few."""
    reported, judging = split(held_out, _JUDGING)
    return (held_out, None) if len(judging) < _ENOUGH else (reported, judging)


def _check_model(model: Model, file: RecipeFile) -> None:
    """Check before the examples are read that a step can be applied, and the recipe's layers.

    Raises:
        ModelError: the model can be neither quantised nor rewritten. ConfigError: a layer of the recipe is not
            there.
    """
    with prefixed_errors(model.path):
        try:
            import_torch()
            from agent.optimise.quantise import fixed_bits, read_layers

            layers = read_layers(model.content, integers=file.recipe.quantise.method != "dynamic")
        except ModelError:
            check(model.content, "tuned")  # it can be rewritten at least
            return
        fixed_bits(layers, file.layer_bits)


def _check_pruning(model: Model, seen: Examples, file: RecipeFile, request: TuneRequest) -> None:
    """Check before anything is measured that the module can be pruned; raises as `check_pruning`."""
    import_torch()
    from agent.optimise.factory import load_factory
    from agent.optimise.pruning.file import check_pruning

    module = load_factory(request.module, request.weights)
    check_pruning(model, module, seen, _channels(file.recipe))


def _channels(recipe: Recipe) -> Recipe:
    """Return a recipe that prunes channels, whatever it says: connections would save nothing in an INT8 file."""
    return replace(recipe, prune=replace(recipe.prune, structured=True))


def steps_of(
    model: Model,
    seen: Sequence[Examples],
    recipe: RecipeFile,
    budget: Budget,
    request: TuneRequest,
    judging: Examples,
) -> list[TuningStep]:
    """Return the steps for a model in their order.

    Args:
        model: to be tuned.
        seen: examples that steps may use, of each variant.
        recipe: what the steps do.
        budget: that the result must meet.
        request: names the module for pruning.
        judging: see `quantise_steps`.
    """
    last = fuse(model.path)
    if not is_float(model.content):
        names = ("quantise", "train", _PRUNE)
        return [*(TuningStep(one, last.apply, left_out="the model is quantised already") for one in names), last]
    method = recipe.recipe.quantise.method
    first, *others = (
        quantise_steps(model, seen, recipe, budget, one, judging, request.qat, request.folder)
        for one in _METHODS.get(method, (method,))
    )
    pruning = prune_step(model, seen[0], recipe.recipe, request, budget)
    return [*first, pruning, *chain(*others), last]


def quantise_steps(
    model: Model,
    seen: Sequence[Examples],
    recipe: RecipeFile,
    budget: Budget,
    method: Method,
    judging: Examples,
    trains: bool = True,
    folder: Path | None = None,
) -> list[TuningStep]:
    """Return the step that quantises the float model by a method, and one that trains it afterwards.

    The second is left out unless the result of the first has lost too much of the examples that judge the steps.
    INT4 is left out if INT8 meets the budget.

    Args:
        model: to be tuned.
        seen: examples that steps may use, of each variant.
        recipe: what the steps do.
        budget: that the result must meet.
        method: one of those of a recipe.
        judging: held-out examples whose loss decides on bits.
        trains: False: there is no step that trains.
        folder: for checkpoints; None: none are written.
    """

    @cache
    def value(content: bytes) -> float:
        return score(content, judging, model.manifest, reference=model.content).value

    made: dict[bytes, QuantisedModel] = {}

    def quantised(source: bytes, progress: Progress) -> QuantisedModel:
        import_torch()
        from agent.optimise.quantise import quantise

        if source in made:
            return made[source]
        made[source] = quantise(
            source,
            seen,
            replace(recipe.recipe.quantise, method=method),
            budget=budget if budget != Budget() else None,
            layer_bits=recipe.layer_bits,
            loss=lambda content: value(model.content) - value(content),
            progress=progress,
        )
        return made[source]

    def derive(source: bytes, progress: Progress) -> ModelState:
        found = quantised(source, progress)
        return ModelState(found.content, source, tuple(map(_reported, found.layers)), (), derive)

    def derive_trained(source: bytes, progress: Progress) -> ModelState:
        found = quantised(source, progress)
        from agent.optimise.qat import train_quantised

        name = f"{method}{'' if source == model.content else '-pruned'}.checkpoint"
        checkpoint = folder and folder / name
        found = train_quantised(found, seen[0], recipe.recipe.qat, checkpoint=checkpoint, progress=progress)
        return ModelState(found.content, source, tuple(map(_reported, found.layers)), (), derive_trained)

    def train(state: ModelState, progress: Progress) -> ModelState:
        return derive_trained(state.source, progress)

    always = method != "mixed" or budget == Budget()
    name = f"quantise, {method}"
    steps = [TuningStep(name, lambda state, progress: derive(state.source, progress), always)]
    if trains and method != "dynamic":
        steps.append(TuningStep(f"{_TRAIN}, {method}", train, always, mends=name))
    return steps


def _reported(layer: QuantisedLayer) -> LayerResult:
    return LayerResult(layer.name, layer.operation, layer.bits, layer.values, layer.sensitivity)


def prune_step(model: Model, seen: Examples, recipe: Recipe, request: TuneRequest, budget: Budget) -> TuningStep:
    """Return the step that removes channels of the float model, and quantises it again if it was.

    Args as for `steps_of`.
    """
    needed = "pruning trains: give --module PATH.py:FACTORY, which the model was imported from"
    reason = "" if request.module else needed

    def apply(state: ModelState, progress: Progress) -> ModelState:
        if reason:
            raise ModelError(reason)
        import_torch()
        from agent.optimise.factory import load_factory
        from agent.optimise.pruning.file import prune_model

        module = load_factory(request.module, request.weights)
        source = replace(model, content=state.source, sha256=hashlib.sha256(state.source).hexdigest())
        pruned = prune_model(
            source,
            module,
            seen,
            _channels(recipe),
            folder=request.folder,
            progress=progress,
        )
        notes = pruned.report.steps[-1].notes[:1]
        if state.derive is None:
            return ModelState(pruned.content, pruned.content, (), notes)
        found = state.derive(pruned.content, progress)
        return found._replace(notes=(*notes, *found.notes))

    return TuningStep(_PRUNE, apply, always=not reason or budget == Budget(), left_out=reason)


def fuse(path: str) -> TuningStep:
    """Return the step that rewrites the graph without changing its answers.

    Args:
        path: of the model, for messages.
    """

    def apply(state: ModelState, progress: Progress) -> ModelState:
        found = rewrite_verified(state.content, path, progress=progress)
        notes = tuple(f"{name} {count}" for name, count in found.counts.items() if count)
        source = found.content if state.source == state.content else state.source
        return ModelState(found.content, source, state.layers, notes, state.derive)

    return TuningStep("fuse", apply)
