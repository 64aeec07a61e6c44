"""Light attention on speech: what it costs and what it brings, against dense attention and against none.

The net is that of `small-speech`, whose last layer attends over 25 steps of 40 ms; only that block differs. All
are trained on the same examples in the same order: digits of the Free Spoken Digit Dataset, clean and in noise,
other words and silence. Accuracy is that of all twelve layers, in float, on recordings that were kept out of
training, each clean and at 10 and 0 dB; the spread is the largest less the smallest of the seeds. A digit more or
less of one seed's 900 is 0.1 percentage points. It takes some 30 minutes of one core, and goes on where it was
interrupted. With --quick, costs are computed, one seed sees few examples, and the recorded figures are checked.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import _digits
import _nets
import _recorded
import _sound
import numpy as np
import torch
from _cifar import BUILD, ROOT
from common import arguments, conclude, data_argument
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from agent.optimise.attention import BandedAttention, DenseAttention, LowRankAttention, costs
from agent.types import Samples

sys.path.append(str(ROOT / "scripts" / "build_models"))
import speech_features
import speech_graph
import speech_model
from speech_corpus import UNKNOWN, Corpus, Word, read_digits
from speech_sound import trimmed

FOLDER = BUILD / "attention"
CHANNELS, STEPS = speech_graph.CHANNELS, 25
BLOCKS: dict[str, Callable[[], Any]] = {
    "none": nn.Identity,
    "dense": lambda: DenseAttention(CHANNELS),
    "banded_20": lambda: BandedAttention(CHANNELS, 20, speech_graph.REACH),
    "banded_16": lambda: BandedAttention(CHANNELS, 16, speech_graph.REACH),
    "low_rank_16": lambda: LowRankAttention(CHANNELS, 16, STEPS, 5),
}
LIGHT = "banded_20"
"""The block that the targets are about."""
SHARE, LOSS = 0.38, 0.002
CONDITIONS: dict[str, float | None] = {"clean": None, "10dB": 10.0, "0dB": 0.0}
_RATE, _DECAY, _BATCH, _WARM_UP = 4e-3, 0.03, 128, 0.05

Part = tuple[NDArray[np.int8], NDArray[np.int64]]
"""Features [n, 98, 40] and labels [n]."""


def corpora(given: Namespace) -> tuple[Corpus, Corpus]:
    """Recordings for training, whose synthetic digits are its recorded ones, and for testing."""
    digits = [(_digits.is_held_out(name), word) for name, word in read_digits(given.data / "fsdd_train.npz")]
    learnt, unseen = ([word for held, word in digits if held is wanted] for wanted in (False, True))
    noises = [_real(sound) for _, sound in _sound.archived(given.data / "esc10_dev.tar", _digits.RATE)]
    recorded = _sound.archived(given.data / "wakewords_dev.tar", _digits.RATE)
    words = [Word(trimmed(_real(sound)), UNKNOWN) for _, sound in recorded]
    kept = [word for number, word in enumerate(words) if number % 10 != 3]
    learnt_noises = [noise for number, noise in enumerate(noises) if number % 6 != 3]
    training = Corpus(learnt, learnt, kept, [word.sound for word in kept], learnt_noises)
    return training, Corpus(unseen, [], words[3::10], [], noises[3::6])


def _real(sound: Samples) -> Any:
    return sound.astype(np.float32) / 32768


def parts(training: Corpus, epochs: int, seed: int) -> list[Part]:
    """Examples of each epoch, made once."""
    file = FOLDER / f"examples-{epochs}-{seed}.npz"
    if not file.is_file():
        made = []
        for number in range(epochs):
            made.append(speech_features.epoch(training, seed, number))
            print(f"examples of epoch {number + 1} of {epochs}", flush=True)
        partial = file.with_suffix(".part.npz")
        np.savez(partial, x=np.stack([one.features for one in made]), y=np.stack([one.labels for one in made]))
        partial.replace(file)
    with np.load(file) as archive:
        return list(zip(archive["x"], archive["y"], strict=True))


def tests(unseen: Corpus) -> dict[str, Part]:
    """Digits that were kept out of training, by condition."""
    heard = {name: speech_features.heard(unseen, unseen.digits, snr) for name, snr in CONDITIONS.items()}
    return {name: (one.features, one.labels) for name, one in heard.items()}


def trained(block: str, examples: list[Part], seed: int) -> Any:
    """The net with a block, trained on all exits."""
    torch.manual_seed(seed)
    net = speech_model.Speech().to(memory_format=torch.channels_last)
    net.attention = _nets.OverTime(BLOCKS[block](), CHANNELS, speech_graph.MELS // speech_graph.FOLD)
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = [part for number, one in enumerate(examples) for part in batches(one, seed, number)]
    for number, (stored, labels) in enumerate(steps):
        done = number / len(steps)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(done / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2
        logits = net(torch.from_numpy(speech_features.real(stored)))
        loss = sum(functional.cross_entropy(own, torch.from_numpy(labels)) for own in logits)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
    return net.eval()


def batches(examples: Part, seed: int, number: int) -> list[Part]:
    """Parts of an epoch, in an order of its own."""
    order = np.random.default_rng([seed, number]).permutation(len(examples[1]))
    cuts = [order[at : at + _BATCH] for at in range(0, len(order) - _BATCH + 1, _BATCH)]
    return [(examples[0][cut], examples[1][cut]) for cut in cuts]


def accuracies(net: Any, unseen: dict[str, Part]) -> dict[str, float]:
    """Share of right answers of the deepest exit, by condition, and over all."""
    found = {}
    for name, (stored, labels) in unseen.items():
        with torch.no_grad():
            answers = net(torch.from_numpy(speech_features.real(stored)))[-1].argmax(1).numpy()
        found[name] = float((answers == labels).mean())
    return found | {"all": float(np.mean(list(found.values())))}


def measure(given: Namespace) -> dict[str, float]:
    """Train each block with each seed; what an earlier run has measured is read."""
    training, unseen = corpora(given)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"figures-{given.epochs}.json"
    known: dict[str, dict[str, float]] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    heard = tests(unseen)
    for seed in range(given.seeds):
        examples = parts(training, given.epochs, seed)
        for block in given.blocks:
            name = f"{block}, seed {seed}"
            if name not in known:
                began = time.process_time()
                known[name] = accuracies(trained(block, examples, seed), heard)
                print(f"{time.process_time() - began:.0f} s of processor time", flush=True)
                file.write_text(json.dumps(known, indent=1), "utf-8")
            print(name, *(f"{key} {value:.4f}" for key, value in known[name].items()), flush=True)
    return summary(known, given.blocks, given.seeds)


def summary(known: dict[str, dict[str, float]], blocks: Sequence[str], seeds: int) -> dict[str, float]:
    """Mean and spread of each block, over the seeds."""
    figures: dict[str, float] = {}
    for block in blocks:
        rows = [known[f"{block}, seed {seed}"] for seed in range(seeds)]
        figures |= {f"{block}_{key}": float(np.mean([row[key] for row in rows])) for key in rows[0]}
        figures[f"{block}_spread"] = float(np.ptp([row["all"] for row in rows]))
    figures["lost"] = figures["dense_all"] - figures[f"{LIGHT}_all"]
    figures["none_lost"] = figures["dense_all"] - figures["none_all"]
    return figures


def shares() -> dict[str, float]:
    """Parameters and multiply-adds of each block, of those of dense attention."""
    light = {name: make() for name, make in BLOCKS.items() if name not in ("none", "dense")}
    found = costs(light, CHANNELS, STEPS)
    figures = {f"{name}_parameters": found[name].parameters_share for name in light}
    return figures | {f"{name}_multiply_adds": found[name].multiply_adds_share for name in light}


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = shares()
    targets = {f"{LIGHT}_parameters": f"<= {SHARE}", "lost": f"<= {LOSS}"}
    if given.quick:
        quick(given, figures, targets)
    figures |= measure(given)
    if given.record:
        _recorded.record("attention/speech", figures)
    meets = figures[f"{LIGHT}_parameters"] <= SHARE and figures["lost"] <= LOSS
    conclude("optimise/attention", figures, targets, meets)


def quick(given: Namespace, figures: dict[str, float], targets: dict[str, str]) -> None:
    """Train one net on few examples, and read the recorded figures."""
    training, unseen = corpora(given)
    few = replace(training, digits=training.digits[::4], synthetic=training.digits[::4])
    made = speech_features.epoch(few, 0, 0)
    examples = [(made.features, made.labels)] * 12
    figures["after_12_short_epochs"] = accuracies(trained(LIGHT, examples, 0), tests(unseen))["clean"]
    kept = _recorded.show("attention/speech").get("attention/speech", {})
    figures |= {f"recorded_{name}": kept[name] for name in ("lost", "none_lost") if name in kept}
    targets = {
        f"{LIGHT}_parameters": f"<= {SHARE}",
        "after_12_short_epochs": ">= 0.3",
        "recorded_lost": f"<= {LOSS}",
    }
    meets = figures[f"{LIGHT}_parameters"] <= SHARE and figures["after_12_short_epochs"] >= 0.3
    conclude("optimise/attention", figures, targets, meets and kept.get("lost", 1.0) <= LOSS)


if __name__ == "__main__":
    main()
