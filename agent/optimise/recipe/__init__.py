"""Recipes: TOML files that say what the steps of `vedette optimise` do.

`vedette optimise recipe STEP` prints the keys of a step with their defaults, which a recipe without that section
has, too. The docstrings of the sections are its comments.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.compute.manifest import Mean, Std
from agent.config.toml import Problem, TomlFile, parse_toml, read_toml
from agent.errors import ConfigError
from agent.optimise.recipe.budget import parse_budget
from agent.structs import convert

Method = Literal["int8", "dynamic", "int4", "mixed"]
Importance = Literal["gradient*weight", "weight", "random"]
Whole = Annotated[int, Meta(ge=0, le=2**31)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Rate = Annotated[float, Meta(ge=1e-9, le=1e6)]
"""Learning rate. The decay of weights is divided by it, and would overflow below this range."""
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]

_NEAR, _NEAREST = 0.3, 3
_LARGEST = 2**53
"""Largest number of a space of networks: whole numbers up to it are exact as floats, too."""


class LayerRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Bits of the weights of some layers.

    Attributes:
        match: pattern of layers' names, with `*`, `?` and `[…]`.
        bits: 4, 8, or 32 for float.
    """

    match: Annotated[str, Meta(min_length=1)]
    bits: Literal[4, 8, 32]


class QuantiseRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[quantise]`: weights and activations as integers.

    Attributes:
        method: `int8`: all of it; `dynamic`: INT8 weights, float activations; `int4`: INT4 weights wherever a
            layer has none in `layers`; `mixed`: INT4 or INT8 by each layer's sensitivity.
        budget: what the result must meet, whatever the method, such as size<2.8MB, loss<0.5pp, latency<20ms;
            `mixed` chooses its bits by it. Empty: `mixed` allows no loss beyond that of INT8 that can be told.
        examples: number of inputs for calibration.
        layers: fixed bits, such as [{match = "stem*", bits = 8}, {match = "*/head", bits = 32}]; the last
            rule that matches counts.
    """

    method: Method = "mixed"
    budget: str = ""
    examples: Count = 256
    layers: tuple[LayerRule, ...] = ()


class PruneRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[prune]`: connections or channels are removed in rounds.

    Attributes:
        target: share that is removed in the end.
        importance: what is removed last. `gradient*weight`: accumulated over the steps of a round. Empty:
            `weight` for connections, `gradient*weight` for channels. Or `random`, to compare with.
        structured: remove whole channels, which is faster everywhere; else single connections.
        rounds: number of them; in each the same number is removed.
        round_steps: training steps after each round.
        anneal_epochs: passes over the data at the end, with a falling learning rate.
        anneal_factor: learning rate at the beginning of the anneal, relative to that of `[train]`.
        over_layers: channels are compared over all layers; else the same share of each layer's channels goes.
            Connections are always compared over all layers.
        teacher: weight of the answers of the model before in the loss; the labels have the rest.
    """

    target: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.8
    importance: Importance | Literal[""] = ""
    structured: bool = False
    rounds: Count = 16
    round_steps: Count = 6
    anneal_epochs: Annotated[float, Meta(ge=0.0, le=1e6)] = 2.0
    anneal_factor: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.4
    over_layers: bool = False
    teacher: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0

    @property
    def ranked_by(self) -> Importance:
        """Return the importance, with the default filled in."""
        return self.importance or ("gradient*weight" if self.structured else "weight")

    @property
    def needs_gradients(self) -> bool:
        """Return True if the importance is summed over training steps."""
        return self.ranked_by == "gradient*weight"


class QatRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[qat]`: quantisation-aware training, from the weights that `quantise` has found.

    Attributes:
        steps: training steps.
        batch: examples a step.
        learning_rate: of the weights, in units of their quantisation step.
        teacher: weight of the float model's answers in the loss; the labels have the rest.
    """

    steps: Count = 200
    batch: Count = 256
    learning_rate: Rate = 0.02
    teacher: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.75


DETECTOR = "detector"
"""Name of the network that `train` gives boxes to learn."""


class TrainRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[train]`: training, and the anneal of `prune`.

    Attributes:
        epochs: passes over the data; may be a fraction; 0: as many as make 1,500 steps, and at least 12; of
            `efficientnet_lite0` none.
        batch: examples a step; 0: 16 to 1024, a sixteenth of the examples, with a learning rate in proportion; 16
            of a detector, 64 of `efficientnet_lite0`.
        learning_rate: at the peak; of a detector and of `efficientnet_lite0` relative to the usual one.
        decay: share of a weight that one step at the peak takes away.
        momentum: Nesterov's.
        label_smoothing: share of the target that is spread over all classes.
        flip: mirror half of the pictures; not where left and right are different classes.
        turn: turn pictures by quarters; for square ones of things that may lie in any direction. A detector's are
            turned upside down, whatever their shape.
        light: largest change of brightness and contrast, as a share of them.
        seed: of order and augmentation.
    """

    epochs: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    batch: Whole = 0
    learning_rate: Rate = 1.0
    decay: Share = 0.0005
    momentum: Share = 0.9
    label_smoothing: Share = 0.1
    flip: bool = True
    turn: bool = False
    light: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.1
    seed: Whole = 0


class DepthRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[depth]`: early exits for a classifier.

    Attributes:
        exits: number of exits, with the last one, which is there already.
        at: names of the tensors behind which the early exits are; empty: near 1/2, 1/4, 1/8 … of the
            multiply-adds.
        epochs: passes over the data in which all exits are trained together; 0: the heads alone.
        grid: cells along each side of a picture whose means a head sees.
        loss: accuracy that the cascade may lose on the examples of the calibration, 0..1.
    """

    exits: Annotated[int, Meta(ge=2, le=16)] = 3
    at: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    epochs: Annotated[float, Meta(ge=0.0, le=1e6)] = 2.0
    grid: Annotated[int, Meta(ge=1, le=8)] = 2
    loss: Share = 0.005


class DataRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[data]`: examples, unless `--data` names them.

    Attributes:
        path: a folder, .tar or .npz of examples, relative to the recipe; `--data` goes before it.
        limit: use so many; 0: all.
        held_out: share on which results are measured, and nothing is tuned.
    """

    path: str = ""
    limit: Whole = 0
    held_out: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5


class SearchParameter(Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter of a space of networks: one of `choices`, or a number from `low` to `high`.

    Attributes:
        choices: values.
        low, high: both whole numbers: so is the value.
        step: between two values; None: 1 for whole numbers, else none.
        log: draw evenly on a logarithmic scale; has no step.
    """

    choices: tuple[bool | int | float | str, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    step: Annotated[int, Meta(gt=0)] | Positive | None = None
    log: bool = False

    def fault(self) -> str:
        """Say what does not go together; empty: all does."""
        numbers = [one for one in (*self.choices, self.low, self.high, self.step) if isinstance(one, int | float)]
        if wrong := [one for one in numbers if not abs(one) <= _LARGEST]:
            return f"expected finite numbers of at most 2**53, got {wrong[0]}"
        if self.choices:
            others = [name for name in ("low", "high", "step") if getattr(self, name) is not None]
            return f"has choices, and {others[0]} as well" if others else ""
        if self.low is None or self.high is None:
            return "expected choices, or low and high"
        if self.low > self.high:
            return f"low = {self.low} is more than high = {self.high}"
        if self.log and (self.low <= 0 or self.step is not None):
            return "log needs low above 0, and takes no step"
        return "low and high are whole numbers, and step is none" if self.whole and self._broken_step else ""

    @property
    def whole(self) -> bool:
        """True if the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def _broken_step(self) -> bool:
        return self.step is not None and not isinstance(self.step, int)


class SearchRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """`[search]`: networks of a space are trained and compared.

    Attributes:
        space: `net.py:build`, a function that takes the parameters by their names and returns a torch module; the
            path is relative to the recipe.
        shape: of one input: height, width, channels.
        mean, std: the module takes `(pixel - mean) / std`, in pixel values; with 0 and 1 real values are no
            pixels.
        budget: limits such as latency<2ms, size<300kB that are checked before a network is trained; empty: none.
        rungs: epochs of training, each time from the start; only the better half goes to the next.
        seed: of the choice of networks, and of their weights.
        parameters: such as {width = {low = 8, high = 64, step = 8}, block = {choices = ["a", "b"]}}.
    """

    space: str = ""
    shape: tuple[Count, Count, Annotated[int, Meta(ge=1, le=3)]] = (32, 32, 3)
    mean: Mean = 128.0
    std: Std = 64.0
    budget: str = ""
    rungs: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (1.0, 3.0, 9.0)
    seed: Whole = 0
    parameters: dict[Annotated[str, Meta(min_length=1)], SearchParameter] = {}


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole recipe."""

    quantise: QuantiseRecipe = QuantiseRecipe()
    prune: PruneRecipe = PruneRecipe()
    qat: QatRecipe = QatRecipe()
    depth: DepthRecipe = DepthRecipe()
    train: TrainRecipe = TrainRecipe()
    data: DataRecipe = DataRecipe()
    search: SearchRecipe = SearchRecipe()


class RecipeFile(Struct, frozen=True):
    """A recipe, and the lines of its keys."""

    recipe: Recipe
    file: TomlFile

    def layer_bits(self, layers: Sequence[str]) -> dict[str, int]:
        """Return the bits of each layer that a rule of `[quantise] layers` matches.

        Raises:
            ConfigError: a rule matches no layer. Near names are listed.
        """
        found: dict[str, int] = {}
        faults = []
        for number, rule in enumerate(self.recipe.quantise.layers):
            matched = [name for name in layers if fnmatch.fnmatchcase(name, rule.match)]
            found |= dict.fromkeys(matched, rule.bits)
            if not matched:
                where = self.file.where("quantise", "layers", number)
                faults.append(f"{where}: [quantise] layers: {_matches_nothing(rule.match, layers)}")
        if faults:
            raise ConfigError("\n".join(faults))
        return found


def _matches_nothing(pattern: str, layers: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern.strip("*"), layers, _NEAREST, _NEAR) or list(layers[:_NEAREST])
    names = ", ".join(map(repr, near)) if near else "it has none with weights"
    return f"match = {pattern!r} matches no layer of the model; near: {names}"


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe.

    Raises:
        ConfigError: the file cannot be read, or has unknown keys or wrong values; one line for each.
    """
    return _checked(read_toml(path, "the recipe"))


def parse_recipe(text: str, path: str) -> RecipeFile:
    """Parse the text of a recipe; see `read_recipe`."""
    return _checked(parse_toml(text, path))


def _checked(file: TomlFile) -> RecipeFile:
    file.check(Recipe, _budget_faults(file))
    found = RecipeFile(convert(file.data, Recipe), file)
    if faults := [f"{file.where(*keys)}: {what}" for keys, what in _search_faults(found.recipe.search)]:
        raise ConfigError("\n".join(faults))
    return found


def _budget_faults(file: TomlFile) -> Iterator[Problem]:
    for name in ("quantise", "search"):
        section = file.data.get(name)
        text = section.get("budget") if isinstance(section, dict) else None
        if isinstance(text, str) and text:
            try:
                parse_budget(text)
            except ConfigError as error:
                yield (name, "budget"), f"[{name}] budget: {error}"


def _search_faults(search: SearchRecipe) -> Iterator[Problem]:
    """Yield what does not go together."""
    for name, parameter in search.parameters.items():
        if fault := parameter.fault():
            yield ("search", "parameters", name), f"[search.parameters] {name}: {fault}"
    if list(search.rungs) != sorted(set(search.rungs)):
        yield ("search", "rungs"), "[search] rungs: expected numbers of epochs, each more than the one before"
    if search.budget and parse_budget(search.budget).loss is not None:
        yield ("search", "budget"), "[search] budget: expected limits of size and latency only"


SECTIONS: tuple[str, ...] = Recipe.__struct_fields__
"""Names of the sections of a recipe."""
_NOTE = re.compile(r"^        (?P<names>[a-z_, ]+): (?P<text>.+(?:\n            .+)*)", re.MULTILINE)


def example(steps: Sequence[str] = ()) -> str:
    """Return a recipe of some steps, or of all, with their defaults and a comment on each key.

    Raises:
        ConfigError: there is no such step.
    """
    for step in steps:
        if step not in SECTIONS:
            near = difflib.get_close_matches(step, SECTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SECTIONS)}"
            raise ConfigError(f"no step {step!r}; {hint}")
    return "\n".join(map(_section, dict.fromkeys(steps or SECTIONS)))


def _section(name: str) -> str:
    """Return a section with its defaults; the comments are what its class says of each attribute."""
    section = getattr(Recipe(), name)
    lines, notes = [f"[{name}]"], dict[str, str]()
    for found in _NOTE.finditer(section.__doc__ or ""):
        notes |= dict.fromkeys(found["names"].split(", "), " ".join(found["text"].split()).replace("`", ""))
    for key, value in msgspec.to_builtins(section).items():
        lines += [f"# {line}" for line in textwrap.wrap(notes.get(key, ""), 100, break_on_hyphens=False)]
        lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
