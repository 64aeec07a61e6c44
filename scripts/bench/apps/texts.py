"""The decoder of texts: how long it takes, and what a pattern and its score are worth on uncertain readings.

The outputs are simulated: texts of two letters and four digits, each character in two steps with a blank between
them, whose probabilities are mixed with those of characters that look alike and with noise. Half of the texts are
read with a pattern. The score is compared with the mean of the best characters' probabilities, as others have it:
by the share of texts that are told while one in a hundred is told wrongly. With --quick fewer texts.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import common
import numpy as np
from numpy.typing import NDArray

from agent.compute.decode import build_decoder
from agent.compute.decode.ctc import Ctc, TextReading
from agent.compute.manifest import Manifest, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALIKE = {
    "0": "O",
    "1": "I",
    "2": "Z",
    "5": "S",
    "6": "G",
    "8": "B",
    "O": "0",
    "I": "1",
    "Z": "2",
    "S": "5",
    "B": "8",
}
PLATE = "[A-Z]{2}[0-9]{4}"
LARGE, SEARCHED = 1.0, 5.0
Floats = NDArray[np.float32]


class Told(NamedTuple):
    """A text that was read, whether it is right, and the mean of its characters' probabilities."""

    is_right: bool
    score: float
    mean: float


def main() -> None:
    given = common.arguments(__doc__ or "").parse_args()
    count = 1000 if given.quick else 10_000
    figures = large() | patterns(count) | scores(count)
    least = {"right_gained_by_pattern": 0.1, "told_gained_by_score": 0.0}
    most = {"ms_large_probabilities": LARGE, "ms_pattern": SEARCHED}
    targets = {name: f">= {value:g}" for name, value in least.items()}
    targets |= {name: f"<= {value:g}" for name, value in most.items()}
    meets = all(figures[name] >= value for name, value in least.items())
    common.conclude("apps/texts", figures, targets, meets and all(figures[name] <= most[name] for name in most))


def decoder(spec: TensorSpec, labels: str, pattern: str = "", **options: Any) -> Ctc:
    """Build the decoder for an output."""
    output = OutputManifest("ctc", tuple(labels), 0.0, options=options)
    image = TensorSpec("image", (1, 32, 160, 3), "uint8", 1.0, 0)
    built = build_decoder(Manifest("texts", output), (image,), (spec,), DecodeConfig(pattern=pattern))
    assert isinstance(built, Ctc)
    return built


def best_ms(decode: Ctc, values: NDArray[Any]) -> float:
    """Return the least time of 30 decodings, ms."""
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        decode([values])
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def large() -> dict[str, float]:
    """Return the time of 200 steps of 7,000 characters: probabilities, logits, and quantised logits."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(1, 200, 7000)).astype(np.float32)
    logits[0, :, -1] += np.where(random.random(200) < 0.8, 20, 0)
    powers = np.exp(logits)
    labels = "".join(map(chr, range(0x4E00, 0x4E00 + 6999)))
    spec, stored = (
        TensorSpec("text", logits.shape, "float32", 0.0, 0),
        (logits * 6).clip(-128, 127).astype(np.int8),
    )
    quantised = TensorSpec("text", stored.shape, "int8", 1 / 6, 0)
    figures = {
        "ms_large_probabilities": best_ms(decoder(spec, labels), powers / powers.sum(-1, keepdims=True)),
        "ms_large_logits": best_ms(decoder(spec, labels, logits=True), logits),
        "ms_large_int8": best_ms(decoder(quantised, labels, logits=True), stored),
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    return figures


def uncertain(text: str, random: np.random.Generator) -> Floats:
    """Return probabilities [steps, characters] of a text that is not clear."""
    blank = len(CHARACTERS)
    numbers = [blank, *(number for one in text for number in (*[CHARACTERS.index(one)] * 2, blank))]
    steps = np.eye(blank + 1)[numbers]
    for at, one in enumerate(text):
        doubt, rows = random.beta(0.5, 2.0), slice(1 + 3 * at, 3 + 3 * at)
        other = (
            CHARACTERS.index(ALIKE[one]) if one in ALIKE and random.random() < 0.7 else int(random.integers(36))
        )
        other = blank if random.random() < 0.25 else other
        steps[rows] *= 1.0 - doubt
        steps[rows, other] += doubt
    return np.asarray(0.97 * steps + 0.03 * random.dirichlet(np.full(blank + 1, 0.2), len(steps)), np.float32)


def plate(random: np.random.Generator) -> str:
    """Return two letters and four digits."""
    letters = "".join(CHARACTERS[number] for number in random.integers(10, 36, 2))
    return f"{letters}{random.integers(0, 10_000):04}"


def patterns(count: int) -> dict[str, float]:
    """Return the share of texts that are right without and with a pattern, and the median time of one with it."""
    random, right, times = np.random.default_rng(1), np.zeros(2), []
    spec = TensorSpec("text", (1, 19, 37), "float32", 0.0, 0)
    decoders = decoder(spec, CHARACTERS), decoder(spec, CHARACTERS, pattern=PLATE)
    for _ in range(count):
        text = plate(random)
        values = uncertain(text, random)[None]
        for place, decode in enumerate(decoders):
            begin = time.perf_counter()
            found = decode.read([values])
            times += [time.perf_counter() - begin] * place
            right[place] += found is not None and found.text == text
    without, with_one = (right / count).tolist()
    print(f"right of {count}: {without:.3f}, with a pattern {with_one:.3f}")
    gained = {"right": without, "right_pattern": with_one, "right_gained_by_pattern": with_one - without}
    return gained | {"ms_pattern": float(np.median(times)) * 1000}


def scores(count: int) -> dict[str, float]:
    """Return the share of texts told while one in a hundred is told wrongly, by the score and by the mean."""
    random, told = np.random.default_rng(2), []
    decode = decoder(TensorSpec("text", (1, 19, 37), "float32", 0.0, 0), CHARACTERS)
    for _ in range(count):
        text = plate(random)
        values = uncertain(text, random)
        found = decode.read([values[None]])
        if found is not None:
            told.append(Told(found.text == text, found.score, mean_of(found, values)))
    right = np.array([one.is_right for one in told])
    by_score, by_mean = (share(right, np.array([one[place] for one in told])) for place in (1, 2))
    print(f"told while 1 % is wrong: {by_score:.3f} by the probability of the text, {by_mean:.3f} by the mean")
    return {"told_by_score": by_score, "told_by_mean": by_mean, "told_gained_by_score": by_score - by_mean}


def mean_of(found: TextReading, values: Floats) -> float:
    """Return the geometric mean of the probabilities of a text's characters, each at its best step."""
    best, peaks = values.argmax(axis=1), list[float]()
    for at, number in enumerate(best):
        if number < len(CHARACTERS):
            same = at > 0 and best[at - 1] == number
            peak = float(values[at, number])
            peaks = [*peaks[:-1], max(peaks[-1], peak)] if same else [*peaks, peak]
    assert len(peaks) == len(found.text)
    return float(np.exp(np.log(peaks).mean()))


def share(right: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the largest share of texts that a threshold tells with at most 1 % of all wrong."""
    order = np.argsort(-score, kind="stable")
    allowed = np.flatnonzero(np.cumsum(~right[order]) <= 0.01 * right.size)
    return float((allowed[-1] + 1) / right.size) if allowed.size else 0.0


if __name__ == "__main__":
    main()
