"""Prune a torch module in rounds, with training between and after: what all pruning does, and connections.

After each round come some steps in which the learning rate falls to zero: at a constant one a trained module
leaves its minimum, and loses more by that than by the cut. In the end come some epochs of the same kind, the
anneal. The importance of a weight is |gradient · weight|, summed over the steps of a round, the first-order
estimate of what the loss gains when the weight goes (Molchanov et al., Importance Estimation for Neural Network
Pruning, CVPR 2019).

A teacher is the module as it was before. Its answers are computed once for each picture and its mirror image, so
that an epoch costs no more than one that learns from the labels. They say which other classes a picture resembles
(Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn
from torch.nn import functional

from agent.errors import ModelError
from agent.optimise.checkpoint import Checkpoint, run_key
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import (
    Labels,
    Objective,
    Pictures,
    Progress,
    TrainingSettings,
    fastest_device,
    fit,
    predict,
)

ALL_FROZEN = "no {} can be pruned: all are frozen (requires_grad = False); let the function leave some trainable"
_ROUND_FACTOR = {False: 0.1, True: 0.25}
"""Learning rate at the beginning of each round relative to that of the training settings, by `structured`:
what is left of a smaller module has to be learned more anew."""
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_KEPT = 0.02
"""Share of the weights of each layer that stay in any case: a layer without any would end the signal."""


class PruningRun(ABC):
    """State of a run between two rounds.

    Attributes:
        module: as it is now.
        round: number of rounds that are done.
        sums: of the importance of a round, by layer.
    """

    sums: dict[str, Any]

    def __init__(
        self,
        module: Any,
        pictures: Pictures,
        labels: Labels,
        recipe: PruneRecipe,
        training: TrainingSettings,
        progress: Progress | None = None,
    ) -> None:
        """Begin with a trained module.

        Args:
            module: see `agent.optimise.train.fit`.
            pictures: see there.
            labels: see there.
            recipe: see `PruneRecipe`.
            training: settings of all steps; its schedule and number of epochs are not used.
            progress: called after each training step of a round, then of the anneal.

        Raises:
            ModelError: nothing can be removed, or see `fit`.
        """
        self.module = module.to(fastest_device())
        self.recipe, self.training, self.round = recipe, training, 0
        rows, objective = to_learn(module, pictures, labels, training, recipe.teacher)
        self._data = pictures, rows
        rounds = replace(recipe, anneal_epochs=0.0, anneal_factor=1.0)  # the anneal has a checkpoint of its own
        self._key = run_key(module, pictures, labels, rounds, training)
        hooks = {"after_backward": self.after_backward, "after_step": self.after_step}
        self._options: dict[str, Any] = {"objective": objective, "progress": progress, **hooks}

    @property
    @abstractmethod
    def gone(self) -> float:
        """Share that is zero or gone, 0..1."""

    @property
    @abstractmethod
    def layers(self) -> dict[str, float]:
        """The same of each layer."""

    @abstractmethod
    def remove(self, share: float) -> None:
        """Remove the least important ones until this share is gone."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """Return the importance that follows from the weights alone."""

    @abstractmethod
    def after_backward(self, module: Any) -> None:
        """Sum up importance."""

    def after_step(self, module: Any) -> None:  # noqa: B027 - channels that are gone are no part of the module
        """Keep at zero what is gone."""

    def state(self) -> dict[str, Any]:
        """Return the state between two rounds."""
        return {"module": self.module.state_dict(), "round": self.round, "sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` has returned; the module has its shape already."""
        self.module.load_state_dict(state["module"])
        self.round, self.sums = state["round"], state["sums"]

    def run(self, folder: Path | None = None) -> None:
        """Do all rounds and the anneal.

        Args:
            folder: existing folder for checkpoints, from which an interrupted run goes on to the same bytes;
                None: it cannot go on. That of the rounds also serves a run with another anneal, if the folder has
                no `anneal.checkpoint`.

        Raises:
            ModelError: see `fit`.
            StorageError: a checkpoint cannot be read or written.
        """
        device = next(self.module.parameters()).device
        kept = Checkpoint(folder and folder / "rounds.checkpoint", lambda: self._key, self, device)
        if self.round == 0 and self.recipe.needs_gradients:
            self._train_round()
        while self.round < self.recipe.rounds:
            self.round += 1
            self.remove(self.recipe.target * self.round / self.recipe.rounds)
            self._train_round()
            kept.save()
        self._anneal(folder and folder / "anneal.checkpoint")
        self.module.eval()

    def _train_round(self) -> None:
        settings = round_settings(self.training, self.recipe, len(self._data[1]), self.round)
        torch.manual_seed(settings.seed)
        fit(self.module, *self._data, settings, **self._options)

    def _anneal(self, checkpoint: Path | None) -> None:
        if self.recipe.anneal_epochs:
            settings = anneal_settings(self.training, self.recipe)
            torch.manual_seed(settings.seed)
            fit(self.module, *self._data, settings, **self._options, checkpoint=checkpoint)

    def scores(self) -> dict[str, Any]:
        """Return the importance by layer, tensors of the shapes of `sums`."""
        if self.recipe.needs_gradients:
            return self.sums
        if self.recipe.ranked_by == "weight":
            return self.sizes()
        draw = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.round)
        return {name: torch.rand(one.shape, generator=draw).to(one.device) for name, one in self.sums.items()}


def round_settings(
    training: TrainingSettings, recipe: PruneRecipe, pictures: int, number: int
) -> TrainingSettings:
    """Return settings of the steps after a round: a learning rate that falls to zero.

    Args:
        training: settings of all steps.
        recipe: of pruning.
        pictures: number of training pictures.
        number: of the round, for pictures and augmentations that are others in each.
    """
    per_epoch = pictures // min(training.batch, pictures)
    return replace(
        _falling(training, _ROUND_FACTOR[recipe.structured]),
        epochs=recipe.round_steps / per_epoch,
        look_ahead=0.0,
        seed=training.seed * 1009 + number + 1,
    )


def anneal_settings(training: TrainingSettings, recipe: PruneRecipe) -> TrainingSettings:
    """Return settings of the anneal: a learning rate that falls to zero."""
    return replace(_falling(training, recipe.anneal_factor), epochs=recipe.anneal_epochs)


def _falling(training: TrainingSettings, factor: float) -> TrainingSettings:
    return replace(training.slower(factor), peak_at=0.0, end_factor=0.0)


def to_learn(
    module: Any,
    pictures: Pictures,
    labels: Labels,
    settings: TrainingSettings,
    share: float,
) -> tuple[Labels, Objective | None]:
    """Return what `agent.optimise.train.fit` takes as labels, and as objective.

    Args:
        module: as it is before anything is removed, see `blended`.
        pictures: see there.
        labels: see there.
        settings: see there.
        share: see there; 0: there is no teacher, and no objective. Else the objective is the cross-entropy to
            what is blended, and the labels are the numbers of its rows.
    """
    if not share:
        return labels, None
    wanted = blended(module, pictures, labels, settings, share)

    def loss(outputs: Any, inputs: Any, rows: Any) -> Any:
        target = wanted.to(outputs.device)[rows]
        return functional.cross_entropy(outputs.float() / settings.temperature, target)

    return np.arange(len(labels)), loss


def blended(module: Any, pictures: Pictures, labels: Labels, settings: TrainingSettings, share: float) -> Any:
    """Return what is to be learned of each picture, float32 [pictures, classes], rows of probabilities.

    Args:
        module: trained; see `agent.optimise.train.fit`. It is left in evaluation mode.
        pictures: see there.
        labels: see there.
        settings: of its training: normalisation, temperature, label smoothing, and whether pictures are mirrored.
        share: of the module's answers, 0..1; the smoothed labels have the rest.

    Raises:
        ModelError: the module cannot be run on the pictures, or has fewer classes than the labels.
    """
    views = [pictures, pictures[:, :, ::-1]] if settings.augmentation.flip else [pictures]
    said = [predict(module, view, settings.normalisation) / settings.temperature for view in views]
    answers = sum(functional.softmax(one, 1) for one in said) / len(said)
    classes = answers.shape[1]
    if labels.max() >= classes:
        raise ModelError(f"training labels: there is a class {labels.max()}, but the module has {classes}")
    hard = functional.one_hot(torch.from_numpy(np.ascontiguousarray(labels, np.int64)), classes).float()
    smooth = hard * (1 - settings.label_smoothing) + settings.label_smoothing / classes
    return smooth * (1 - share) + answers * share


def prunable(module: Any) -> dict[str, Any]:
    """Return the weights of a module's convolutions and linear layers that are trained, by the layer's name.

    Raises:
        ModelError: none is trained.
    """
    layers = ((name, one.weight) for name, one in module.named_modules() if isinstance(one, _LAYERS))
    found = {name: weight for name, weight in layers if weight.requires_grad}
    if not found:
        raise ModelError(ALL_FROZEN.format("layer"))
    return found


class ConnectionPruning(PruningRun):
    """Masks of the connections that are still there, and the importance of all; the module is changed."""

    def __init__(self, module: Any, *given: Any) -> None:
        super().__init__(module, *given)
        self._weights = prunable(module)
        self._masks = {name: torch.ones_like(one, dtype=torch.bool) for name, one in self._weights.items()}
        self.sums = {name: torch.zeros_like(one) for name, one in self._weights.items()}

    @property
    def gone(self) -> float:
        return sparsity_of(self._masks)

    @property
    def layers(self) -> dict[str, float]:
        return {name: float((~mask).float().mean()) for name, mask in self._masks.items()}

    def remove(self, share: float) -> None:
        cut(self._masks, self.scores(), share)
        self.after_step(self.module)
        for one in self.sums.values():
            one.zero_()

    def after_backward(self, module: Any) -> None:
        """Sum up importance, and stop the gradients of weights that are gone."""
        for name, weight in self._weights.items():
            gradient = weight.grad
            if self.recipe.needs_gradients:
                self.sums[name] += (gradient * weight.detach()).abs()
            gradient.mul_(self._masks[name])

    def after_step(self, module: Any) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self._masks[name])

    def sizes(self) -> dict[str, Any]:
        return {name: weight.detach().abs() for name, weight in self._weights.items()}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "masks": self._masks}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._masks = state["masks"]


def cut(masks: Mapping[str, Any], scores: Mapping[str, Any], target: float) -> None:
    """Clear the mask of the weights of least importance, in place.

    Of each layer a small share stays in any case.

    Args:
        masks: True for weights that are still there, by layer.
        scores: importance of each weight, of the same shapes.
        target: share of all weights whose mask is to be cleared, 0..1; those that are clear already count.
    """
    free = {name: mask & ~_kept(mask, scores[name]) for name, mask in masks.items()}
    ranked = torch.cat([torch.where(free[name], scores[name], math.inf).flatten().cpu() for name in masks])
    gone_already = sum(int((~mask).sum()) for mask in masks.values())
    count = min(round(target * len(ranked)) - gone_already, sum(int(one.sum()) for one in free.values()))
    gone = torch.zeros(len(ranked), dtype=torch.bool)
    gone[ranked.topk(max(count, 0), largest=False).indices] = True
    for mask, part in zip(masks.values(), gone.split([mask.numel() for mask in masks.values()]), strict=True):
        mask &= ~part.reshape(mask.shape).to(mask.device)


def _kept(mask: Any, scores: Any) -> Any:
    """Return a mask of the weights of a layer that stay in any case: by number, since scores may be equal."""
    count = min(max(1, math.ceil(_KEPT * mask.numel())), int(mask.sum()))
    kept = torch.zeros_like(mask).flatten()
    kept[torch.where(mask, scores, -math.inf).flatten().topk(count).indices] = True
    return kept.reshape(mask.shape)


def sparsity_of(masks: Mapping[str, Any]) -> float:
    """Return the share of all weights that are masked, 0..1."""
    return sum(int((~one).sum()) for one in masks.values()) / sum(int(one.numel()) for one in masks.values())
