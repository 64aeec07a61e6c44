"""Trains all exits of the small speech model together; the early ones also learn from the last one's answers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from speech_corpus import UNKNOWN, Corpus
from speech_features import FINISH, FIRST, Examples, epoch, real
from speech_model import Speech

from agent.optimise.depth.training import exit_loss

_WARM_UP = 0.05
_THREADS = 1
"""Fixed, since sums come out in another order with another number."""
_HARDEST, _OTHERS = (0.25, 0.2), (0.4, 0.2)
"""Share of the examples without a digit that are taken for being the hardest, and that of the other ones;
at first, and in the last epochs."""
_MAIN = 0.72
"""Share of the epochs after which the learning rate rises again, to half, and falls once more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; one that differs starts anew."""

    epochs: int = 120
    batch: int = 128
    rate: float = 4e-3
    decay: float = 0.03
    seed: int = 7
    corpus: str = "all"
    """Name of what is learnt from, which tells checkpoints apart."""

    def finishes(self, number: int) -> bool:
        """Return whether an epoch is one of the last."""
        return number >= self.main

    @property
    def main(self) -> int:
        """Number of the first of the last epochs."""
        return round(self.epochs * _MAIN)

    def rate_at(self, at: float) -> float:
        """Return the learning rate after so many epochs."""
        if at < self.main:
            return self.rate * min(at / self.main / _WARM_UP, 1.0) * _falling(at / self.main)
        return self.rate / 2 * _falling((at - self.main) / (self.epochs - self.main))


def train(corpus: Corpus, settings: Settings, checkpoint: Path) -> Speech:
    """The trained model; goes on from the checkpoint if that was made with the same settings."""
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)
    model: Speech = Speech().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.decay)
    done = _resume(checkpoint, settings, model, optimiser)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=settings.epochs, completed=done)
        for number, examples in _epochs(corpus, settings, done):
            torch.manual_seed(settings.seed + number)
            loss, right = _epoch(
                model, optimiser, _chosen(model, examples, settings.finishes(number)), settings, number
            )
            _save(checkpoint, settings, model, optimiser, number + 1)
            shares = " ".join(f"{share:.1%}" for share in right)
            progress.update(task, advance=1, description=f"loss {loss:.3f}, right {shares}")
            if not progress.console.is_terminal:
                progress.console.print(
                    f"epoch {number + 1} of {settings.epochs}: loss {loss:.3f}, right {shares}"
                )
    model.eval()
    return model


def load(checkpoint: Path, settings: Settings) -> Speech | None:
    """The model of a checkpoint whose training with these settings has ended."""
    model = Speech()
    ended = _resume(checkpoint, settings, model, None) == settings.epochs
    model.eval()
    return model if ended else None


def _epochs(corpus: Corpus, settings: Settings, done: int) -> Iterator[tuple[int, Examples]]:
    """Examples of the epochs to come; another process makes the next ones meanwhile."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_remember, initargs=(corpus,)) as pool:
        coming: Future[Examples] = pool.submit(_make, settings.seed, done, settings.finishes(done))
        for number in range(done, settings.epochs):
            examples = coming.result()
            coming = pool.submit(_make, settings.seed, number + 1, settings.finishes(number + 1))
            yield number, examples


_learnt: list[Corpus] = []
"""Corpora of the process that makes examples."""


def _remember(corpus: Corpus) -> None:
    _learnt.append(corpus)


def _make(seed: int, number: int, finish: bool) -> Examples:
    return epoch(_learnt[0], seed, number, FINISH if finish else FIRST)


def _chosen(model: Speech, examples: Examples, finish: bool) -> Examples:
    """Return all examples with a digit, and a part of the others: rather those that are taken for a digit."""
    model.eval()
    negative = np.flatnonzero(examples.labels >= UNKNOWN)
    with torch.inference_mode():
        parts = np.array_split(negative, max(1, len(negative) // 256))
        logits = [model(torch.from_numpy(real(examples.features[part])))[-1] for part in parts]
        digit = torch.cat(logits).softmax(1)[:, :UNKNOWN].sum(1)
    hard = digit >= torch.quantile(digit, 1 - _HARDEST[finish])
    taken = hard | (torch.rand(len(negative)) < _OTHERS[finish])
    keep = np.ones(len(examples.labels), bool)
    keep[negative] = taken.numpy()
    return Examples(examples.features[keep], examples.labels[keep])


def _epoch(
    model: Speech, optimiser: torch.optim.Optimizer, examples: Examples, settings: Settings, number: int
) -> tuple[float, list[float]]:
    """One pass; returns the mean loss, and the share of right answers of each exit."""
    model.train()
    steps = len(examples.labels) // settings.batch
    losses, right = [], np.zeros(4)
    for step in range(steps):
        part = slice(step * settings.batch, (step + 1) * settings.batch)
        for group in optimiser.param_groups:
            group["lr"] = settings.rate_at(number + step / steps)
        labels = torch.from_numpy(examples.labels[part])
        logits = model(torch.from_numpy(real(examples.features[part])))
        loss = exit_loss(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        right += [float((own.argmax(1) == labels).float().mean()) for own in logits]
    return float(np.mean(losses)), list(right / steps)


def _falling(done: float) -> float:
    """From 1 to 0 along a cosine."""
    return (1 + float(np.cos(np.pi * done))) / 2


def _resume(checkpoint: Path, settings: Settings, model: Speech, optimiser: torch.optim.Optimizer | None) -> int:
    """Load the checkpoint, if there is one of these settings; returns the number of epochs done."""
    if not checkpoint.exists():
        return 0
    stored = torch.load(checkpoint, weights_only=True)
    if stored["settings"] != asdict(settings):
        return 0
    model.load_state_dict(stored["model"])
    if optimiser:
        optimiser.load_state_dict(stored["optimiser"])
    return int(stored["epochs"])


def _save(
    checkpoint: Path, settings: Settings, model: Speech, optimiser: torch.optim.Optimizer, done: int
) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    part = checkpoint.with_suffix(".part")
    torch.save({"settings": asdict(settings), "epochs": done, **state}, part)
    part.replace(checkpoint)
