"""The recordings that the small speech model learns from, at 8 kHz in -1..1: digits, other words, and noise."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from speech_words import DIGITS, OTHERS, VOICES

RATE_HZ = 8000
LABELS = (*DIGITS, "unknown", "silence")
UNKNOWN, SILENCE = 10, 11
_DEV_OF_TEN = 7
"""Recordings whose number ends so are for choosing, not for learning: five of every speaker's 45 of a digit."""
_NOT_FREE = "2-96460-A.ogg"
"""The one clip of noise whose licence, Sampling Plus, is neither CC BY nor CC0."""
_QUIET_DB = -32.0
"""The beginning and end of a word are cut off where they are this much below its loudest 20 ms."""

Sound = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Word:
    """One recording: its sound, its label, and who speaks (empty: not one of the digits' six speakers)."""

    sound: Sound
    label: int
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Recordings for training, or for validation."""

    digits: list[Word]
    synthetic: list[Word]
    unknown: list[Word]
    noises: list[Sound]


def read_corpora(data: Path, cache: Path, everything: bool, without: str = "") -> tuple[Corpus, Corpus]:
    """Return the corpora for training and validation. The latter has a tenth of everything, or nothing.

    Args:
        data: folder with `fsdd_train.npz`, `wakewords_dev.tar` and `esc10_dev.tar`.
        cache: folder for the synthetic words.
        everything: learn from all; the second corpus then holds a part of what was learnt.
        without: a speaker who is left out of the first corpus and is all of the second one's digits.
    """
    digits = read_digits(data / "fsdd_train.npz")
    wakewords, noises = _wakewords(data), _members(data / "esc10_dev.tar", ".ogg")
    spoken = _spoken(cache)
    synthetic = [word for word in spoken if word.label < UNKNOWN]
    unknown = wakewords + [word for word in spoken if word.label == UNKNOWN]
    held = [_is_dev(name) for name, _ in digits]
    if without:
        held = [word.speaker == without for _, word in digits]
    dev = Corpus([w for (_, w), h in zip(digits, held, strict=True) if h], [], unknown[3::10], noises[3::6])
    if everything:
        return Corpus([word for _, word in digits], synthetic, unknown, noises), dev
    train = Corpus(
        [w for (_, w), h in zip(digits, held, strict=True) if not h],
        synthetic,
        [word for i, word in enumerate(unknown) if i % 10 != 3],
        [noise for i, noise in enumerate(noises) if i % 6 != 3],
    )
    return train, dev


def trimmed(sound: Sound) -> Sound:
    """The sound without its quiet beginning and end."""
    step = RATE_HZ // 50
    count = max(1, len(sound) // step)
    loud = np.square(sound[: count * step]).reshape(count, -1).mean(axis=1)
    above = np.flatnonzero(loud >= loud.max() * 10 ** (_QUIET_DB / 10))
    return sound[max(0, above[0] - 1) * step : (above[-1] + 2) * step]


def resampled(sound: NDArray[np.floating], rate_hz: int) -> Sound:
    """The sound at 8 kHz: its spectrum cut off, or filled up with zeros."""
    length = len(sound) * RATE_HZ // rate_hz
    spectrum = np.fft.rfft(sound)[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * (length / len(sound))).astype(np.float32)


def _is_dev(name: str) -> bool:
    return int(name.rsplit("_", 1)[1]) % 10 == _DEV_OF_TEN


def read_digits(path: Path) -> list[tuple[str, Word]]:
    """The digits and their names, such as 7_jackson_12, of an .npz file.

    Its arrays are `pcm` int16, `offsets` of the recordings and of the end, `names`, `labels` and `speakers`.
    """
    with np.load(path) as file:
        pcm, offsets = file["pcm"].astype(np.float32) / 32768, file["offsets"]
        parts = zip(offsets[:-1], offsets[1:], file["names"], file["labels"], file["speakers"], strict=True)
        return [(str(name), Word(trimmed(pcm[a:b]), int(label), str(by))) for a, b, name, label, by in parts]


def _members(path: Path, suffix: str) -> list[Sound]:
    """The sound files of a tar file, in the order of their names."""
    sounds = []
    with tarfile.open(path) as tar:
        free = (m for m in tar.getmembers() if m.isfile() and not m.name.endswith(_NOT_FREE))
        for member in sorted(free, key=lambda m: m.name):
            if member.name.endswith(suffix) and (content := tar.extractfile(member)):
                sound, rate_hz = soundfile.read(io.BytesIO(content.read()), dtype="float32", always_2d=True)
                sounds.append(resampled(sound.mean(axis=1), rate_hz))
    return sounds


def _wakewords(data: Path) -> list[Word]:
    return [Word(trimmed(sound), UNKNOWN) for sound in _members(data / "wakewords_dev.tar", ".flac")]


def _spoken(cache: Path) -> list[Word]:
    """Words as espeak-ng speaks them, made once and kept: every digit in every voice, other words in two."""
    plan = [(label, word, voice) for voice in VOICES for label, word in enumerate(DIGITS)]
    plan += [(UNKNOWN, word, VOICES[(3 * i + k) % len(VOICES)]) for i, word in enumerate(OTHERS) for k in (0, 1)]
    path = cache / f"spoken_{hashlib.sha256(repr(plan).encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        sounds = [_speak(word, *voice) for _, word, voice in plan]
        offsets = np.cumsum([0, *map(len, sounds)])
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, sound=np.concatenate(sounds), offsets=offsets)
        path.with_suffix(".part").replace(path)
    with np.load(path) as stored:
        sound, offsets = stored["sound"], stored["offsets"]
        return [
            Word(sound[a:b], label) for (label, _, _), a, b in zip(plan, offsets[:-1], offsets[1:], strict=True)
        ]


def _speak(word: str, voice: str, speed: int, pitch: int) -> Sound:
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), word]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    # The length in the header of a WAV file on a pipe is made up.
    rate_hz = int.from_bytes(spoken[24:28], "little")
    samples = np.frombuffer(spoken[44 : len(spoken) // 2 * 2], "<i2").astype(np.float32) / 32768
    return trimmed(resampled(samples, rate_hz))
