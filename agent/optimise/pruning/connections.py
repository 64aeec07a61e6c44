"""Prune connections of a torch module in rounds, with training between and after.

Each round sets the least important weights of all layers together to zero, where they stay, and trains for some
steps, in which the learning rate falls to zero: at a constant one a trained module leaves its minimum, and loses
more by that than by the cut. In the end come some epochs of the same kind, the anneal. The importance of a weight
is |gradient · weight|, summed over the steps of a round, the first-order estimate of what the loss gains when the
weight goes (Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import nn

from agent.errors import ModelError
from agent.optimise.checkpoint import read_checkpoint, run_key, write_checkpoint
from agent.optimise.factory import fastest_device
from agent.optimise.pruning.teacher import to_learn
from agent.optimise.recipe import NEED_GRADIENTS, Importance
from agent.optimise.report import as_png, new_figure
from agent.optimise.train import (
    Labels,
    Objective,
    Pictures,
    Progress,
    Test,
    TrainingSettings,
    evaluate,
    fit,
)
from agent.structs import from_json

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_KEPT = 0.02
"""Share of the weights of each layer that stay in any case: a layer without any would end the signal."""
_TINY = 1e-8


class PruneSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How a module is pruned.

    Attributes:
        target: share of the weights of the chosen layers that is zero in the end; of channels: that is gone.
        importance: what is removed last. `gradient*weight` and `gradient/weight` are summed over the steps since
            the round before.
        rounds: in each of which the same number is removed.
        round_steps: training steps after each round, and before the first where the importance needs gradients.
        anneal_epochs: passes over the data at the end.
        round_factor: learning rate at the beginning of each round, relative to that of the training settings.
        anneal_factor: learning rate at the beginning of the anneal, relative to the same.
        layers: patterns of layers' names with `*`, `?` and `[…]`; frozen layers are never chosen.
        multiple: the number of channels that stay is a multiple of this, for the kernels of boards.
        over_layers: channels are compared over all layers, and each keeps at least six tenths of what it would
            keep otherwise; False: the same share of each layer's channels goes. Connections are always compared
            over all layers.
        teacher: weight of the answers of the module before in the loss, 0..1; the labels have the rest.
    """

    target: float = 0.8
    importance: Importance = "gradient*weight"
    rounds: int = 16
    round_steps: int = 6
    anneal_epochs: float = 2.0
    round_factor: float = 0.1
    anneal_factor: float = 0.4
    layers: tuple[str, ...] = ("*",)
    multiple: int = 8
    over_layers: bool = False
    teacher: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError(f"target: expected more than 0 and less than 1, got {self.target}")
        for name, least in (("rounds", 1), ("round_steps", 0), ("anneal_epochs", 0), ("multiple", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 <= self.teacher <= 1:
            raise ValueError(f"teacher: expected 0 to 1, got {self.teacher}")
        for name in ("round_factor", "anneal_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.importance in NEED_GRADIENTS and not self.round_steps:
            raise ValueError(f"round_steps: expected 1 or more, since {self.importance} needs gradients, got 0")


class PrunePoint(Struct, frozen=True):
    """Where a module stood in its pruning: a point of the report's chart.

    Attributes:
        stage: `dense`, `round` or `anneal`.
        number: of the round, or of the epoch of the anneal.
        sparsity: share of the weights of the chosen layers that is zero or gone.
        accuracy: on the test pictures; None: not measured.
    """

    stage: str
    number: int
    sparsity: float
    accuracy: float | None


class PruneHistory(Struct, frozen=True):
    """What pruning did.

    Attributes:
        points: in order.
        layers: share of the weights of each chosen layer that is zero.
    """

    points: tuple[PrunePoint, ...]
    layers: dict[str, float]


def prunable(module: Any) -> dict[str, Any]:
    """Return the weights of a module's convolutions and linear layers that are trained, by the layer's name."""
    return {
        name: layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and layer.weight.requires_grad
    }


def frozen(module: Any) -> list[str]:
    """Return the names of a module's convolutions and linear layers that are not trained."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and not layer.weight.requires_grad
    ]


def matching(names: Iterable[str], patterns: Sequence[str], what: str) -> list[str]:
    """Return the names that a pattern matches.

    Args:
        names: of layers.
        patterns: with `*`, `?` and `[…]`.
        what: the names are of, for the error, such as `layer`.

    Raises:
        ModelError: a pattern matches none.
    """
    names = list(names)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            there = ", ".join(names) or "none"
            raise ModelError(f"layers = {pattern!r} matches no {what} that can be pruned; there are: {there}")
    return [name for name in names if any(fnmatch.fnmatch(name, one) for one in patterns)]


def prune(
    module: Any,
    pictures: Pictures,
    labels: Labels,
    settings: PruneSettings,
    training: TrainingSettings,
    *,
    folder: Path | None = None,
    weights: Mapping[str, Any] | None = None,
    test: Test | None = None,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> PruneHistory:
    """Set connections of a trained module to zero, in place.

    Args:
        module: see `agent.optimise.train.fit`.
        pictures: see there.
        labels: see there.
        settings: see `PruneSettings`.
        training: settings of all steps; its schedule and number of epochs are not used.
        folder: existing folder for checkpoints, from which an interrupted run goes on to the same bytes; None:
            it cannot go on. That of the rounds also serves a run with another anneal.
        weights: parameters that may be pruned, by the layer's name; None: see `prunable`.
        test: pictures and labels on which the module is scored after each round and each epoch of the anneal.
        objective: see `fit`; one with a teacher is not used.
        progress: called after each training step of a round, then of the anneal.

    Raises:
        ModelError: a pattern matches no layer, or see `fit`.
        StorageError: a checkpoint cannot be read or written.
    """
    run = _Pruning(module, pictures, labels, settings, training, weights, objective, progress)
    if folder is not None:
        run.restore(folder / "rounds.checkpoint")
    run.warm_up(test)
    while run.round < settings.rounds:
        run.next_round(test)
        if folder is not None:
            run.save(folder / "rounds.checkpoint")
    run.anneal(folder and folder / "anneal.checkpoint", test)
    module.eval()
    return PruneHistory(points=tuple(run.points), layers={name: _zeros(one) for name, one in run.masks.items()})


class _Pruning:
    """State of a run between two rounds."""

    def __init__(
        self,
        module: Any,
        pictures: Pictures,
        labels: Labels,
        settings: PruneSettings,
        training: TrainingSettings,
        weights: Mapping[str, Any] | None,
        objective: Objective | None,
        progress: Progress | None,
    ) -> None:
        self.module = module.to(fastest_device())
        self.settings, self.training = settings, training
        rows, objective = to_learn(module, pictures, labels, training, settings.teacher, objective)
        self.data = pictures, rows
        self.options: dict[str, Any] = {"objective": objective, "progress": progress}
        weights = prunable(module) if weights is None else weights
        self.weights = {name: weights[name] for name in matching(weights, settings.layers, "layer")}
        rounds = replace(settings, anneal_epochs=0.0, anneal_factor=1.0)  # the anneal has a checkpoint of its own
        self.key = run_key(module, pictures, labels, rounds, training)
        self.masks = {name: torch.ones_like(one, dtype=torch.bool) for name, one in self.weights.items()}
        self.sums = {name: torch.zeros_like(one) for name, one in self.weights.items()}
        self.round = 0
        self.points: list[PrunePoint] = []

    def warm_up(self, test: Test | None) -> None:
        """Sum up gradients before the first round, and score the module as it came."""
        if self.points:
            return
        self._score("dense", 0, test)
        if self.settings.importance in NEED_GRADIENTS:
            self._train_round()

    def next_round(self, test: Test | None) -> None:
        self.round += 1
        target = self.settings.target * self.round / self.settings.rounds
        cut(self.masks, self._scores(), target)
        self._apply_masks(self.module)
        for one in self.sums.values():
            one.zero_()
        if self.settings.round_steps:
            self._train_round()
        self._score("round", self.round, test)

    def _train_round(self) -> None:
        pictures, labels = self.data
        settings = round_settings(self.training, self.settings, len(labels), self.round)
        torch.manual_seed(settings.seed)
        fit(self.module, pictures, labels, settings, **self._hooks(), **self.options)

    def anneal(self, checkpoint: Path | None, test: Test | None) -> None:
        if not self.settings.anneal_epochs:
            return
        settings = anneal_settings(self.training, self.settings)
        torch.manual_seed(settings.seed)
        # The key of the rounds tells other runs; of the same rounds, another anneal begins anew.
        more = {**self._hooks(), **self.options, "checkpoint": checkpoint, "renews": True, "test": test}
        history = fit(self.module, *self.data, settings, **more)
        sparsity = sparsity_of(self.masks)
        self.points += [PrunePoint("anneal", one.number, sparsity, one.accuracy) for one in history.epochs]

    def _hooks(self) -> dict[str, Any]:
        return {"after_backward": self._after_backward, "after_step": self._apply_masks}

    def _after_backward(self, module: Any) -> None:
        """Sum up importance, and stop the gradients of weights that are gone."""
        importance = self.settings.importance
        for name, weight in self.weights.items():
            gradient = weight.grad
            if importance in NEED_GRADIENTS:
                self.sums[name] += weight_importance(gradient, weight.detach(), importance)
            gradient.mul_(self.masks[name])

    def _apply_masks(self, _module: Any) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.masks[name])

    def _scores(self) -> dict[str, Any]:
        if self.settings.importance in NEED_GRADIENTS:
            return self.sums
        if self.settings.importance == "weight":
            return {name: weight.detach().abs() for name, weight in self.weights.items()}
        draw = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.round)
        return {name: torch.rand(mask.shape, generator=draw).to(mask.device) for name, mask in self.masks.items()}

    def _score(self, stage: str, number: int, test: Test | None) -> None:
        normalisation = self.training.normalisation
        accuracy = None if test is None else evaluate(self.module, *test, normalisation=normalisation)
        self.points.append(PrunePoint(stage, number, sparsity_of(self.masks), accuracy))

    def save(self, path: Path) -> None:
        state = {
            "module": self.module.state_dict(),
            "masks": self.masks,
            "sums": self.sums,
            "round": self.round,
            "points": msgspec.json.encode(self.points).decode(),
        }
        write_checkpoint(path, self.key, state)

    def restore(self, path: Path) -> None:
        device = next(self.module.parameters()).device
        state = read_checkpoint(path, self.key, device)
        if state is None:
            self.save(path)  # a disk that refuses it is found now
            return
        self.module.load_state_dict(state["module"])
        self.masks, self.sums, self.round = state["masks"], state["sums"], state["round"]
        self.points = from_json(state["points"], list[PrunePoint])


def weight_importance(gradient: Any, weight: Any, importance: Importance) -> Any:
    """Return the importance of each weight in one step, a tensor of the weights' shape.

    Args:
        gradient: of the loss.
        weight: of the same shape.
        importance: one of `NEED_GRADIENTS`.
    """
    if importance == "gradient*weight":
        return (gradient * weight).abs()
    return gradient.abs() / (weight.abs() + _TINY)


def round_settings(
    training: TrainingSettings, settings: PruneSettings, pictures: int, number: int
) -> TrainingSettings:
    """Return settings of the steps after a round: a learning rate that falls to zero.

    Args:
        training: settings of all steps.
        settings: of pruning.
        pictures: number of training pictures.
        number: of the round, for pictures and augmentations that are others in each.
    """
    per_epoch = pictures // min(training.batch, pictures)
    return replace(
        _falling(training, settings.round_factor),
        epochs=settings.round_steps / per_epoch,
        look_ahead=0.0,
        seed=training.seed * 1009 + number + 1,
    )


def anneal_settings(training: TrainingSettings, settings: PruneSettings) -> TrainingSettings:
    """Return settings of the anneal: a learning rate that falls to zero."""
    return replace(_falling(training, settings.anneal_factor), epochs=settings.anneal_epochs)


def _falling(training: TrainingSettings, factor: float) -> TrainingSettings:
    return replace(training.slower(factor), peak_at=0.0, end_factor=0.0)


def cut(masks: Mapping[str, Any], scores: Mapping[str, Any], target: float) -> None:
    """Clear the mask of the weights of least importance, in place.

    Of each layer a small share stays in any case.

    Args:
        masks: True for weights that are still there, by layer.
        scores: importance of each weight, of the same shapes.
        target: share of all weights whose mask is to be cleared, 0..1; those that are clear already count.
    """
    removable = {name: mask & ~_kept(mask, scores[name]) for name, mask in masks.items()}
    alive = torch.cat([scores[name][mask].cpu() for name, mask in removable.items()])
    total = sum(mask.numel() for mask in masks.values())
    count = min(round(target * total) - sum(int((~mask).sum()) for mask in masks.values()), len(alive))
    if count <= 0:
        return
    threshold = float(alive.kthvalue(count)[0])
    surplus = int((alive <= threshold).sum()) - count
    for name, mask in masks.items():
        gone = removable[name] & (scores[name] <= threshold)
        surplus = _spare(gone, scores[name] == threshold, surplus)
        mask &= ~gone


def _kept(mask: Any, scores: Any) -> Any:
    """Return a mask of the weights of a layer that stay in any case: by number, since scores may be equal."""
    count = min(max(1, math.ceil(_KEPT * mask.numel())), int(mask.sum()))
    kept = torch.zeros_like(mask).flatten()
    kept[torch.where(mask, scores, -math.inf).flatten().topk(count).indices] = True
    return kept.reshape(mask.shape)


def _spare(gone: Any, equal: Any, surplus: int) -> int:
    """Keep weights that score as the threshold, so that no more go than should; return what is left to keep."""
    places = (gone & equal).nonzero()[:surplus]
    gone[tuple(places.T)] = False
    return surplus - len(places)


def sparsity_of(masks: Mapping[str, Any]) -> float:
    """Return the share of all weights that are masked, 0..1."""
    return sum(int((~one).sum()) for one in masks.values()) / sum(int(one.numel()) for one in masks.values())


def _zeros(mask: Any) -> float:
    return float((~mask).float().mean())


def draw_curves(histories: Mapping[str, PruneHistory]) -> bytes:
    """Return a PNG of accuracy over the rounds and the epochs of the anneal, a line for each history.

    Raises:
        ModelError: matplotlib is not installed.
    """
    figure = new_figure(9.0, 4.0)
    rounds, anneal = figure.subplots(1, 2, sharey=True)
    for name, history in histories.items():
        label = name.replace("$", r"\$")
        rounds.plot(*_line(history, ("dense", "round"), "sparsity"), marker=".", label=label)
        anneal.plot(*_line(history, ("anneal",), "number"), marker=".", label=label)
    rounds.set(xlabel="weights that are zero, %", ylabel="accuracy, %", title="rounds")
    anneal.set(xlabel="epoch", title="anneal")
    for axis in (rounds, anneal):
        axis.grid(alpha=0.3)
    if histories:
        rounds.legend()
    return as_png(figure)


def _line(history: PruneHistory, stages: Sequence[str], x: str) -> tuple[list[float], list[float]]:
    def points() -> Iterator[tuple[float, float]]:
        for one in history.points:
            if one.stage in stages and one.accuracy is not None:
                yield (one.sparsity * 100 if x == "sparsity" else float(one.number)), one.accuracy * 100

    found = list(points())
    return [one[0] for one in found], [one[1] for one in found]
