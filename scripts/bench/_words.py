"""Teach words from 5 and 10 utterances of one speaker with the bundled embedding, as `vedette teach` does.

Digits of the Free Spoken Digit Dataset: of each speaker five are taught and the other five are strange, in three
draws. Other strange sounds are recordings of wake words by many people, and ESC-10's noises. All are heard by
the code of the daemon, with a room's silence around them. The first three speakers chose the constants; the
others are reported.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from agent.compute.listening import UtterancePerception, WordHead
from agent.compute.states import UNSURE, leave_one_out
from agent.config import StreamConfig
from agent.models.library import open_model
from agent.types import AudioChunk

SPOKEN, STRANGE, NOISES = "fsdd_train.npz", "wakewords_dev.tar", "esc10_dev.tar"
TUNED = 3
"""The first speakers chose the constants of `agent.compute.listening`."""
SHOTS, EACH, TAUGHT, DRAWS = (5, 10), 30, 5, 3
_RATE, _PART = 16_000, 1600
_SEED = 2026

Embeddings = NDArray[np.float32]


class Ears:
    """The embedding of a model, one thread, whose utterances are used."""

    def __init__(self, model: str = "speech-embedding") -> None:
        self.hearing = UtterancePerception("bench", StreamConfig("mic:", model, threads=1), open_model(model))
        self._random = np.random.default_rng(_SEED)
        self._first = 0

    def hear(self, samples: NDArray[Any], rate_hz: int) -> list[Embeddings]:
        """Embeddings of the utterances in some sound, int16, with silence around it."""
        sound = soxr.resample(samples.astype(np.float64), rate_hz, _RATE)
        sound = np.concatenate([np.zeros(_RATE), sound, np.zeros(_RATE * 7 // 10)])
        heard = np.clip(sound + self._random.normal(0, 3, len(sound)), -32768, 32767).astype(np.int16)
        found: list[Embeddings] = []
        self._first += _RATE  # a gap: this does not continue the sound before
        for at in range(0, len(heard), _PART):
            part = heard[at : at + _PART]
            self.hearing.process(AudioChunk(part, _RATE, "bench", self._first, 0, datetime.now(UTC)))
            self._first += len(part)
            found += [one.embedding for one in self.hearing.utterances]
        return found


def spoken(data: Path, ears: Ears, quick: bool) -> tuple[dict[str, dict[str, Embeddings]], float]:
    """Embeddings of each digit by speaker, and the share of recordings that are not one utterance."""
    with np.load(common.needed(data / SPOKEN)) as kept:
        pcm, offsets, labels, speakers = (kept[name] for name in ("pcm", "offsets", "labels", "speakers"))
    found: dict[str, dict[str, Embeddings]] = {}
    random, missed = np.random.default_rng(_SEED), []
    chosen = sorted({str(one) for one in speakers})[TUNED:]
    for speaker in chosen[:1] if quick else chosen:
        found[speaker] = {}
        for label in range(10):
            some = random.permutation(np.flatnonzero((speakers == speaker) & (labels == label)))[
                : 18 if quick else EACH
            ]
            heard = [ears.hear(pcm[offsets[one] : offsets[one + 1]], 8000) for one in some]
            missed += [len(one) != 1 for one in heard]
            found[speaker][str(label)] = np.stack([one[0] for one in heard if one])
    return found, float(np.mean(missed))


def archived(path: Path, suffix: str, ears: Ears, quick: bool) -> tuple[list[Embeddings], float]:
    """Utterances in the sound files of an archive, and their length together, hours."""
    found: list[Embeddings] = []
    seconds = 0.0
    with tarfile.open(common.needed(path)) as archive:
        members = sorted(archive.getmembers(), key=lambda one: one.name)
        for member in [one for one in members if one.name.endswith(suffix)][:: 16 if quick else 1]:
            file = archive.extractfile(member)
            assert file is not None
            sound, rate_hz = soundfile.read(io.BytesIO(file.read()), dtype="int16", always_2d=True)
            seconds += len(sound) / rate_hz
            found += ears.hear(sound[:, 0], rate_hz)
    return found, seconds / 3600


class Drawn:
    """Words of one speaker, some taught, in one draw."""

    def __init__(self, words: Mapping[str, Embeddings], shots: int, draw: int) -> None:
        random = np.random.default_rng((_SEED, draw))
        order = [str(one) for one in random.permutation(sorted(words))]
        rows = {word: random.permutation(len(words[word])) for word in order}
        self.all = {word: (words[word][rows[word][:shots]], words[word][rows[word][shots:]]) for word in order}
        self.taught, self.strange = order[:TAUGHT], order[TAUGHT:]
        self.head = WordHead({word: self.all[word][0] for word in self.taught})

    def nearest(self) -> Iterator[bool]:
        """Whether each word is told from the other nine, all taught."""
        head = WordHead({word: shown for word, (shown, _) in self.all.items()})
        yield from (head.classify(one).nearest == word for word, (_, asked) in self.all.items() for one in asked)

    def answers(self) -> Iterator[tuple[bool, bool, float]]:
        """Of each taught word, not in the lesson: whether it is accepted and right, nearest, and its score."""
        for word in self.taught:
            for one in self.all[word][1]:
                answer = self.head.classify(one)
                yield answer.value == word, answer.nearest == word, answer.score

    def accepted(self, some: Sequence[Embeddings]) -> list[bool]:
        """Whether each of these strange sounds is taken for a word."""
        return [self.head.classify(one).value != UNSURE for one in some]


def measured(data: Path, ears: Ears, quick: bool) -> dict[str, float]:
    """Shares of words that are told right, and of strange sounds that are taken for words."""
    words, missed = spoken(data, ears, quick)
    others, _ = archived(data / STRANGE, ".flac", ears, quick)
    noises, hours = archived(data / NOISES, ".ogg", ears, quick)
    kept: dict[str, list[float]] = defaultdict(list)
    for speaker in words.values():
        for shots in SHOTS:
            for draw in range(DRAWS):
                one = Drawn(speaker, shots, draw)
                strange = [row for word in one.strange for row in (*one.all[word][0], *one.all[word][1])]
                limit = np.quantile([one.head.classify(row).score for row in strange], 0.95)
                answers, name = list(one.answers()), f"words_{shots}"
                kept[f"{name}_of_10"] += list(one.nearest())
                kept[name] += [accepted for accepted, _, _ in answers]
                kept[f"{name}_at_5_percent"] += [right and score > limit for _, right, score in answers]
                kept[f"{name}_strange"] += one.accepted(strange)
                kept[f"{name}_strange_people"] += one.accepted(others)
                kept[f"{name}_noises_per_hour"].append(sum(one.accepted(noises)) / hours)
    figures = {name: float(np.mean(some)) for name, some in kept.items()}
    return {**figures, "words_missed": missed, "words_in_noises_per_hour": len(noises) / hours}


def learn_s() -> float:
    """Time to learn eight words of 20 examples, the most, and to check each example by the others, s."""
    random = np.random.default_rng(_SEED)
    taught = {
        str(word): [random.normal(word, 4, (1, 96)).astype(np.float32) for _ in range(20)] for word in range(8)
    }
    began = time.perf_counter()
    WordHead({word: np.concatenate(some) for word, some in taught.items()})
    leave_one_out(taught, WordHead)
    return time.perf_counter() - began


def heads() -> list[WordHead]:
    """What 16 lessons of eight words of 20 examples leave in memory."""
    random, found = np.random.default_rng(0), []
    for _ in range(16):
        taught = {str(word): random.normal(word, 4, (20, 96)).astype(np.float32) for word in range(8)}
        leave_one_out({word: list(some[:3, None]) for word, some in taught.items()}, WordHead)
        found.append(WordHead(taught))
    return found
