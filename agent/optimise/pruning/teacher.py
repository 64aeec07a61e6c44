"""Teach a pruned module the answers of the module that it is made from, besides the labels.

They are computed once, before anything is removed, for each picture and its mirror image, so that an epoch costs
no more than one that learns from the labels. Changes that move an object by little move the answers by little,
too. The answers say which other classes a picture resembles (Hinton, Vinyals and Dean, Distilling the Knowledge
in a Neural Network, arXiv 1503.02531).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from agent.errors import ModelError
from agent.optimise.train import Labels, Objective, Pictures, TrainingSettings, predict


def to_learn(
    module: Any,
    pictures: Pictures,
    labels: Labels,
    settings: TrainingSettings,
    share: float,
    objective: Objective | None,
) -> tuple[Labels, Objective | None]:
    """Return what `agent.optimise.train.fit` takes as labels, and as objective.

    Args:
        module: as it is before anything is removed, see `blended`.
        pictures: see there.
        labels: see there.
        settings: see there.
        share: see there; 0: there is no teacher.
        objective: the one without a teacher.
    """
    if not share:
        return labels, objective
    wanted = blended(module, pictures, labels, settings, share)
    return np.arange(len(labels)), follow(wanted, settings.temperature)


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


def follow(wanted: Any, temperature: float) -> Objective:
    """Return the cross-entropy to rows of probabilities; the labels of `fit` are the numbers of the rows.

    Args:
        wanted: see `blended`.
        temperature: outputs are divided by it.
    """

    def loss(outputs: Any, inputs: Any, rows: Any) -> Any:
        target = wanted.to(outputs.device)[rows]
        return functional.cross_entropy(outputs.float() / temperature, target)

    return loss
