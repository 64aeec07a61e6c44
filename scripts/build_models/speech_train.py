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
from speech_corpus import Corpus
from speech_features import Examples, epoch, real
from speech_model import Speech

from agent.optimise.depth.distil import exit_loss

_WARM_UP = 0.05
_THREADS = 2
"""Fixed, since sums come out in another order with another number."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; one that differs starts anew."""

    epochs: int = 60
    batch: int = 128
    rate: float = 4e-3
    decay: float = 0.03
    seed: int = 7
    corpus: str = "all"
    """Name of what is learnt from, which tells checkpoints apart."""


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
            loss, right = _epoch(model, optimiser, examples, settings, number)
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
        coming: Future[Examples] = pool.submit(_make, settings.seed, done)
        for number in range(done, settings.epochs):
            examples = coming.result()
            coming = pool.submit(_make, settings.seed, number + 1)
            yield number, examples


_learnt: list[Corpus] = []
"""Corpora of the process that makes examples."""


def _remember(corpus: Corpus) -> None:
    _learnt.append(corpus)


def _make(seed: int, number: int) -> Examples:
    return epoch(_learnt[0], seed, number)


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
            group["lr"] = settings.rate * _schedule((number + step / steps) / settings.epochs)
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


def _schedule(done: float) -> float:
    """Share of the learning rate: up to all of it, then down along a cosine."""
    return min(done / _WARM_UP, 1.0) * (1 + float(np.cos(np.pi * done))) / 2


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
