"""From a second of sound to what the small speech model reads, and from recordings to an epoch of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from quantise import Quantisation, round_to_int8
from speech_corpus import Corpus, Word
from speech_graph import FRAMES, MELS
from speech_mix import Pcm, Random, Strength, example, mixed, noise, to_pcm

from agent.compute.infer.audio_features import LogMel, LogMelOptions

OPTIONS = LogMelOptions(
    rate_hz=8000, window_ms=25.0, hop_ms=10.0, mels=MELS, low_hz=60.0, high_hz=3800.0, offset=1e-7
)
_MEAN, _STD = np.float32(-9.0), np.float32(4.0)
"""Mean and deviation, as in the manifest."""
SCALE = Quantisation(np.array([1 / 48], np.float32), -40)
"""Quantisation of the normalised rows: from -1.83, which is silence, to 3.48, which is full scale."""
_UNKNOWN, _SILENT, _SYNTHETIC = 0.22, 0.16, 0.12
"""Examples of other words, of no word and of synthetic digits, for every recorded digit."""
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
    logmel.reset()
    return round_to_int8((logmel(pcm) - _MEAN) / _STD, SCALE)


def real(stored: Features) -> NDArray[np.float32]:
    """The normalised rows that stored ones stand for."""
    return ((stored.astype(np.float32) - SCALE.zero_point) * SCALE.scale).astype(np.float32)


def epoch(corpus: Corpus, seed: int, number: int) -> Examples:
    """Every recorded digit once, other words and silence in proportion, in random order, each mixed anew."""
    random = np.random.default_rng([seed, number])
    words: list[Word | None] = [*corpus.digits]
    for kind, share in ((corpus.unknown, _UNKNOWN), (corpus.synthetic, _SYNTHETIC)):
        words += [kind[i] for i in random.integers(len(kind), size=int(share * len(corpus.digits)))]
    words += [None] * int(_SILENT * len(corpus.digits))
    order = random.permutation(len(words))
    made = [_masked(np.random.default_rng([seed, number, i]), corpus, words[i]) for i in order]
    return Examples(np.stack([x for x, _ in made]), np.array([label for _, label in made], np.int64))


def heard(corpus: Corpus, words: Sequence[Word | None], snr_db: float | None) -> Examples:
    """Each word whole at a random place in its second, as it was recorded, over noise at `snr_db` or over none.

    None stands for a second without a word.
    """
    logmel, strength = LogMel(OPTIONS), Strength(0, (0, 0), 1.0, (0, 0), 0, 0, 0)
    stored, labels = [], []
    for i, word in enumerate(words):
        random = np.random.default_rng([_TEST_SEED, i])
        pcm, label = example(random, corpus, word, strength)
        if word and snr_db is not None:
            pcm = to_pcm(mixed((pcm / 32768).astype(np.float32), noise(random, corpus), snr_db))
        stored.append(features(logmel, pcm))
        labels.append(label)
    return Examples(np.stack(stored), np.array(labels, np.int64))


_LOGMEL = LogMel(OPTIONS)


def _masked(random: Random, corpus: Corpus, word: Word | None) -> tuple[Features, int]:
    """One example; every third lacks a stretch of time and a band of frequency, as in SpecAugment."""
    pcm, label = example(random, corpus, word, Strength())
    stored = features(_LOGMEL, pcm)
    if random.random() < 0.33:
        rows, mels = random.integers(_MASKED_ROWS + 1), random.integers(_MASKED_MELS + 1)
        row, mel = random.integers(FRAMES - rows), random.integers(MELS - mels)
        stored[row : row + rows] = SCALE.zero_point
        stored[:, mel : mel + mels] = SCALE.zero_point
    return stored, label
