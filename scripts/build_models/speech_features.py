"""From a second of sound to what the small speech model reads, and from recordings to an epoch of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from speech_corpus import Corpus
from speech_graph import FRAMES, MELS
from speech_mix import Kind, Pcm, Strength, example, mixed, to_pcm
from speech_noise import Random, noise

from agent.compute.infer.audio_input import LogMel, LogMelOptions

OPTIONS = LogMelOptions(
    rate_hz=8000, window_ms=25.0, hop_ms=10.0, mels=MELS, low_hz=60.0, high_hz=3800.0, offset=1e-7
)
_MEAN, _STD = np.float32(-9.0), np.float32(4.0)
"""Mean and deviation, as in the manifest."""
_SCALE, ZERO_POINT = np.float32(1 / 48), -40
"""Quantisation of the normalised rows."""
LOWEST, HIGHEST = (-128 - ZERO_POINT) / 48, (127 - ZERO_POINT) / 48
"""Range of the normalised rows: -1.83 is silence, 3.48 is full scale."""
_SYNTHETIC = 0.5
"""Examples of synthetic digits for every recorded digit."""
_WARPED, _WARP = 0.5, 0.1
"""Share of examples as of a longer or shorter vocal tract, and how much it differs at most."""
_MASKED_ROWS, _MASKED_MELS = 12, 6
_TEST_SEED = 1

Features = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Examples:
    """Features [n, 98, 40] and labels [n]."""

    features: Features
    labels: NDArray[np.int64]


def features(logmel: LogMel, pcm: Pcm) -> Features:
    """The model's input [98, 40] for one second of sound."""
    return _stored(_rows(logmel, pcm))


def real(stored: Features) -> NDArray[np.float32]:
    """The normalised rows that stored ones stand for."""
    return ((stored.astype(np.float32) - ZERO_POINT) * _SCALE).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Shares:
    """Examples without a digit for every recorded digit. Training chooses among them."""

    unknown: float = 0.35
    speech: float = 1.1
    silence: float = 0.7
    strength: Strength = field(default_factory=Strength)


FIRST = Shares()
FINISH = Shares(0.3, 0.8, 0.5, Strength(fragments=0.12))
"""For the last epochs, in which digits are more of the examples."""


def epoch(corpus: Corpus, seed: int, number: int, shares: Shares = FIRST) -> Examples:
    """Every recorded digit once and the rest in proportion, in random order, each mixed anew."""
    random = np.random.default_rng([seed, number])
    kinds: list[Kind] = [*corpus.digits]
    for words, share in ((corpus.unknown, shares.unknown), (corpus.synthetic, _SYNTHETIC)):
        kinds += [words[i] for i in random.integers(len(words), size=int(share * len(corpus.digits)))]
    kinds += ["speech"] * int(shares.speech * len(corpus.digits))
    kinds += ["silence"] * int(shares.silence * len(corpus.digits))
    order = random.permutation(len(kinds))
    randoms = (np.random.default_rng([seed, number, i]) for i in order)
    made = [_varied(random, corpus, kinds[i], shares.strength) for random, i in zip(randoms, order, strict=True)]
    return Examples(np.stack([x for x, _ in made]), np.array([label for _, label in made], np.int64))


def heard(corpus: Corpus, kinds: Sequence[Kind], snr_db: float | None) -> Examples:
    """Each word whole at a random place in its second, as recorded, over noise at `snr_db` or over none."""
    logmel, strength = LogMel(OPTIONS), Strength(0, (0, 0), 1.0, (0, 0), 0, 0, 0, 0)
    stored, labels = [], []
    for i, kind in enumerate(kinds):
        random = np.random.default_rng([_TEST_SEED, i])
        pcm, label = example(random, corpus, kind, strength)
        if kind != "silence" and snr_db is not None:
            pcm = to_pcm(mixed((pcm / 32768).astype(np.float32), noise(random, corpus.noises), snr_db))
        stored.append(features(logmel, pcm))
        labels.append(label)
    return Examples(np.stack(stored), np.array(labels, np.int64))


_LOGMEL = LogMel(OPTIONS)


def _rows(logmel: LogMel, pcm: Pcm) -> NDArray[np.float32]:
    logmel.reset()
    return logmel(pcm)


def _stored(rows: NDArray[np.float32]) -> Features:
    integers = np.round((rows - _MEAN) / _STD / _SCALE) + ZERO_POINT
    stored: Features = np.clip(integers, -128, 127).astype(np.int8)
    return stored


def _varied(random: Random, corpus: Corpus, kind: Kind, strength: Strength) -> tuple[Features, int]:
    """One example; every third lacks a stretch of time and a band of frequency, as in SpecAugment."""
    pcm, label = example(random, corpus, kind, strength)
    rows = _rows(_LOGMEL, pcm)
    if random.random() < _WARPED:
        rows = _warped(rows, 1 + random.uniform(-_WARP, _WARP))
    stored = _stored(rows)
    if random.random() < 0.33:
        times, mels = random.integers(_MASKED_ROWS + 1), random.integers(_MASKED_MELS + 1)
        row, mel = random.integers(FRAMES - times), random.integers(MELS - mels)
        stored[row : row + times] = ZERO_POINT
        stored[:, mel : mel + mels] = ZERO_POINT
    return stored, label


def _warped(rows: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Rows whose mels are read at other places: https://www.cs.toronto.edu/~hinton/absps/perturb.pdf."""
    at = np.clip(np.arange(MELS) * factor, 0, MELS - 1.001)
    low = at.astype(int)
    high_share = (at - low).astype(np.float32)
    warped: NDArray[np.float32] = rows[:, low] * (1 - high_share) + rows[:, low + 1] * high_share
    return warped
