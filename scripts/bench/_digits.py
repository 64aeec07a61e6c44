"""Spoken digits that training never saw, other words and noise, as recordings or as one stream.

Every recording of the Free Spoken Digit Dataset's training half whose number ends in 7 was kept out of training
(see `scripts/build_models/small_speech`); of these, the numbers below 30 are for learning thresholds, the others
for trying them. Run as a program (`_digits.py DATA FOLDER`) it writes the first as a folder for `vedette optimise
calibrate`, each word clean and at 10 and 0 dB, with seconds of synthetic speech, of actors' speech (`_speech.py`)
and of noise. Training has heard that noise; the clips that it has not heard are mixed with the words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import _sound
import _speech
import common
import numpy as np
import soundfile
from msgspec import Struct

from agent.types import Samples

RATE = 8000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONDITIONS: dict[str, float | None] = {"clean": None, "10 dB": 10.0, "0 dB": 0.0}
_TURNS = 3
"""Noises that each word is heard in."""
_EVERY_S = 0.5
"""Distance of the seconds of acted speech that thresholds are learned from."""
_HELD_OUT, _LEARNED_BELOW = 7, 30
UNKNOWN, NOISES = slice(3, None, 10), slice(3, None, 6)
"""As `scripts/build_models/speech_corpus.py` keeps them out of training."""


class Said(Struct):
    """A word in a stream: its label, and its samples' first and last."""

    label: str
    first: int
    last: int


def digits(data: Path, *, learn: bool) -> list[tuple[str, Samples]]:
    """Label and sound of held-out digits, for learning or for trying."""
    return [(label, sound) for label, _, sound in spoken_digits(data, learn=learn)]


def spoken_digits(data: Path, *, learn: bool) -> list[tuple[str, str, Samples]]:
    """Label, speaker and sound of held-out digits, for learning or for trying."""
    stored = np.load(common.needed(data / "fsdd_train.npz"))
    pcm, offsets = stored["pcm"], stored["offsets"]
    found = []
    for number, name in enumerate(map(str, stored["names"])):
        digit, speaker, take = name.split("_")
        if is_held_out(name) and (int(take) < _LEARNED_BELOW) is learn:
            found.append((DIGITS[int(digit)], speaker, pcm[offsets[number] : offsets[number + 1]]))
    return found


def is_held_out(name: str) -> bool:
    """If a recording, such as 7_jackson_17, was kept out of training."""
    return int(name.rsplit("_", 1)[1]) % 10 == _HELD_OUT


def noises(data: Path) -> list[Samples]:
    """Held-out noise."""
    return [sound for _, sound in _sound.archived(common.needed(data / "esc10_dev.tar"), RATE)][NOISES]


def unknown(data: Path) -> list[Samples]:
    """Held-out words that are no digits."""
    return [sound for _, sound in _sound.archived(common.needed(data / "wakewords_dev.tar"), RATE)][UNKNOWN]


def mixed(sound: Samples, noise: Samples, snr_db: float | None, seed: int) -> Samples:
    """Sound with noise at a signal to noise ratio; None: as it is."""
    if snr_db is None:
        return sound
    random = np.random.default_rng(seed)
    noise = np.resize(np.roll(noise, random.integers(len(noise))), len(sound)).astype(np.float64)
    powers = [max(1.0, float(np.square(part.astype(np.float64)).mean())) for part in (sound, noise)]
    scale = np.sqrt(powers[0] / powers[1] / 10.0 ** (snr_db / 10.0))
    return np.asarray(np.clip(np.rint(sound + noise * scale), -32768, 32767), np.int16)


def stream(
    words: Sequence[tuple[str, Samples]], noise: Sequence[Samples], snr_db: float | None, pause_s: float = 0.9
) -> tuple[Samples, list[Said]]:
    """Words with pauses; noise, where there is any, goes on through them, louder or softer with the words."""
    parts, said, at = [], [], 0
    for number, (label, sound) in enumerate(words):
        before, after = round(pause_s * RATE / 2), round(pause_s * RATE / 2)
        padded = np.concatenate((np.zeros(before, np.int16), sound, np.zeros(after, np.int16)))
        level = np.square(sound.astype(np.float64)).mean()
        if snr_db is not None:
            part = np.resize(noise[number % len(noise)], len(padded)).astype(np.float64)
            scale = np.sqrt(level / max(1.0, float(np.square(part).mean())) / 10.0 ** (snr_db / 10.0))
            padded = np.clip(np.rint(padded + part * scale), -32768, 32767).astype(np.int16)
        said.append(Said(label, at + before, at + before + len(sound)))
        parts.append(padded + _sound.quiet(len(padded) / RATE, RATE, 4.0, number)[: len(padded)])
        at += len(padded)
    return np.concatenate(parts), said


def recordings(data: Path) -> Iterator[tuple[str, Samples]]:
    """Label and sound of everything that thresholds are learned from."""
    noise = noises(data)
    for number, (label, sound) in enumerate(digits(data, learn=True)):
        for snr_db in CONDITIONS.values():
            for turn in range(1 if snr_db is None else _TURNS):
                yield label, mixed(sound, noise[(number + turn) % len(noise)], snr_db, number + turn)
    for number, sound in enumerate(unknown(data)):
        for snr_db in (None, 10.0):
            yield "unknown", mixed(sound, noise[number % len(noise)], snr_db, number)
    for sentence in _speech.synthetic(RATE, 0, 2):
        for at in range(0, len(sentence) - RATE, RATE):
            yield "unknown", sentence[at : at + RATE]
    for dialogue in _speech.acted(RATE, 3, 10):
        for at in range(0, len(dialogue) - RATE, round(_EVERY_S * RATE)):
            yield "unknown", dialogue[at : at + RATE]
    for number in range(20):
        yield "silence", _sound.quiet(1.0, RATE, 4.0 * (number + 1), number)
    for number, (_, sound) in enumerate(_sound.archived(data / "esc10_dev.tar", RATE)):
        if number % 6 != NOISES.start:
            yield "silence", sound[: 2 * RATE]


def main(data: str, folder: str) -> None:
    """Write them, a folder for each label."""
    for number, (label, sound) in enumerate(recordings(Path(data))):
        path = Path(folder, label, f"{number}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, RATE)


if __name__ == "__main__":
    main(*sys.argv[1:])
