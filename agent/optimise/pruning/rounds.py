"""Prune a torch module in rounds, with training between and after: what connections and channels have in common.

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

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch.nn import functional

from agent.errors import ModelError
from agent.optimise.checkpoint import Checkpoint, run_key
from agent.optimise.factory import fastest_device
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import Labels, Objective, Pictures, Progress, TrainingSettings, fit, predict

ALL_FROZEN = "no {} can be pruned: all are frozen (requires_grad = False); let the function leave some trainable"
_ROUND_FACTOR = {False: 0.1, True: 0.25}
"""Learning rate at the beginning of each round relative to that of the training settings, by `structured`:
what is left of a smaller module has to be learned more anew."""


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
