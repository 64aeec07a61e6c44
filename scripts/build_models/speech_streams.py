"""Streams for the verification of words, 8 kHz: digits with pauses, and speech, fragments and noise without any.

Each recording is varied in speed, level and frequency response, and lies in a room or in recorded noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from speech_corpus import Word
from speech_mix import Pcm, to_pcm
from speech_noise import Random
from speech_sound import RATE_HZ, Sound

_GAP = (RATE_HZ // 5, RATE_HZ)
"""Least and most samples between two digits of a group."""
_ECHO = 2400
"""Samples of an echo."""
_BLOCK, _SHORTEST, _LONGEST = 80, 14, 90
"""Samples of a block of speech; least and most blocks of a piece."""
_REVERSIBLE = 9
"""Digits below it are another word when played backwards."""


@dataclass(frozen=True, slots=True)
class Said:
    """A digit in a stream: label, and its first and last second."""

    label: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Stream:
    """Sound, and the digits that are said in it."""

    sound: Pcm
    said: list[Said]


def digits(random: Random, words: Sequence[Word], noises: Sequence[Sound], others: Sequence[Word]) -> Stream:
    """Say each digit once, in groups of up to three, with another word between at times."""
    parts: list[Pcm] = []
    said: list[Said] = []
    order, at, begun = random.permutation(len(words)), 0, 0
    while begun < len(order):
        count = int(random.integers(1, 4))
        group, own = _group(random, [words[n] for n in order[begun : begun + count]], others)
        parts.append(to_pcm(_mixed(random, group, noises)))
        said += [Said(one.label, one.first_s + at / RATE_HZ, one.last_s + at / RATE_HZ) for one in own]
        at, begun = at + len(group), begun + count
    return Stream(np.concatenate(parts), said)


def _group(random: Random, words: Sequence[Word], others: Sequence[Word]) -> tuple[Sound, list[Said]]:
    pieces, said = [np.zeros(random.integers(RATE_HZ // 4, RATE_HZ * 9 // 8), np.float32)], []
    for word in words:
        if random.random() < 0.3:
            other = varied(random, others[int(random.integers(len(others)))].sound)
            pieces += [other, np.zeros(random.integers(RATE_HZ // 5, RATE_HZ * 3 // 4), np.float32)]
        begin = sum(map(len, pieces))
        pieces.append(varied(random, word.sound))
        said.append(Said(word.label, begin / RATE_HZ, (begin + len(pieces[-1])) / RATE_HZ))
        pieces.append(np.zeros(random.integers(*_GAP), np.float32))
    return np.concatenate([*pieces, np.zeros(RATE_HZ // 2, np.float32)]), said


def without_digits(
    random: Random, sounds: Sequence[Sound], noises: Sequence[Sound], *, together: float = 0.0
) -> Stream:
    """Play each sound once, a share of them together with another."""
    parts = []
    for number in random.permutation(len(sounds)):
        sound = varied(random, sounds[number], 0.2)
        if random.random() < together:
            other = np.resize(varied(random, sounds[int(random.integers(len(sounds)))], 0.2), len(sound))
            sound = sound + other * np.float32(random.uniform(0.2, 1.0))
        pause = np.zeros(random.integers(RATE_HZ // 10, RATE_HZ * 3 // 4), np.float32)
        parts.append(to_pcm(_mixed(random, np.concatenate((sound, pause)), noises)))
    return Stream(np.concatenate(parts), [])


def fragments(random: Random, words: Sequence[Word], noises: Sequence[Sound]) -> Stream:
    """Play a part of each digit, or the digit backwards."""
    return without_digits(random, list(_fragments(random, words)), noises)


def _fragments(random: Random, words: Sequence[Word]) -> Iterator[Sound]:
    for word in words:
        kind, sound = random.random(), word.sound
        if kind < 0.25 and word.label < _REVERSIBLE:
            yield np.ascontiguousarray(sound[::-1])
        elif kind < 0.65:
            yield sound[: int(len(sound) * random.uniform(0.15, 0.5))]
        else:
            yield sound[-int(len(sound) * random.uniform(0.15, 0.4)) :]


def pieces(random: Random, speech: Sequence[Sound], noises: Sequence[Sound], most: int = 3500) -> Stream:
    """Play pieces of speech as long as a word, each by itself as a digit is, at most so many of them."""
    found = [piece for sound in speech for piece in _cut(random, sound)]
    parts = []
    for number in random.permutation(len(found))[:most]:
        sound = varied(random, found[number], 0.25)
        before, after = (
            random.integers(RATE_HZ // 10, RATE_HZ // 2),
            random.integers(RATE_HZ * 3 // 10, RATE_HZ * 4 // 5),
        )
        around = np.zeros(before, np.float32), sound, np.zeros(after, np.float32)
        parts.append(to_pcm(_mixed(random, np.concatenate(around), noises)))
    return Stream(np.concatenate(parts), [])


def _cut(random: Random, sound: Sound) -> Iterator[Sound]:
    """Yield pieces between dips of the level, faded in and out."""
    blocks = sound[: len(sound) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    if len(blocks) < 2 * _SHORTEST:
        return
    power = np.convolve(np.square(blocks).mean(axis=1), np.full(3, 1 / 3), "same")
    levels = 10.0 * np.log10(power + 1e-9)
    inner = range(3, len(levels) - 3)
    dips = [at for at in inner if levels[at] == levels[at - 3 : at + 4].min() and _is_cut(random, levels, at)]
    begin = 0
    while begin < len(levels):
        least = begin + round(random.uniform(0.16, 0.65) * RATE_HZ / _BLOCK)
        end = next((at for at in dips if at >= least), len(levels))
        if _SHORTEST <= end - begin <= _LONGEST and levels[begin:end].max() > levels.max() - 25.0:
            yield _faded(sound[begin * _BLOCK : end * _BLOCK])
        begin = end


def _is_cut(random: Random, levels: NDArray[np.float64], at: int) -> bool:
    return bool(levels[at] < levels.max() - 10.0) or random.random() < 0.35


def _faded(sound: Sound) -> Sound:
    ramp = np.linspace(0.0, 1.0, min(_BLOCK, len(sound) // 4), dtype=np.float32)
    shape = np.ones(len(sound), np.float32)
    shape[: len(ramp)], shape[-len(ramp) :] = ramp, ramp[::-1]
    return sound * shape


def varied(random: Random, sound: Sound, speed: float = 0.15) -> Sound:
    """Return the sound at another speed and level, and at times through another microphone and a room."""
    at = np.arange(0, len(sound) - 1, 1 + random.uniform(-speed, speed))
    sound = np.interp(at, np.arange(len(sound)), sound).astype(np.float32)
    if random.random() < 0.4:
        sound = _coloured(random, sound)
    peak = max(1e-3, float(np.abs(sound).max()))
    return sound * np.float32(10 ** (random.uniform(-25, -1) / 20) / peak)


def _coloured(random: Random, sound: Sound) -> Sound:
    size = len(sound) + 2 * _ECHO
    hz = np.linspace(0, RATE_HZ / 2, size // 2 + 1)
    bends = np.interp(hz, np.linspace(0, RATE_HZ / 2, 6), random.uniform(-8, 8, 6))
    low, high = random.choice([0.0, 0.0, 150.0, 300.0]), random.choice([4000.0, 4000.0, 3400.0, 2800.0])
    passed = 10 ** (bends / 20) / (1 + np.exp((low - hz) / 20)) / (1 + np.exp((hz - high) / 60))
    spectrum = np.fft.rfft(sound, size) * passed
    if random.random() < 0.5:
        decay = random.uniform(0.02, 0.1) * RATE_HZ
        echo = random.standard_normal(_ECHO) * np.exp(-np.arange(_ECHO) / decay) * random.uniform(0.05, 0.25)
        echo[0] = 1.0
        spectrum *= np.fft.rfft(echo, size)
    return np.asarray(np.fft.irfft(spectrum, size)[: len(sound) + _ECHO // 2], np.float32)


def _mixed(random: Random, sound: Sound, noises: Sequence[Sound]) -> NDArray[np.float32]:
    """Return the sound in a quiet room, or over recorded noise that is up to 25 dB softer."""
    if random.random() < 0.4:
        hiss = random.standard_normal(len(sound)) * random.choice([1e-5, 1e-4, 4e-4])
        return np.asarray(sound + hiss, np.float32)
    noise = noises[int(random.integers(len(noises)))]
    noise = np.resize(np.roll(noise, random.integers(len(noise))), len(sound))
    audible = np.abs(sound) > 1e-5
    own = np.sqrt(np.square(sound[audible]).mean()) if audible.any() else 1e-3
    scale = own / max(1e-4, np.sqrt(np.square(noise).mean())) * 10 ** (-random.uniform(0, 25) / 20)
    return np.asarray(sound + noise * scale, np.float32)
