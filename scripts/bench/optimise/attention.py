"""Light attention on speech: what it costs and what it brings, against dense attention and against none.

The net is that of `small-speech`, whose last layer attends over 25 steps of 40 ms. It has a last exit for each
block, side by side on the layers below, which learn from all of them: so two blocks differ in nothing else, and
what chance does to a training falls on both. With --apart, each block is trained in a net of its own. All see the
same examples in one order: digits of the Free Spoken Digit Dataset, clean and in noise, other words and silence.

Accuracy is that of the last exit, in float, on recordings that were kept out of training, each in several noises
and places, clean and at 10 and 0 dB. What a block loses is the mean of the differences, answer by answer, to the
dense block; its standard error counts both seeds and recordings as chance. Blocks were chosen with
other recordings (`choice`). The time of a block is that of its INT8 file, for sequences of several lengths. All
takes some 40 minutes of one core, and goes on where it was interrupted. With --quick, costs and times are
measured, one seed sees few examples, and the recorded figures are checked.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _digits
import _recorded
import _sound
import numpy as np
import torch
from _cifar import BUILD, ROOT
from ai_edge_litert.interpreter import Interpreter
from common import arguments, conclude, data_argument
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from agent.compute.manifest import Manifest, Model
from agent.optimise.attention import BandedAttention, LowRankAttention, PatternAttention
from agent.optimise.data import read_examples
from agent.optimise.graph.from_torch import export
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from agent.optimise.train import mixed_precision
from agent.types import Samples

sys.path.append(str(ROOT / "scripts" / "build_models"))
import speech_features
import speech_graph
import speech_model
from speech_corpus import UNKNOWN, Corpus, Word, read_digits
from speech_sound import trimmed

FOLDER = BUILD / "attention"
CHANNELS, STEPS, DEEPEST = speech_graph.CHANNELS, speech_graph.STEPS, speech_graph.DEPTHS[-1]
REACH = 3
"""Steps that a band sees on either side."""


class DenseAttention(nn.Module):  # type: ignore[misc]
    """Attention of each step of [batch, channels, steps, 1] to all steps, with a softmax over the scores.

    Args:
        channels: of the sequence, and of queries, keys and values.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.projection = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Any) -> Any:
        query, key, value = self.projection(x).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(1, 2) * self.channels**-0.5, dim=-1)
        return x + self.output((weights @ value).transpose(1, 2).reshape(x.shape))


BLOCKS: dict[str, Callable[[], Any]] = {
    "none": nn.Identity,
    "dense": lambda: DenseAttention(CHANNELS),
    "banded_20": lambda: BandedAttention(CHANNELS, 20, REACH),
    "banded_18_wide": lambda: BandedAttention(CHANNELS, 18, STEPS // 2),
    "pattern_20": lambda: PatternAttention(CHANNELS, 20, (-8, -4, -2, -1, 0, 1, 2, 4, 8)),
    "low_rank_16": lambda: LowRankAttention(CHANNELS, 16, STEPS, 5),
    "low_rank_19": lambda: LowRankAttention(CHANNELS, 19, STEPS, 5),
}
COMPARED = ("none", "dense", "low_rank_19", "banded_20")
"""Blocks that are trained unless others are asked for."""
LENGTHS = (25, 100, 400)
"""Steps of the sequences for which INT8 files are timed."""
LIGHT = "low_rank_19"
"""The block that the targets are about: the best of the light ones for the recordings to choose with."""
SHARE, LOSS, SEEDS = 0.38, 0.002, 3
"""Bars: share of the dense block's parameters, what may be lost to it, and seeds that this is the mean of."""
SETS = ("choice", "testing")
LOST = f"testing_{LIGHT}_lost"
TIMED: dict[str, Callable[[int], Any]] = {
    "dense": lambda _: DenseAttention(CHANNELS),
    "banded": lambda _: BandedAttention(CHANNELS, 20, REACH),
    "low_rank": lambda steps: LowRankAttention(CHANNELS, 16, steps, 5),
}
CONDITIONS: dict[str, float | None] = {"clean": None, "10dB": 10.0, "0dB": 0.0}
_RATE, _DECAY, _BATCH, _WARM_UP = 4e-3, 0.03, 128, 0.05
_CHOICE, _HELD_OUT = 3, 7
"""Last figure of the numbers of the recordings that blocks are chosen with, and that they are compared with."""

Part = tuple[NDArray[np.int8], NDArray[np.int64]]
"""Features [n, 98, 40] and labels [n]."""
Answers = dict[str, NDArray[np.bool_]]


def corpora(given: Namespace) -> tuple[Corpus, Corpus, Corpus]:
    """Recordings for training, whose synthetic digits are its recorded ones, for choosing, and for testing."""
    digits = [
        (int(name.rsplit("_", 1)[1]) % 10, word) for name, word in read_digits(given.data / "fsdd_train.npz")
    ]
    learnt = [word for last, word in digits if last not in (_CHOICE, _HELD_OUT)]
    noises = [_real(sound) for _, sound in _sound.archived(given.data / "esc10_dev.tar", _digits.RATE)]
    recorded = _sound.archived(given.data / "wakewords_dev.tar", _digits.RATE)
    words = [Word(trimmed(_real(sound)), UNKNOWN) for _, sound in recorded]
    kept = [word for number, word in enumerate(words) if number % 10 != 3]
    learnt_noises = [noise for number, noise in enumerate(noises) if number % 6 != 3]
    training = Corpus(learnt, learnt, kept, [word.sound for word in kept], learnt_noises)
    choice, unseen = (
        Corpus([word for last, word in digits if last == wanted], [], words[3::10], [], noises[3::6])
        for wanted in (_CHOICE, _HELD_OUT)
    )
    return training, choice, unseen


def _real(sound: Samples) -> Any:
    return sound.astype(np.float32) / 32768


def parts(training: Corpus, epochs: int) -> list[Part]:
    """Examples of each epoch, made once; the seeds differ in the first weights and in the order."""
    found = []
    for number in range(epochs):
        file = FOLDER / f"examples-{number}.npz"
        if not file.is_file():
            made = speech_features.epoch(training, 0, number)
            _save(file, x=made.features, y=made.labels)
            print(f"examples of epoch {number + 1} of {epochs}", flush=True)
        with np.load(file) as archive:
            found.append((archive["x"], archive["y"]))
    return found


def tests(unseen: Corpus, name: str, draws: int) -> Part:
    """Digits that were kept out of training: each condition's draws of all digits, one after another."""
    file = FOLDER / f"{name}-{draws}.npz"
    if not file.is_file():
        made = [speech_features.heard(unseen, unseen.digits * draws, snr) for snr in CONDITIONS.values()]
        _save(
            file, x=np.concatenate([one.features for one in made]), y=np.concatenate([one.labels for one in made])
        )
    with np.load(file) as archive:
        return archive["x"], archive["y"]


def _save(file: Path, **arrays: Any) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part.npz")
    np.savez(partial, **arrays)
    partial.replace(file)


class Branches(speech_model.Speech):
    """The net of `small-speech` with a last exit for each of several blocks, side by side.

    All else has the same first weights, and what learns below them is shared. Their losses count as one.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        last = self.exits[str(DEEPEST)]
        del self.exits[str(DEEPEST)], self.attention
        made = {name: speech_model.OverTime(BLOCKS[name](), CHANNELS) for name in blocks}
        self.branches = nn.ModuleDict(
            {name: nn.ModuleList([block, copy.deepcopy(last)]) for name, block in made.items()}
        )

    def pooled(self, x: Any) -> Any:
        """Mean over time as in `Speech`; its gradient is divided while it is small."""
        return self.dropout((x.sum(2) / x.shape[2]).transpose(1, 2).flatten(1))

    def answers(self, features: Any) -> tuple[list[Any], dict[str, Any]]:
        """Logits of the early exits, and of each block's."""
        hidden = self.hidden(features)
        last = hidden.pop(DEEPEST)
        early = [self.exits[str(depth)](self.pooled(x)) for depth, x in hidden.items()]
        found = {}
        for name, (block, leave) in self.branches.items():
            found[name] = leave(self.pooled(block(last)))
        return early, found


def trained(blocks: Sequence[str], examples: list[Part], seed: int) -> Branches:
    """The net with these blocks, trained on all exits."""
    torch.manual_seed(seed)
    net = Branches(blocks)
    net.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY, fused=True)
    steps = [part for number, one in enumerate(examples) for part in batches(one, seed, number)]
    for number, (stored, labels) in enumerate(steps):
        done = number / len(steps)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(done / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2
        loss = losses(net, torch.from_numpy(speech_features.real(stored)), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        if number % 50 == 0:
            print(f"seed {seed}, step {number} of {len(steps)}: loss {loss.item():.3f}", flush=True)
    net.eval()
    return net


def losses(net: Branches, features: Any, labels: Any) -> Any:
    """Sum over the early exits and the mean of the last ones; computed in bfloat16 where that is fast."""
    with mixed_precision(features.device):
        early, last = net.answers(features)
    deepest = [functional.cross_entropy(logits.float(), labels) for logits in last.values()]
    return sum(functional.cross_entropy(own.float(), labels) for own in early) + sum(deepest) / len(deepest)


def batches(examples: Part, seed: int, number: int) -> list[Part]:
    """Parts of an epoch, in an order of its own."""
    order = np.random.default_rng([seed, number]).permutation(len(examples[1]))
    cuts = [order[at : at + _BATCH] for at in range(0, len(order) - _BATCH + 1, _BATCH)]
    return [(examples[0][cut], examples[1][cut]) for cut in cuts]


def right(net: Branches, unseen: Part) -> Answers:
    """If the answers of each block's exit are right."""
    found: dict[str, list[Any]] = {name: [] for name in net.branches}
    stored, labels = unseen
    for at in range(0, len(labels), _BATCH):
        with torch.inference_mode():
            _, last = net.answers(torch.from_numpy(speech_features.real(stored[at : at + _BATCH])))
        for name, logits in last.items():
            found[name].append(logits.argmax(1).numpy() == labels[at : at + _BATCH])
    return {name: np.concatenate(own) for name, own in found.items()}


def measure(given: Namespace) -> dict[str, float]:
    """Train with each seed and compare; what an earlier run has trained is read."""
    training, *unseen = corpora(given)
    sets = {name: tests(one, name, given.draws) for name, one in zip(SETS, unseen, strict=True)}
    groups = [[name] for name in given.blocks] if given.apart else [given.blocks]
    seeds = []
    for seed in given.seeds:
        found: Answers = {}
        for group in groups:
            found |= answers(given, training, sets, group, seed)
        seeds.append(found)
    return {"seeds": len(seeds), **summary(seeds, given)}


def answers(given: Namespace, training: Corpus, sets: dict[str, Part], blocks: list[str], seed: int) -> Answers:
    """What is right of what nets with these blocks answer, by `set/block`: [draws of all conditions, digits]."""
    file = FOLDER / f"right-{given.epochs}-{given.draws}-{seed}-{'+'.join(blocks)}.npz"
    if not file.is_file():
        began = time.process_time()
        net = trained(blocks, parts(training, given.epochs), seed)
        found = {f"{name}/{block}": own for name, one in sets.items() for block, own in right(net, one).items()}
        _save(file, **found)
        print(f"seed {seed}: {time.process_time() - began:.0f} s of processor time", flush=True)
    with np.load(file) as archive:
        return {name: archive[name].reshape(len(CONDITIONS) * given.draws, -1) for name in archive.files}


def summary(seeds: Sequence[Answers], given: Namespace) -> dict[str, float]:
    """Accuracy of each block, and what it loses against the dense one, with its standard error."""
    figures: dict[str, float] = {}
    for name in SETS:
        every = {block: np.stack([one[f"{name}/{block}"] for one in seeds]) for block in given.blocks}
        for block, own in every.items():
            figures[f"{name}_{block}"] = float(own.mean())
            figures[f"{name}_{block}_lost"], figures[f"{name}_{block}_error"] = lost(every["dense"], own)
            print(line(f"{name} {block}", own, figures[f"{name}_{block}_lost"], figures[f"{name}_{block}_error"]))
    return figures


def line(name: str, own: Any, loss: float, error: float) -> str:
    """A block's accuracy, by condition, and its loss, for reading."""
    parts = np.split(own, len(CONDITIONS), axis=1)
    shown = " ".join(f"{condition} {part.mean():.4f}" for condition, part in zip(CONDITIONS, parts, strict=True))
    spread = np.ptp(own.mean((1, 2)))
    return f"{name:24} {own.mean():.4f} (spread {spread:.4f}) {shown} lost {loss:+.4f} ± {error:.4f}"


def lost(first: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean of what `other` [seeds, draws, digits] lacks to `first`, and its standard error.

    Seeds and digits are both samples: the error is that of two crossed random effects.
    """
    differences = (first.astype(float) - other.astype(float)).mean(1)
    by_seed, by_digit = differences.mean(1), differences.mean(0)
    variance = by_digit.var(ddof=1) / len(by_digit)
    variance += by_seed.var(ddof=1) / len(by_seed) if len(by_seed) > 1 else 0.0
    return float(differences.mean()), float(np.sqrt(variance))


def milliseconds() -> dict[str, float]:
    """Processor time of an inference of the INT8 files, one thread; the quietest of several rounds."""
    torch.manual_seed(0)
    files = {f"{name}_{steps}": int8(make(steps), steps) for steps in LENGTHS for name, make in TIMED.items()}
    opened = {name: _interpreter(content) for name, content in files.items()}
    times: dict[str, float] = dict.fromkeys(files, math.inf)
    for _ in range(8):
        for name, interpreter in opened.items():
            times[name] = min(times[name], _timed(interpreter))
    shown = {f"{name}_ms": value for name, value in times.items()}
    ratios = {f"faster_{n}": times[f"dense_{n}"] / times[f"banded_{n}"] for n in LENGTHS}
    return shown | ratios


def int8(block: Any, steps: int) -> bytes:
    """A block as an INT8 file, for random examples."""
    content = export(block, (steps, 1, CHANNELS)).content
    values = np.random.default_rng(2).normal(size=(8, steps, 1, CHANNELS)).astype(np.float32)
    model = Model(content, hashlib.sha256(content).hexdigest(), Manifest(), "block.tflite")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "steps.npz"), x=values)
        examples = read_examples(Path(folder, "steps.npz"), model)
        return quantise(content, [examples], QuantiseRecipe(method="int8", examples=8)).content


def _interpreter(content: bytes) -> Any:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _timed(interpreter: Any) -> float:
    began = time.thread_time()
    for _ in range(20):
        interpreter.invoke()
    return (time.thread_time() - began) / 20 * 1e3


def shares() -> dict[str, float]:
    """Parameters and multiply-adds of each light block, of those of dense attention."""
    found = {name: cost(make()) for name, make in BLOCKS.items() if name not in ("dense", "none")}
    dense, figures = cost(BLOCKS["dense"]()), dict[str, float]()
    for place, what in enumerate(("parameters", "multiply_adds")):
        figures |= {f"{name}_{what}": own[place] / dense[place] for name, own in found.items()}
    return figures


def cost(block: Any) -> tuple[int, int]:
    """Parameters and multiply-adds of a block."""
    imported = export(block, (STEPS, 1, CHANNELS))
    return imported.parameters, imported.multiply_adds


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--draws", type=int, default=8, help="noises and places of each digit, by condition")
    parser.add_argument("--blocks", nargs="+", choices=list(BLOCKS), default=list(COMPARED))
    parser.add_argument("--apart", action="store_true", help="train each block in a net of its own")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    if not {"dense", LIGHT} <= {*given.blocks}:
        parser.error(f"--blocks: {LIGHT} is compared with dense: name both")
    torch.set_num_threads(1)
    figures = shares() | milliseconds()
    if given.quick:
        quick(given, figures)
    figures |= measure(given)
    if given.record:
        _recorded.record("attention/apart" if given.apart else "attention/speech", figures)
    targets = {f"{LIGHT}_parameters": f"<= {SHARE}", LOST: f"<= {LOSS}", "seeds": f">= {SEEDS}"}
    conclude("optimise/attention", figures, targets, figures[f"{LIGHT}_parameters"] <= SHARE and within(figures))


def within(figures: Mapping[str, float]) -> bool:
    """If the light block was within the bar of the dense one, over enough seeds."""
    return figures.get(LOST, 1.0) <= LOSS and figures.get("seeds", 1) >= SEEDS


def quick(given: Namespace, figures: dict[str, float]) -> None:
    """Train one net on few examples, and read the recorded figures."""
    training, _, unseen = corpora(given)
    few = replace(training, digits=training.digits[::7], synthetic=training.digits[::7])
    made = speech_features.epoch(few, 0, 0)
    heard = speech_features.heard(unseen, unseen.digits, None)
    net = trained(["dense", LIGHT], [(made.features, made.labels)] * 12, 0)
    figures["after_12_short_epochs"] = float(right(net, (heard.features, heard.labels))[LIGHT].mean())
    kept = _recorded.show("attention/speech").get("attention/speech", {})
    wanted = ("seeds", LOST, f"testing_{LIGHT}_error", "testing_none_lost", "testing_none_error")
    figures |= {f"recorded_{name}": kept[name] for name in wanted if name in kept}
    targets = {
        f"{LIGHT}_parameters": f"<= {SHARE}",
        "after_12_short_epochs": ">= 0.3",
        f"recorded_{LOST}": f"<= {LOSS}",
        "recorded_seeds": f">= {SEEDS}",
    }
    meets = figures[f"{LIGHT}_parameters"] <= SHARE and figures["after_12_short_epochs"] >= 0.3
    conclude("optimise/attention", figures, targets, meets and within(kept))


if __name__ == "__main__":
    main()
