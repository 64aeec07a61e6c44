"""Quantisation-aware training: weights, steps and ranges are learnt with the rounding in place (LSQ).

Training starts from what `quantise` has found. Weights are kept in units of their step; rounding passes gradients
unchanged. Batch norms are folded already, so that what is trained is what is written.
Source: Esser et al., Learned Step Size Quantization, https://arxiv.org/abs/1902.08153.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from agent.errors import DivergedError, ModelError
from agent.optimise.checkpoint import Checkpoint, examples_key, module_key
from agent.optimise.checkpoint import Key as RunKey
from agent.optimise.data import Examples
from agent.optimise.graph.integers import FIXED, INT8_MAX, INT8_MIN, IntegerWeights, Scale
from agent.optimise.graph.objects import load
from agent.optimise.graph.operations import Key, WeightedLayer
from agent.optimise.graph.torch_graph import GraphOverrides, TorchGraph
from agent.optimise.quantisation import gptq
from agent.optimise.quantisation.gptq import RoundedLayer
from agent.optimise.quantisation.ranges import LOGITS, ActivationScales
from agent.optimise.quantise import QuantisedModel
from agent.optimise.recipe import QatRecipe
from agent.optimise.train import mixed_precision
from agent.text import plural

Tensor = Any
_STEP_RATE = 1e-3
"""Learning rate of logarithms of steps, and of biases relative to the output's step."""
_WARM_UP = 10
_SHIFT = 2
"""Pixels by which pictures are moved at most."""
_SMOOTHING = 0.1
_LEAST = 1e-6
"""Probability below which none is taken, for its logarithm."""


class _Round(torch.autograd.Function):
    """Rounding whose gradient is 1."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


class FakeQuantised(nn.Module):
    """A graph that computes as its quantised file will, with everything that is written as a parameter."""

    def __init__(self, graph: TorchGraph, scales: ActivationScales, layers: Mapping[Key, RoundedLayer]) -> None:
        """Start from quantised weights.

        Args:
            graph: float.
            scales: of activations.
            layers: rounded weights; float layers stay as they are.
        """
        super().__init__()
        self.graph, self._scales = graph, scales
        self._rounded = {key: one for key, one in layers.items() if one.weights}
        self.latents, self.log_steps, self.biases = (nn.ParameterDict() for _ in range(3))
        for key, one in self._rounded.items():
            self._add_layer(key, one)
        ends = [*graph.inputs, *(one.outputs[0] for one in graph.operations if one.kind in FIXED)]
        fixed = {scales.leaders[graph.name(index)] for index in ends if scales.leaders}
        names = [leader for leader in scales.by_leader if leader not in fixed]
        self._places = {name: place for place, name in enumerate(names)}
        steps = [math.log(scales.by_leader[name].scale) for name in names]
        self.log_scales = nn.Parameter(torch.tensor(steps))

    def _add_layer(self, key: Key, one: RoundedLayer) -> None:
        assert one.weights is not None
        name = _named(key)
        self.latents[name] = nn.Parameter(torch.from_numpy(one.weights.integers.astype(np.float32)))
        self.log_steps[name] = nn.Parameter(torch.from_numpy(np.log(one.weights.scales)))
        if one.weights.bias is not None:
            self.biases[name] = nn.Parameter(torch.from_numpy(one.weights.bias.astype(np.float32)))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Compute the outputs with all roundings."""
        weights = {key: self._weights(key, one.layer) for key, one in self._rounded.items()}
        biases = {key: self.biases[_named(key)] for key in self._rounded if _named(key) in self.biases}
        steps = self.log_scales.exp()

        def activation(index: int, value: Tensor) -> Tensor:
            leader = self._scales.leaders.get(self.graph.name(index))
            return value if leader is None else self._fake(value, leader, steps)

        overrides = GraphOverrides(weights, biases, activation)
        return self.graph(*inputs, overrides=overrides)  # type: ignore[no-any-return]

    def _weights(self, key: Key, layer: WeightedLayer) -> Tensor:
        found = self._rounded[key].weights
        assert found is not None
        integers = _Round.apply(self.latents[_named(key)].clamp(*gptq.limits(found.bits)))
        sizes = [1] * len(layer.shape)
        sizes[layer.channel_axis] = -1
        return integers * self.log_steps[_named(key)].exp().reshape(sizes)

    def _fake(self, value: Tensor, leader: str, steps: Tensor) -> Tensor:
        known = self._scales.by_leader[leader]
        place = self._places.get(leader)
        step = known.scale if place is None else steps[place]
        low, high = INT8_MIN - known.zero_point, INT8_MAX - known.zero_point
        return _Round.apply((value.float() / step).clamp(low, high)) * step

    def result(self) -> tuple[ActivationScales, dict[Key, RoundedLayer]]:
        """Return what the trained graph is written from."""
        with torch.no_grad():
            steps = self.log_scales.exp().numpy()
            by_leader = {
                name: Scale(float(steps[self._places[name]]), known.zero_point) if name in self._places else known
                for name, known in self._scales.by_leader.items()
            }
            layers = {key: self._written(key, one) for key, one in self._rounded.items()}
        return ActivationScales(dict(self._scales.leaders), by_leader), layers

    def _written(self, key: Key, one: RoundedLayer) -> RoundedLayer:
        assert one.weights is not None
        name = _named(key)
        integers = self.latents[name].clamp(*gptq.limits(one.weights.bits)).round().numpy().astype(np.int8)
        bias = self.biases[name].numpy().astype(np.float64) if name in self.biases else None
        scales = self.log_steps[name].exp().numpy().astype(np.float32)
        return one._replace(weights=IntegerWeights(integers, scales, one.weights.bits, bias))


def _named(key: Key) -> str:
    return f"{key[0]}_{key[1]}"


def train_quantised(
    found: QuantisedModel,
    examples: Examples,
    recipe: QatRecipe,
    *,
    exits: Sequence[int] = (),
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> QuantisedModel:
    """Train a quantised model further, with its float graph as teacher.

    Args:
        found: to start from; it is not changed.
        examples: with classes, or without labels: the teacher's answers alone then count.
        recipe: steps, batch, learning rate, weight of the teacher.
        exits: places of the outputs that are scores of classes, of a graph with several exits.
        seed: of order and augmentation.
        checkpoint: file that holds the state of the run, written every few seconds and at the end. If it
            exists, the run goes on from it, to the same result; None: the run cannot be continued.
        progress: told each tenth step.

    Raises:
        ModelError: the model has several inputs, or the labels count and are all of one class.
        DivergedError: the loss is not a number.
        CheckpointError: the checkpoint belongs to another run.
        StorageError: the checkpoint cannot be read or written.
    """
    if examples.further or examples.are_whole:
        raise ModelError("a model of several inputs, or of whole numbers, cannot be trained here: give --no-qat")
    _check_classes(examples, recipe)
    torch.manual_seed(seed)
    graph = TorchGraph(load(found.quantiser.content))
    student = FakeQuantised(graph, found.scales, found.rounded)
    graph.requires_grad_(False)
    run = _Run(student, examples, recipe, seed, exits, found.quantiser.logits)
    kept = Checkpoint(checkpoint, run.key, run)
    while (step := run.done) < recipe.steps:
        loss = run.step()
        if not math.isfinite(loss):
            kept.remove()
            raise DivergedError(
                f"training diverged at step {step}: give a lower [qat] learning_rate than {recipe.learning_rate}"
            )
        kept.save_at_times(ends=run.done == recipe.steps)
        if step % 10 == 0 or run.done == recipe.steps:
            progress(f"training with quantisation: step {run.done} of {recipe.steps}, loss {loss:.4f}")
    return found.trained(*student.result())


def _check_classes(examples: Examples, recipe: QatRecipe) -> None:
    """Check that labels which count do not teach a single answer."""
    if examples.kind != "classes" or recipe.teacher == 1.0:
        return
    if len(np.unique(np.asarray(examples.labels))) < 2:
        raise ModelError(
            f"{examples.description}: the {plural(len(examples), 'example')} to learn from are all of one class: "
            "give some of others, or `teacher = 1.0` in [qat] of the recipe: the float model alone teaches"
        )


class _Run:
    """State of a training between two steps."""

    def __init__(
        self,
        student: FakeQuantised,
        examples: Examples,
        recipe: QatRecipe,
        seed: int,
        exits: Sequence[int],
        logits: Sequence[int],
    ) -> None:
        self._student, self._recipe, self._exits, self._logits = student, recipe, tuple(exits), tuple(logits)
        self._examples, self._seed = examples, seed
        groups = [
            {"params": list(student.latents.values()), "lr": recipe.learning_rate},
            {"params": [*student.log_steps.values(), student.log_scales], "lr": _STEP_RATE},
            {"params": list(student.biases.values()), "lr": _STEP_RATE},
        ]
        self._optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self._peaks = [group["lr"] for group in self._optimiser.param_groups]
        self.done = 0

    def key(self) -> RunKey:
        """Return the key of the run, of which no step is done."""
        settings = {f"qat {name}": repr(value) for name, value in msgspec.to_builtins(self._recipe).items()}
        settings |= {"seed": str(self._seed), "exits": str(self._exits)}
        return settings | examples_key(self._examples) | module_key(self._student)

    def step(self) -> float:
        """Do a step, and return its loss; what is random in it depends on the seed and its number alone."""
        number, self.done = self.done, self.done + 1
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * _factor(number, self._recipe.steps)
        inputs, labels = self._draw(number)
        graph = self._student.graph
        with torch.no_grad(), mixed_precision(inputs.device):
            wanted = [one.float() for one in graph(inputs)]
        with mixed_precision(inputs.device):
            found = self._student(inputs)
        found, wanted = (
            [_seen(one, at in self._logits) for at, one in enumerate(ends)] for ends in (found, wanted)
        )
        loss = objective(graph, found, wanted, labels, self._recipe.teacher, self._exits)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return float(loss.detach())

    def _draw(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return random inputs [batch, …] and their labels; pictures are moved by up to `_SHIFT` pixels."""
        random, count = np.random.default_rng([self._seed, step]), len(self._examples)
        chosen = random.choice(count, min(self._recipe.batch, count), replace=False)
        inputs = torch.from_numpy(self._examples.batch(chosen))
        if inputs.ndim == 4:
            (height, width), (down, right) = inputs.shape[1:3], map(int, random.integers(0, 2 * _SHIFT + 1, 2))
            padded = functional.pad(inputs.permute(0, 3, 1, 2), (_SHIFT,) * 4, mode="reflect")
            moved = padded[:, :, down : down + height, right : right + width]
            inputs = moved.permute(0, 2, 3, 1).contiguous()
        labels = self._examples.labels
        return inputs, None if labels is None else torch.from_numpy(labels[chosen])

    def state(self) -> dict[str, Any]:
        trained = {name: one.detach() for name, one in self._student.named_parameters() if one.requires_grad}
        return {"trained": trained, "optimiser": self._optimiser.state_dict(), "done": self.done}

    def load_state(self, state: dict[str, Any]) -> None:
        self._student.load_state_dict(state["trained"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]


def _seen(output: Tensor, is_logit: bool) -> Tensor:
    """Return an output as a decoder tells it apart: far from 0, one logit is like another."""
    return output.float().clamp(*LOGITS) if is_logit else output


def _factor(step: int, steps: int) -> float:
    """Return the factor of the learning rates: a short rise, then half a cosine."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def objective(
    graph: TorchGraph,
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    labels: Tensor | None,
    teacher: float,
    exits: Sequence[int] = (),
) -> Tensor:
    """Return the loss of a batch.

    For a classifier, which has one output of one score per class: divergence from the teacher's distribution, and
    cross entropy with the labels, class by class where it ends in a sigmoid; with exits, their mean. For other
    models: mean square of the difference of each output as a share of its variance.
    """
    is_classifier = len(graph.outputs) == 1 and len(graph.shape(graph.outputs[0])) == 2
    places = exits or ((0,) if is_classifier else ())
    if not places:
        parts = [
            (one.float() - other).square().mean() / other.var() for one, other in zip(found, wanted, strict=True)
        ]
        return torch.stack(parts).sum()
    losses = [_of_classes(graph, found[place], wanted[place], labels, teacher) for place in places]
    return torch.stack(losses).mean()


def _of_classes(
    graph: TorchGraph, found: Tensor, wanted: Tensor, labels: Tensor | None, teacher: float
) -> Tensor:
    if graph.operations[-1].kind == "LOGISTIC":
        return _of_single_classes(found, wanted, labels, teacher)
    logs, targets = (_log_probabilities(graph, one.float()) for one in (found, wanted))
    loss = functional.kl_div(logs, targets, reduction="batchmean", log_target=True)
    if labels is None:
        return loss
    smooth = (1 - _SMOOTHING) * functional.nll_loss(logs, labels) - _SMOOTHING * logs.mean()
    return teacher * loss + (1 - teacher) * smooth


def _of_single_classes(found: Tensor, wanted: Tensor, labels: Tensor | None, teacher: float) -> Tensor:
    """Return the loss of probabilities that do not add up to 1: a sigmoid answers for each class by itself."""
    given, taught = (one.float().clamp(_LEAST, 1 - _LEAST).reshape(len(one), -1) for one in (found, wanted))

    def entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy(probabilities, targets, reduction="sum") / len(targets)

    loss = entropy(given, taught) - entropy(taught, taught)
    if labels is None:
        return loss
    smooth = functional.one_hot(labels, given.shape[1]) * (1 - _SMOOTHING) + _SMOOTHING / given.shape[1]
    return teacher * loss + (1 - teacher) * entropy(given, smooth)


def _log_probabilities(graph: TorchGraph, outputs: Tensor) -> Tensor:
    flat = outputs.reshape(len(outputs), -1)
    if graph.operations[-1].kind == "SOFTMAX":
        return (flat.clamp_min(_LEAST) / flat.clamp_min(_LEAST).sum(1, keepdim=True)).log()
    return functional.log_softmax(flat, 1)
