"""Teaches new classes to a network that knows pictures: its last layer by regression, and blocks by training.

The blocks before are run once for each picture, so that a hundred pictures take seconds. The last layer is a
logistic regression on features that are brought to mean 0 and deviation 1, with a penalty on large weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from agent.optimise.augment import Augmentation, Normalisation
from agent.optimise.depth.network import Dense
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.graph.runtime_graph import GraphPiece
from agent.optimise.recipe import TrainRecipe
from agent.optimise.train import Labels, Pictures, Test, TrainingSettings, TrainingStep, clip_gradients, fit
from agent.optimise.training.data import PREPARATION
from agent.optimise.training.networks import PretrainedClassifier
from agent.optimise.workers import joined

_RATE, _BATCH = 0.0015, 64
"""Learning rate for a batch of so many, and the batch."""
_RIDGE = 5.0
"""Penalty of the squared weights on features of deviation 1, divided by the number of examples."""


class _Tail(nn.Module):
    """The last blocks while they are trained: their norms stay, since a batch of few pictures misleads them."""

    def __init__(self, tail: nn.Module, last: Dense) -> None:
        super().__init__()
        self.tail, self.last = tail, last

    def train(self, mode: bool = True) -> _Tail:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def forward(self, maps: Any) -> Any:
        return self.last(self.tail(maps))


def transfer(
    network: PretrainedClassifier,
    pictures: Pictures,
    labels: Labels,
    recipe: TrainRecipe,
    epochs: float,
    *,
    checkpoint: Path | None = None,
    test: Test | None = None,
    progress: Callable[[TrainingStep], None] = lambda _: None,
) -> None:
    """Teach a network new classes.

    Args:
        network: is changed.
        pictures: uint8 [pictures, height, width, 3].
        labels: int64 [pictures].
        recipe: `flip` and `turn` show the pictures mirrored and turned as well; `learning_rate` is relative to
            the usual one.
        epochs: passes in which the last blocks are trained as well; 0: the last layer alone.
        checkpoint: of the training of the last blocks; None: it cannot be continued.
        test: see `agent.optimise.train.fit`.
        progress: called after each step, and after each picture that the fixed blocks have seen.

    Raises:
        ModelError: the training diverges. StorageError, CheckpointError: see `agent.optimise.train.fit`.
    """
    views = list(_views(pictures, recipe))
    runs = [*views, test[0]] if test and epochs else views
    done, total = count(1), sum(map(len, runs))
    body = _piece(network.body, pictures.shape[1:])

    def mapped(some: Pictures) -> Pictures:
        found = []
        for picture in some:
            found.append(body((picture[None].astype(np.float32) - PREPARATION.mean) / PREPARATION.std)[0])
            progress(TrainingStep(next(done), total, None))
        return np.concatenate(found)

    maps = [mapped(one) for one in runs]
    learned, known = np.concatenate(maps[: len(views)]), np.tile(labels, len(views))
    tail = _piece(network.tail, learned.shape[1:])
    features = torch.from_numpy(np.concatenate([tail(one[None])[0] for one in learned]))
    last = regression(features, known, network.last.out_features)
    if epochs:
        batch = min(recipe.batch or _BATCH, len(known))
        settings = TrainingSettings(
            epochs=epochs,
            batch=batch,
            learning_rate=_RATE * recipe.learning_rate * batch / _BATCH,
            decay=recipe.decay,
            momentum=recipe.momentum,
            label_smoothing=recipe.label_smoothing,
            augmentation=Augmentation(shift=0, flip=False),
            normalisation=Normalisation(0.0, 1.0),
            seed=recipe.seed,
        )
        held = (maps[-1], test[1]) if test else None
        trained = _Tail(network.tail, last)
        fit(
            trained,
            learned,
            known,
            settings,
            checkpoint=checkpoint,
            test=held,
            after_backward=clip_gradients,
            progress=progress,
            workers=joined(),
        )
    with torch.no_grad():
        for own, found in zip((network.last.weight, network.last.bias), last.folded(), strict=True):
            own.copy_(found)


def _piece(module: nn.Module, shape: tuple[int, ...]) -> GraphPiece:
    """Return a module in the runtime, which is several times as fast as PyTorch on a processor."""
    height, width, channels = shape
    return GraphPiece(float_tflite(module.eval(), (height, width, channels)))


def _views(pictures: Pictures, recipe: TrainRecipe) -> Iterator[Pictures]:
    """Yield pictures as they are, mirrored and turned."""
    for view in (pictures, pictures[:, :, ::-1])[: 1 + recipe.flip]:
        for quarters in range(4 if recipe.turn and view.shape[1] == view.shape[2] else 1):
            yield np.rot90(view, quarters, (1, 2))


def regression(features: Any, labels: Labels, classes: int) -> Dense:
    """Return the last layer that a logistic regression finds.

    A feature that hardly changes counts as one of the median deviation: brought to 1 it would get a large weight,
    and each rounding in the network before would count as much.

    Args:
        features: float tensor [examples, features].
        labels: int64 [examples].
        classes: number of classes.
    """
    last, wanted = Dense(features.shape[1], classes), torch.from_numpy(np.ascontiguousarray(labels))
    deviation = features.std(0)
    last.set_features(features.mean(0), deviation.clamp_min(float(deviation.median())))
    last.fit(features, lambda logits: functional.cross_entropy(logits, wanted), _RIDGE / len(labels))
    return last
