"""Trains exits: first the heads alone, on features of the backbone as it is, then all together.

Heads on fixed features are a convex problem, which L-BFGS solves from one pass over the pictures. Joint training
goes on from there, with batch norms.

The loss of a network with several exits: labels at each, and the last exit teaches the others.

Source of the self-distillation: Zhang et al., Be Your Own Teacher, https://arxiv.org/abs/1905.08094.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from torch.nn import functional

from agent.optimise.augment import Normalisation
from agent.optimise.checkpoint import read_checkpoint, run_key, write_checkpoint
from agent.optimise.depth.network import Dense, ExitNetwork
from agent.optimise.recipe import DepthRecipe
from agent.optimise.train import TrainingSettings, TrainingStep, clip_gradients, fit, mixed_precision

Tensor = Any
TAUGHT = 0.5
"""Weight of the last exit's answers against the labels, in the loss of the others."""
TEMPERATURE = 2.0
"""Divisor of the logits when exits are compared, so that small probabilities count, too."""


def exit_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    taught: float = TAUGHT,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum of the losses of all exits.

    Args:
        logits: of each exit, float [batch, classes]; shallow first. The last one is the teacher, and learns from
            the labels alone.
        labels: classes, int64 [batch].
        taught: weight of the teacher, 0..1; the labels have the rest.
        label_smoothing: share of the labels that is spread over all classes.
    """
    *early, last = (one.float() for one in logits)
    teacher = functional.softmax(last.detach() / TEMPERATURE, dim=1)
    loss = functional.cross_entropy(last, labels, label_smoothing=label_smoothing)
    for own in early:
        logs = functional.log_softmax(own / TEMPERATURE, dim=1)
        distance = functional.kl_div(logs, teacher, reduction="batchmean") * TEMPERATURE**2
        right = functional.cross_entropy(own, labels, label_smoothing=label_smoothing)
        loss = loss + (1 - taught) * right + taught * distance
    return loss


HEADS, JOINT = "heads.checkpoint", "joint.checkpoint"
"""Files in the folder of checkpoints."""
_RATE = 0.1
"""Learning rate relative to the recipe's, which is for a network that is trained from the start."""
_MEASURED = 1024
"""Pictures from which the statistics of batch norms are taken at the start."""
_BATCH = 256
_MOST = 50_000
"""Pictures on which heads are fitted at most."""
_RIDGE, _MOST_RIDGE = 100.0, 0.05
"""Penalty of the squared weights of a head on features of deviation 1, divided by the number of pictures; and the
largest."""


class TrainedExits(Struct, frozen=True):
    """Result of `train_exits`.

    Attributes:
        content: float file of the network, with the outputs of all exits.
        is_joint: False: the heads alone were trained, or training all exits together did not help.
        accuracy: of every exit on the pictures to measure on, shallow first.
    """

    content: bytes
    is_joint: bool
    accuracy: tuple[float, ...]

    @property
    def told(self) -> str:
        """The accuracies in words."""
        shares = ", ".join(f"{one:.1%}" for one in self.accuracy)
        return f"accuracy of the exits {shares} of the examples for the thresholds"


Progress = Callable[[str], None]
Data = tuple[NDArray[Any], NDArray[np.int64]]


def train_exits(
    network: ExitNetwork,
    data: Data,
    test: Data,
    recipe: DepthRecipe,
    training: TrainingSettings,
    *,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
    tell: Progress = lambda _: None,
) -> TrainedExits:
    """Train a network in place.

    The joint training counts only if the exits get better in the mean, and the last one hardly worse.

    Args:
        network: its heads are fitted anew.
        data: pictures uint8, or values float32, [n, height, width, channels], and classes.
        test: the same, to decide.
        recipe: its `epochs` and `loss` count.
        training: of the joint training, with a part of its learning rate, see `_RATE`.
        folder: for checkpoints, from which an interrupted run goes on; None: none are written.
        progress: told after each step.
        tell: told the accuracy of every exit.

    Raises:
        ModelError: the data does not fit, the loss is not finite, or a checkpoint belongs to another run.
        StorageError: a checkpoint cannot be read or written.
    """
    training = replace(training.slower(_RATE), epochs=recipe.epochs or 1.0, temperature=1.0)
    fit_heads(network, data, training, folder=folder, progress=progress)
    alone = _result(network, test, training, is_joint=False)
    tell(f"heads alone: {alone.told}")
    if not recipe.epochs:
        return alone

    def objective(logits: Any, _inputs: Any, labels: Any) -> Any:
        return exit_loss(logits, labels, label_smoothing=training.label_smoothing)

    def show(step: TrainingStep) -> None:
        assert step.loss is not None
        progress(f"training all exits {step.done / step.total:.0%}, loss {step.loss:.3f}")

    first = _spread(len(data[1]), _MEASURED)
    network.unfold(training.normalisation.apply(torch.from_numpy(data[0][first])))
    checkpoint = folder / JOINT if folder else None
    fit(
        network,
        *data,
        training,
        checkpoint=checkpoint,
        objective=objective,
        after_backward=clip_gradients,
        progress=show,
    )
    network.cpu()
    joint = _result(network, test, training, is_joint=True)
    tell(f"all exits trained together: {joint.told}")
    is_better = sum(joint.accuracy) > sum(alone.accuracy)
    return joint if is_better and joint.accuracy[-1] >= alone.accuracy[-1] - recipe.loss else alone


def _result(network: ExitNetwork, test: Data, training: TrainingSettings, *, is_joint: bool) -> TrainedExits:
    return TrainedExits(network.emit(), is_joint, accuracies(network, *test, training.normalisation))


def accuracies(
    network: ExitNetwork, pictures: NDArray[Any], labels: NDArray[Any], normalisation: Normalisation
) -> tuple[float, ...]:
    """Return the share of right answers of every exit, shallow first."""
    right = np.zeros(len(network.heads) + 1)
    network.eval()
    with torch.no_grad():
        for part, inputs in _batches(network, pictures, normalisation):
            with mixed_precision(inputs.device):
                outputs = network(inputs)
            wanted = torch.from_numpy(labels[part]).to(inputs.device)
            right += [int((one.argmax(1) == wanted).sum()) for one in outputs]
    return tuple(float(share) for share in right / len(labels))


def _batches(
    network: ExitNetwork, pictures: NDArray[Any], normalisation: Normalisation
) -> Iterator[tuple[slice, Tensor]]:
    device = next(network.parameters()).device
    for start in range(0, len(pictures), _BATCH):
        part = slice(start, start + _BATCH)
        raw = torch.from_numpy(np.ascontiguousarray(pictures[part])).to(device)
        yield part, normalisation.apply(raw)


def fit_heads(
    network: ExitNetwork,
    data: Data,
    training: TrainingSettings,
    *,
    folder: Path | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Fit the heads to the backbone as it is; args as `train_exits`."""
    pictures, labels = (one[_spread(len(data[1]), _MOST)] for one in data)
    key = run_key(network, pictures, labels, replace(training, epochs=1.0))
    path = folder / HEADS if folder else None
    if path and (state := read_checkpoint(path, key)):
        network.heads.load_state_dict(state["heads"])
        return
    taken = _features(network, pictures, training.normalisation, progress)
    for number, head in enumerate(network.heads):
        progress(f"fitting heads {number / len(network.heads):.0%}")
        _fit(head, taken[number], taken[-1], torch.from_numpy(labels), training.label_smoothing)
    if path:
        write_checkpoint(path, key, {"heads": network.heads.state_dict()})


def _spread(count: int, most: int) -> NDArray[np.intp]:
    return np.linspace(0, count - 1, min(count, most)).astype(np.intp)


def _features(
    network: ExitNetwork, pictures: NDArray[Any], normalisation: Normalisation, progress: Progress
) -> list[Tensor]:
    """Return what each head takes, and the logits of the last exit, float32 [pictures, …]."""
    found: list[list[Tensor]] = [[] for _ in range(len(network.heads) + 1)]
    network.eval()
    with torch.no_grad():
        for part, inputs in _batches(network, pictures, normalisation):
            with mixed_precision(inputs.device):
                taken, logits = network.features(inputs)
            for place, value in zip(found, (*taken, logits), strict=True):
                place.append(value.float().cpu())
            progress(f"computing features {min(1.0, part.stop / len(pictures)):.0%}")
    return [torch.cat(values) for values in found]


def _fit(head: Dense, features: Tensor, teacher: Tensor, labels: Tensor, smoothing: float) -> None:
    def loss(logits: Tensor) -> Tensor:
        return exit_loss([logits, teacher], labels, label_smoothing=smoothing)

    head.set_features(features.mean(0), features.std(0, unbiased=False))
    head.fit(features, loss, min(_MOST_RIDGE, _RIDGE / len(features)))
