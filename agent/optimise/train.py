"""Train a torch module on pictures: SGD with Nesterov momentum, bf16 where it is fast, runs that go on.

The recipe follows airbench (Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv 2404.00498): a
triangular schedule, learning rates of their own for norms, label smoothing, look-ahead averages, and flips that
alternate between epochs. `TrainingSettings` has the values.

All that is random depends on the seed and on the number of the step alone, but for what a module draws itself,
such as dropout, whose state is in the checkpoint. So an interrupted run ends with the same weights, bit for bit,
as one that was not, on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from agent.errors import DivergedError, ModelError
from agent.optimise.augment import Augmentation, Augmenter, Normalisation
from agent.optimise.checkpoint import Checkpoint, run_key
from agent.optimise.graph.from_torch import first_line
from agent.optimise.workers import Workers
from agent.structs import from_json

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_LOOK_AHEAD_STEPS = 5
_STEEPEST, _SMALL = 0.1, 0.01
"""Largest norm of a gradient, relative to that of the weights; and the least root mean square that these count
with."""
_AT_ONCE = 500
"""Pictures that are run at once without training."""
_ROUNDING = 1e-6

Pictures = NDArray[Any]
"""uint8 [pictures, height, width, channels], or real values float32."""
Labels = NDArray[Any]
"""Class indices, int64 [pictures]."""
Test = tuple[Pictures, Labels]


class TrainingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the result of a training run, besides module and data.

    Attributes:
        epochs: passes over the pictures; may be a fraction.
        batch: pictures a step; all of them where there are fewer. The rest of an epoch is left out.
        learning_rate: of weights at the peak, for the mean loss of a batch.
        norm_factor: learning rate of the parameters of norms, relative to `learning_rate`.
        decay: share of a weight that one step at the peak takes away.
        norm_decay: the same of the parameters of norms.
        momentum: Nesterov's.
        label_smoothing: share of the target that is spread over all classes.
        temperature: outputs are divided by it before the loss, so that gradients are smaller.
        start_factor: learning rate of the first step, relative to the peak.
        end_factor: that of the last step.
        peak_at: position of the peak, 0..1 of the run; 0: the run starts at the peak.
        look_ahead: decay of a moving average of all parameters, a step, to which they are set back every five
            steps, less and less often felt towards the start; 0: none.
        augmentation: changes of each picture.
        normalisation: of all pictures, also of those of `evaluate`.
        seed: of order and augmentation.
    """

    epochs: float = 12.0
    batch: int = 1024
    learning_rate: float = 1.0
    norm_factor: float = 1.0
    decay: float = 0.0005
    norm_decay: float = 0.0
    momentum: float = 0.9
    label_smoothing: float = 0.1
    temperature: float = 1.0
    start_factor: float = 0.2
    end_factor: float = 0.05
    peak_at: float = 0.2
    look_ahead: float = 0.0
    augmentation: Augmentation = Augmentation()
    normalisation: Normalisation = Normalisation()
    seed: int = 0

    def slower(self, factor: float) -> TrainingSettings:
        """Return settings of another learning rate, and the decay with it.

        The decay is what one step at the peak takes away: if that stayed, smaller steps would not make up for it.

        Args:
            factor: relative to this learning rate.
        """
        return replace(
            self,
            learning_rate=self.learning_rate * factor,
            decay=self.decay * factor,
            norm_decay=self.norm_decay * factor,
        )


class TrainingEpoch(Struct, frozen=True):
    """One epoch of a run.

    Attributes:
        number: from 1.
        loss: mean of its steps.
        accuracy: on the test pictures, 0..1; None: there are none.
    """

    number: int
    loss: float
    accuracy: float | None


class TrainingStep(Struct, frozen=True):
    """Position in a run, for those who show its progress.

    Attributes:
        done: steps done, 1 to `total`.
        total: steps of the run.
        loss: of this step; None: nothing is trained yet, the pictures are only run through what stays.
        epoch: the epoch that this step completes; None: it completes none.
    """

    done: int
    total: int
    loss: float | None
    epoch: TrainingEpoch | None = None


Objective = Callable[[Any, Any, Any], Any]
"""From a module's outputs, its inputs and the labels to the loss of a batch, a tensor without dimensions."""
Progress = Callable[[TrainingStep], None]


class Batches(Protocol):
    """Draws changed pictures, see `agent.optimise.augment.Augmenter`."""

    def batch(self, indices: Any, epoch: int, step: int) -> Any: ...


Hook = Callable[[Any], None]
"""Called with the module."""


def fit(
    module: Any,
    pictures: Pictures,
    labels: Labels,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    test: Test | None = None,
    batches: Batches | None = None,
    objective: Objective | None = None,
    after_backward: Hook | None = None,
    after_step: Hook | None = None,
    progress: Progress | None = None,
    workers: Workers = Workers(),  # noqa: B008 - it is not changed
) -> tuple[TrainingEpoch, ...]:
    """Train a module in place, and return its epochs in order; the last may be a part of one.

    Args:
        module: takes float [batch, channels, height, width], normalised; gives float [batch, classes], or with an
            `objective` what that takes. It is moved to the GPU where there is one, and left in evaluation mode.
        pictures: see `Pictures`.
        labels: see `Labels`.
        settings: see `TrainingSettings`.
        checkpoint: file that holds the state of the run, written every ten seconds and at the end. If it
            exists, the run goes on from it; None: the run cannot be continued.
        test: pictures and labels on which the module is scored after each epoch.
        batches: draws the changed pictures; None: as `settings.augmentation` has it.
        objective: None: cross-entropy with label smoothing.
        after_backward: called between the gradients and the step.
        after_step: called after each step. The two may change gradients and weights. What they keep between
            steps is not in the checkpoint.
        progress: called after each step.
        workers: that train this module together.

    Raises:
        ModelError: pictures and labels do not fit each other or the module, or the loss is not finite.
        CheckpointError: the checkpoint belongs to another run.
        StorageError: the checkpoint cannot be read or written.
    """
    pictures, labels = np.ascontiguousarray(pictures), np.ascontiguousarray(labels, np.int64)
    module.to(fastest_device(), memory_format=torch.channels_last)
    _check(module, pictures, labels, settings, classes=objective is None)
    run = _Run(module, pictures, labels, settings, objective or _cross_entropy(settings), batches, workers)
    checkpoint = checkpoint if workers.number == 0 else None
    kept = Checkpoint(checkpoint, lambda: run_key(module, pictures, labels, settings), run, run.device)
    workers.agree(run)
    while run.done < run.total:
        try:
            step = run.step(after_backward, after_step, test)
        except ModelError as error:
            if isinstance(error, DivergedError) or not run.done:
                kept.remove()
            raise
        kept.save_at_times(ends=run.done == run.total)
        if progress is not None:
            progress(step)
    module.eval()
    return tuple(run.epochs)


def clip_gradients(module: Any) -> None:
    """Keep the gradient of each layer's weights small beside the weights: a hook of `fit` for norms that stay.

    Source: Brock et al., High-Performance Large-Scale Image Recognition Without Normalization,
    https://arxiv.org/abs/2102.06171, section 4.
    """
    for one in module.parameters():
        if one.grad is not None:
            limit = _STEEPEST * one.detach().norm().clamp_min(_SMALL * one.numel() ** 0.5)
            one.grad.mul_((limit / one.grad.norm().clamp_min(1e-12)).clamp_max(1.0))


def evaluate(
    module: Any, pictures: Pictures, labels: Labels, normalisation: Normalisation | None = None
) -> float:
    """Return the share of pictures whose largest output is that of their label, 0..1.

    Args:
        module: see `fit`; it is left in evaluation mode.
        pictures: see `Pictures`.
        labels: see `Labels`.
        normalisation: as in training; None: the default.
    """
    outputs = predict(module, pictures, normalisation)
    return float((outputs.argmax(1) == torch.from_numpy(np.ascontiguousarray(labels))).float().mean())


def predict(
    module: Any,
    pictures: Pictures,
    normalisation: Normalisation | None = None,
    *,
    exact: bool = False,
) -> Any:
    """Return the outputs for all pictures, a float32 tensor [pictures, classes] on the processor.

    Of a module that gives several tensors, the last one counts.

    Args:
        module: see `fit`; it is left in evaluation mode.
        pictures: see `Pictures`.
        normalisation: as in training; None: the default.
        exact: compute in float32, on every device.
    """
    normalisation = normalisation or Normalisation()
    device = device_of(module)
    module.eval()
    outputs = []
    with torch.no_grad(), nullcontext() if exact else mixed_precision(device):
        for start in range(0, len(pictures), _AT_ONCE):
            raw = torch.from_numpy(np.ascontiguousarray(pictures[start : start + _AT_ONCE])).to(device)
            found = run_module(module, normalisation.apply(raw))
            outputs.append(_last_tensor(module, found, len(raw)).float().cpu())
    return torch.cat(outputs)


def run_module(module: Any, inputs: Any) -> Any:
    """Run a module, and return its outputs.

    Raises:
        ModelError: it cannot be run.
    """
    try:
        return module(inputs)
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{type(module).__name__} on {list(inputs.shape)}: {told}") from error


def device_of(module: Any) -> Any:
    """Return the device of a module's parameters; of one without any, the processor."""
    return next((one.device for one in module.parameters()), torch.device("cpu"))


def fastest_device() -> Any:
    """Return the GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(device: Any) -> Any:
    """Return a context in which a module computes in bfloat16, if the device has instructions for it.

    Where there are none (x86 without AVX-512 or AMX, a Cortex-A72), it computes in float32: bfloat16 would be
    emulated, and a step of training would take ten times as long.
    """
    if device.type == "cpu":
        is_there = torch.backends.mkldnn.is_available()
        enabled = is_there and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # what `torch.compile` goes by
    else:
        enabled = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _last_tensor(module: Any, found: Any, count: int) -> Any:
    """Return the last tensor of a module's outputs, with a row for each picture; else raise ModelError."""
    last = found[-1] if isinstance(found, tuple | list) and found else found
    if isinstance(last, torch.Tensor) and last.ndim and len(last) == count:
        return last
    told = f"a tensor {list(last.shape)}" if isinstance(last, torch.Tensor) else type(last).__name__
    raise ModelError(
        f"{type(module).__name__}: gives {told} for {count} pictures: expected a tensor [{count}, classes]"
    )


def _check(module: Any, pictures: Pictures, labels: Labels, settings: TrainingSettings, *, classes: bool) -> None:
    """Check that data and module fit each other."""
    known = pictures.ndim == 4 and pictures.dtype.name in ("uint8", "float32")
    if not known or len(pictures) != len(labels) or not len(labels) or labels.min() < 0:
        raise ModelError(
            "training data: expected uint8 or float32 [pictures, height, width, channels] and a class from 0 for "
            f"each, got {pictures.dtype} {list(pictures.shape)} and {len(labels)} labels"
        )
    settings.augmentation.check(pictures.shape[1], pictures.shape[2])
    settings.normalisation.check(pictures.shape[3])
    outputs = predict(module, pictures[:2], settings.normalisation)
    if classes and (outputs.ndim != 2 or labels.max() >= outputs.shape[1]):
        found = f"outputs of the module have the shape {list(outputs.shape[1:])}"
        raise ModelError(f"training labels: there is a class {labels.max()} (they count from 0), but {found}")


def _cross_entropy(settings: TrainingSettings) -> Objective:
    def loss(outputs: Any, inputs: Any, labels: Any) -> Any:
        if not isinstance(outputs, torch.Tensor):
            raise ModelError(f"the module gives {type(outputs).__name__} in training: expected a tensor")
        scaled = outputs.float() / settings.temperature
        return functional.cross_entropy(scaled, labels, label_smoothing=settings.label_smoothing)

    return loss


def learning_rate_factor(step: int, total: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step, 0 to `total` - 1, relative to the peak; it rises, then falls."""
    peak = settings.peak_at * total
    if step < peak:
        return settings.start_factor + (1 - settings.start_factor) * step / peak
    return 1 + (settings.end_factor - 1) * (step - peak) / (total - peak)


def _optimiser(module: Any, settings: TrainingSettings) -> Any:
    """Return SGD with a group for the parameters of norms and one for all others."""
    norms = {id(one) for part in module.modules() if isinstance(part, _NORMS) for one in part.parameters()}
    trained = [one for one in module.parameters() if one.requires_grad]
    if not trained:
        raise ModelError(f"{type(module).__name__}: has no parameters to train")
    rates = (settings.learning_rate, settings.learning_rate * settings.norm_factor)
    groups = [
        {
            "params": [one for one in trained if (id(one) in norms) == norm],
            "peak": rate,
            "weight_decay": lost / rate,
        }
        for norm, rate, lost in ((False, rates[0], settings.decay), (True, rates[1], settings.norm_decay))
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True)


class _Run:
    """State of a run between two steps."""

    def __init__(
        self,
        module: Any,
        pictures: Pictures,
        labels: Labels,
        settings: TrainingSettings,
        objective: Objective,
        batches: Batches | None,
        workers: Workers,
    ):
        self.module, self.settings, self.objective, self.workers = module, settings, objective, workers
        self.device = device_of(module)
        self.data: Batches = batches or Augmenter(
            pictures, settings.augmentation, settings.normalisation, settings.seed, self.device
        )
        self.labels = torch.from_numpy(labels).to(self.device)
        self.batch = min(settings.batch, len(pictures))
        self.steps_per_epoch = len(pictures) // self.batch
        self.total = max(1, math.ceil(self.steps_per_epoch * settings.epochs - _ROUNDING))
        self.optimiser = _optimiser(module, settings)
        self.average = {name: one.clone() for name, one in self._averaged()}
        self.done, self.losses = 0, 0.0
        self.epochs: list[TrainingEpoch] = []
        self.order = torch.empty(0, dtype=torch.int64)

    def step(self, after_backward: Hook | None, after_step: Hook | None, test: Test | None) -> TrainingStep:
        indices = self.workers.share(self._indices())
        inputs = self.data.batch(indices, self.done // self.steps_per_epoch, self.done)
        loss = self._backward(inputs, self.labels[indices])
        self.workers.average(self.module)
        if after_backward is not None:
            after_backward(self.module)
        self.optimiser.step()
        self.done += 1
        self._look_ahead()
        if after_step is not None:
            after_step(self.module)
        self.losses += loss
        ends = self.done % self.steps_per_epoch == 0 or self.done == self.total
        return TrainingStep(self.done, self.total, loss, self._end_epoch(test) if ends else None)

    def _indices(self) -> Any:
        """Return the pictures of this step; the order of an epoch depends on the seed and its number alone."""
        epoch, position = divmod(self.done, self.steps_per_epoch)
        if position == 0 or not len(self.order):
            draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self.order = torch.randperm(len(self.labels), generator=draw)
        return self.order[position * self.batch : (position + 1) * self.batch]

    def _backward(self, inputs: Any, labels: Any) -> float:
        self.module.train()
        factor = learning_rate_factor(self.done, self.total, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        with mixed_precision(self.device):
            outputs = run_module(self.module, inputs)
        loss = self.objective(outputs, inputs, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"training: the loss of step {self.done + 1} is {value}: lower the learning rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return value

    def _averaged(self) -> Iterator[tuple[str, Any]]:
        if self.settings.look_ahead:
            state = self.module.state_dict()
            yield from ((name, one) for name, one in state.items() if one.is_floating_point())

    def _look_ahead(self) -> None:
        """Set all parameters to their average, whose decay grows during the run and is 1 at its end."""
        last = self.done == self.total
        if self.done % _LOOK_AHEAD_STEPS and not last:
            return
        decay = self.settings.look_ahead**_LOOK_AHEAD_STEPS * (self.done / self.total) ** 3
        for name, one in self._averaged():
            self.average[name].lerp_(one, 0.0 if last else 1.0 - decay)
            one.copy_(self.average[name])

    def _end_epoch(self, test: Test | None) -> TrainingEpoch:
        steps = (self.done - 1) % self.steps_per_epoch + 1
        accuracy = (
            None if test is None else evaluate(self.module, *test, normalisation=self.settings.normalisation)
        )
        epoch = TrainingEpoch(len(self.epochs) + 1, self.losses / steps, accuracy)
        self.epochs.append(epoch)
        self.losses = 0.0
        return epoch

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all(),
            "done": self.done,
            "losses": self.losses,
            "epochs": msgspec.json.encode(self.epochs).decode(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        torch.set_rng_state(state["random"].cpu())
        torch.cuda.set_rng_state_all([one.cpu() for one in state["random_gpu"]])
        self.done, self.losses = state["done"], state["losses"]
        self.epochs = from_json(state["epochs"], list[TrainingEpoch])
