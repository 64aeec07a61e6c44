"""The head that verifies the words of `small-speech`: dense layers on embeddings, trained and written as `.npz`.

The daemon's code hears streams that are made of the recordings which `small-speech` learned from, and keeps the
embeddings of the windows before each answer in which a digit is the most probable label. Those at the end of a
digit are examples of it; all others are examples of no digit.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import speech_streams
from numpy.typing import NDArray
from speech_corpus import UNKNOWN, Corpus, read_corpora
from speech_mix import Pcm
from speech_sound import RATE_HZ
from speech_streams import Stream
from speech_words import DIGITS

from agent.compute.decode.classes import Keyword
from agent.compute.decode.decoder import Floats, softmax
from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.compute.track.keywords import KeywordSpotter
from agent.config import GateConfig, StreamConfig
from agent.features.verification.models import Verification, VerificationHead, WordVerifier
from agent.models.library import open_model
from agent.types import AudioChunk, Event

ENDS_S = (0.0, 0.08, 0.16, 0.24)
"""Ends of the windows before the end of the sound, s: steps of 80 ms, as the embedding was trained on."""
EMBEDDING, SIZE = "speech-embedding", 96
_HEAD = Path(__file__).resolve().parents[2] / "agent" / "models" / "zoo" / "small-speech-head.npz"
_LABELS = (*DIGITS, "unknown")
_LEAST = 0.15
"""Least mean of a digit that becomes an example: lower than any threshold, so that there are more."""
_EARLY_S, _LATE_S = 0.12, 0.55
"""Answers so long before and after the end of a digit are examples of it; earlier ones within it are left out."""
_PIECES = 3
"""Streams of pieces of speech: by themselves these are taken for digits more often than speech that goes on."""
_CHUNK = RATE_HZ * 3 // 100
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Examples:
    """Embeddings [n, windows, size], and the number of the digit, or `UNKNOWN`, [n]."""

    embeddings: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the head is trained. Changing them gives another head."""

    hidden: int = 128
    epochs: int = 12
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-2
    noise: float = 0.3
    """Standard deviation of the noise that is added to embeddings, which are scaled to 1."""
    dropped: float = 0.4
    """Share of the hidden values that are left out of a step."""
    smoothing: float = 0.02
    seed: int = 7


class Collector(KeywordSpotter):
    """A spotter that keeps the embeddings before each answer in which a word is the most probable label.

    Attributes:
        kept: times of the answers, s, and embeddings [windows, size].
    """

    def __init__(self, decoder: Keyword, stream: str, verifier: WordVerifier) -> None:
        super().__init__(decoder, stream)
        self._verifier = verifier
        self.kept: list[tuple[float, Floats]] = []

    def update(self, probabilities: Floats, at_ns: int, at: datetime, span_s: float) -> list[Event]:
        events = super().update(probabilities, at_ns, at, span_s)
        mean = self._newest.mean(axis=0)
        best = int(mean.argmax())
        if best in self.decoder.wanted and mean[best] >= _LEAST:
            self.kept.append((at_ns / 1e9, self._verifier.embeddings(0.0)))
        return events


def hear(made: Stream, *, tells: bool) -> Examples:
    """Hear a stream with the daemon's code, all of it; a word that is told is erased when it has ended."""
    embedding, model = open_model(EMBEDDING), open_model("small-speech")
    none = np.zeros((len(ENDS_S) * SIZE, len(_LABELS)), np.float32), np.zeros(len(_LABELS), np.float32)
    head = VerificationHead(_LABELS, ENDS_S, embedding.sha256, "", (none,))
    verifier = WordVerifier(Verification(embedding, head, 0.0 if tells else 2.0), open_session)
    spotters: list[Collector] = []

    def spotter(decoder: Keyword, stream: str) -> Collector:
        spotters.append(Collector(decoder, stream, verifier))
        return spotters[0]

    config = StreamConfig("mic:default", "small-speech", threads=1, gate=GateConfig(voice=False))
    hearing = AudioPerception("train", config, model, spotter=spotter)
    hearing.verify_with(verifier)
    for chunk in _chunks(made.sound):
        hearing.process(chunk)
    hearing.close()
    kept = spotters[0].kept
    labels = _labels_at(np.array([at_s for at_s, _ in kept]), made)
    found = np.array([one for _, one in kept], np.float32).reshape(-1, len(ENDS_S), SIZE)
    return Examples(found[labels >= 0], labels[labels >= 0])


def _chunks(sound: Pcm) -> Iterator[AudioChunk]:
    for at in range(0, len(sound), _CHUNK):
        part = sound[at : at + _CHUNK]
        end_s = (at + len(part)) / RATE_HZ
        at_utc = _BEGIN + timedelta(seconds=end_s)
        yield AudioChunk(part, RATE_HZ, "train", at, round(end_s * 1e9), at_utc)


def _labels_at(times: NDArray[np.float64], made: Stream) -> NDArray[np.int64]:
    """Return the label of an answer at each time; -1: it is left out, for a digit is being said."""
    labels = np.full(len(times), UNKNOWN)
    for one in made.said:
        labels[(times >= one.first_s) & (times < one.last_s - _EARLY_S)] = -1
        labels[(times >= one.last_s - _EARLY_S) & (times <= one.last_s + _LATE_S)] = one.label
    return labels


def streams(corpus: Corpus, seed: int) -> Iterator[tuple[str, bool, Callable[[], Stream]]]:
    """Yield the name of each stream, whether its words are told, and what makes it."""
    silence = {"noises": corpus.noises}

    def make(number: int, kind: Callable[..., Stream], *args: object, **more: object) -> Callable[[], Stream]:
        return lambda: kind(np.random.default_rng((seed, number)), *args, **silence, **more)

    others = [word.sound for word in corpus.unknown]
    yield "digits", True, make(0, speech_streams.digits, corpus.digits, others=corpus.unknown)
    yield "synthetic", True, make(1, speech_streams.digits, corpus.synthetic, others=corpus.unknown)
    yield "speech", True, make(2, speech_streams.without_digits, corpus.speech, together=0.1)
    yield "words", True, make(3, speech_streams.without_digits, others)
    words = [*corpus.digits, *corpus.synthetic]
    yield "fragments", True, make(4, speech_streams.fragments, words)
    yield "noise", True, make(5, speech_streams.without_digits, corpus.noises * 3)
    for number in range(_PIECES):
        yield f"pieces{number}", False, make(6 + number, speech_streams.pieces, corpus.speech)


def examples(corpus: Corpus, seed: int, folder: Path) -> Iterator[Examples]:
    """Yield the examples of each stream, which are kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tells, make in streams(corpus, seed):
        path = folder / f"{name}-{seed}.npz"
        if not path.exists():
            made = hear(make(), tells=tells)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, embeddings=made.embeddings.astype(np.float16), labels=made.labels)
            part.replace(path)
        with np.load(path) as kept:
            made = Examples(kept["embeddings"].astype(np.float32), kept["labels"])
        count = int((made.labels < UNKNOWN).sum())
        print(f"{path.stem}: {count} answers to digits, {len(made.labels) - count} to others", flush=True)
        yield made


def train(examples: Sequence[Examples], settings: Settings) -> list[tuple[Floats, Floats]]:
    """Return the weights and biases of each layer, by Adam, with the scaling of the embeddings folded in.

    Source: Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015.
    """
    inputs = np.concatenate([one.embeddings for one in examples]).reshape(-1, len(ENDS_S) * SIZE)
    labels = np.concatenate([one.labels for one in examples])
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    trainer = Trainer((inputs - mean) / scale, labels, settings)
    trainer.run()
    first, bias, last, other = trainer.weights
    return [(first / scale[:, None], bias - (mean / scale) @ first), (last, other)]


class Trainer:
    """Trains two layers, with a ReLU between, by cross-entropy.

    Attributes:
        weights: weights and biases of both.
    """

    def __init__(self, inputs: Floats, labels: NDArray[np.int64], settings: Settings) -> None:
        self._inputs, self._settings = inputs, settings
        self._random = random = np.random.default_rng(settings.seed)
        count, hidden = len(_LABELS), settings.hidden
        self._targets = np.full((len(labels), count), settings.smoothing / count, np.float32)
        self._targets[np.arange(len(labels)), labels] += 1.0 - settings.smoothing
        first = random.normal(0.0, np.sqrt(2.0 / inputs.shape[1]), (inputs.shape[1], hidden))
        last = random.normal(0.0, np.sqrt(1.0 / hidden), (hidden, count))
        made = (first, np.zeros(hidden), last, np.zeros(count))
        self.weights: list[Floats] = [one.astype(np.float32) for one in made]
        self._means = [np.zeros_like(one) for one in self.weights]
        self._squares = [np.zeros_like(one) for one in self.weights]

    def run(self) -> None:
        """Train for all epochs, at a rate that falls along a cosine."""
        batch, count = self._settings.batch, len(self._inputs)
        steps = self._settings.epochs * (count // batch)
        order, done = np.arange(count), 0
        while done < steps:
            self._random.shuffle(order)
            for at in range(0, count - batch + 1, batch):
                rate = self._settings.rate * 0.5 * (1.0 + np.cos(np.pi * (done + 1) / steps))
                done += 1
                self._step(self._gradients(order[at : at + batch]), done, float(rate))

    def _gradients(self, rows: NDArray[np.intp]) -> list[Floats]:
        random, (first, bias, last, other) = self._random, self.weights
        noise = random.normal(0.0, self._settings.noise, (len(rows), self._inputs.shape[1]))
        inputs = self._inputs[rows] + noise.astype(np.float32)
        before = inputs @ first + bias
        kept = (random.random(before.shape) >= self._settings.dropped) / np.float32(1.0 - self._settings.dropped)
        hidden = np.maximum(before, 0.0) * kept.astype(np.float32)
        error = (softmax(hidden @ last + other) - self._targets[rows]) / np.float32(len(rows))
        back = (error @ last.T) * kept.astype(np.float32) * (before > 0.0)
        return [inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]

    def _step(self, gradients: list[Floats], number: int, rate: float) -> None:
        for weights, mean, square, gradient in zip(
            self.weights, self._means, self._squares, gradients, strict=True
        ):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (np.square(gradient) - square)
            change = mean / (1.0 - 0.9**number) / (np.sqrt(square / (1.0 - 0.999**number)) + 1e-8)
            decay = self._settings.decay * weights if weights.ndim > 1 else 0.0
            weights -= np.float32(rate) * (change + decay)


def write(layers: Sequence[tuple[Floats, Floats]], path: Path) -> None:
    """Write a head for `agent.features.verification.models.read_head`."""
    arrays: dict[str, Any] = {
        "labels": np.array(_LABELS),
        "ends_s": np.array(ENDS_S),
        "embedding": np.array(open_model(EMBEDDING).sha256),
    }
    for number, (weights, biases) in enumerate(layers):
        arrays[f"weights{number}"], arrays[f"biases{number}"] = weights.astype(np.float16), biases
    with path.open("wb") as file:
        np.savez(file, **arrays)
    print(f"{path}: {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    """Make what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="scripts/build_models/speech_verification", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=_HEAD, help="where to write the head")
    parser.add_argument("--rounds", type=int, default=2, help="times that each recording is heard")
    arguments = parser.parse_args()
    corpus, _ = read_corpora(arguments.data, arguments.work, everything=False)
    rounds = range(arguments.rounds)
    heard = [one for seed in rounds for one in examples(corpus, seed, arguments.work / "heard")]
    write(train(heard, Settings()), arguments.output)


if __name__ == "__main__":
    main()
