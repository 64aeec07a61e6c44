"""The steps that `vedette optimise tune` tries, and the tuning of a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from agent.compute.manifest import Model
from agent.errors import ConfigError
from agent.models.files import load_file
from agent.models.library import open_manifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.graph.verified import rewrite_verified
from agent.optimise.recipe import Budget, Recipe, RecipeFile, parse_budget, parse_recipe, read_recipe
from agent.optimise.tune import TARGETS, ModelState, Progress, TunedModel, TuningStep, split, tune


class TuneRequest(Struct, frozen=True):
    """What `vedette optimise tune` is asked to do.

    Attributes:
        model: name or path.
        data: path of the examples; None: the recipe names it.
        recipe: path; None: defaults.
        budget: see `parse_budget`; empty: the recipe's.
        target: name in `TARGETS`.
        limit: number of examples; 0: the recipe's.
        command: for the report.
    """

    model: str
    data: Path | None = None
    recipe: Path | None = None
    budget: str = ""
    target: str = "pi4b"
    limit: int = 0
    command: str = ""


def tune_file(request: TuneRequest, progress: Progress, tell: Callable[[str], None]) -> TunedModel:
    """Tune a model file.

    Args:
        request: see `TuneRequest`.
        progress: called with what is being done.
        tell: called with lines about the examples.

    Raises:
        ModelError: the model or the examples cannot be used. ConfigError: the recipe or the budget cannot.
    """
    file = read_recipe(request.recipe) if request.recipe else parse_recipe("", "")
    budget = parse_budget(text) if (text := request.budget or file.recipe.quantise.budget) else Budget()
    content, manifest = load_file(request.model)[0], open_manifest(request.model)
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, request.model)
    limit = request.limit or file.recipe.data.limit or None
    examples = read_examples(_path_of(request, file.recipe), model, limit=limit)
    for line in (examples.description, *examples.remarks):
        tell(line)
    seen, measured = split(examples, file.recipe.data.held_out)
    steps = steps_of(model, seen, file)
    target = TARGETS[request.target]
    return tune(model, measured, steps, budget, target=target, command=request.command, progress=progress)


def _path_of(request: TuneRequest, recipe: Recipe) -> Path:
    if request.data is not None:
        return request.data
    if not recipe.data.path or request.recipe is None:
        raise ConfigError("there are no examples: give --data, or `path` in [data] of the recipe")
    return request.recipe.parent / recipe.data.path


def steps_of(model: Model, seen: Examples, recipe: RecipeFile) -> list[TuningStep]:
    """Return the steps for a model in their order.

    Args:
        model: to be tuned.
        seen: examples that steps may use.
        recipe: what the steps do.
    """
    return [fuse(model.path)]


def fuse(path: str) -> TuningStep:
    """Return the step that rewrites the graph without changing its answers.

    Args:
        path: of the model, for messages.
    """

    def apply(state: ModelState, progress: Progress) -> ModelState:
        found = rewrite_verified(state.content, path, progress=progress)
        notes = tuple(f"{name} {count}" for name, count in found.counts.items() if count)
        source = found.content if state.source == state.content else state.source
        return ModelState(found.content, source, state.layers, notes)

    return TuningStep("fuse", apply)
