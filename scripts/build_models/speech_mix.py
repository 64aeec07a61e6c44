"""Makes a second of sound, as a window that slides over a stream meets it, and its label, out of the recordings.

Everything random comes from one generator per example, so that an example is the same whenever it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from speech_corpus import RATE_HZ, SILENCE, UNKNOWN, Corpus, Sound, Word

SECOND = RATE_HZ
_FLOOR = 1e-4
"""Level that noise is taken to have at least, so that its silent parts are not blown up."""
_REVERSIBLE = (0, 1, 2, 3, 4, 5, 6, 7, 8)
"""Digits that are another word when played backwards; nine is nearly itself."""

Random = np.random.Generator
Pcm = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Strength:
    """How far examples depart from the recordings."""

    speed: float = 0.12
    gain_db: tuple[float, float] = (-10.0, 8.0)
    clean: float = 0.25
    """Share of words without noise."""
    snr_db: tuple[float, float] = (-3.0, 25.0)
    coloured: float = 0.4
    """Share of examples with an equaliser; of half as many with an echo."""
    cut: float = 0.12
    """Most of a word that the window may miss."""
    neighbour: float = 0.15
    """Share of words with a fragment of another one beside them."""


def example(random: Random, corpus: Corpus, word: Word | None, strength: Strength) -> tuple[Pcm, int]:
    """A second of sound with `word` in it, or of noise if it is None; and its label."""
    if word is None:
        return to_pcm(_silence(random, corpus)), SILENCE
    sound, label = _varied(random, word, strength)
    window = _placed(random, sound, strength)
    if label < UNKNOWN and random.random() < strength.neighbour:
        window = _with_neighbour(random, corpus, window)
    window = _coloured(random, window, strength) * 10 ** (random.uniform(*strength.gain_db) / 20)
    if random.random() < strength.clean:
        window = window + _hiss(random) * random.choice([0.0, 1e-5, 1e-4, 4e-4])
    else:
        window = mixed(window, noise(random, corpus), random.uniform(*strength.snr_db))
    return to_pcm(window), label


def to_pcm(sound: Sound) -> Pcm:
    """int16, clipped as a microphone clips."""
    return np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)


def mixed(sound: Sound, background: Sound, snr_db: float) -> Sound:
    """The sound over a background, whose level is `snr_db` below that of the sound where there is any."""
    active = np.abs(sound) > 1e-6
    level = np.sqrt(np.square(sound[active]).mean()) if active.any() else _FLOOR
    scale = level / max(_FLOOR, float(np.sqrt(np.square(background).mean())))
    return (sound + background * scale * 10 ** (-snr_db / 20)).astype(np.float32)


def noise(random: Random, corpus: Corpus) -> Sound:
    """A second of noise with a level of about 0.1: recorded, or, one time out of four, coloured hiss."""
    if random.random() < 0.25:
        return _hiss(random) * 0.1
    clip = corpus.noises[random.integers(len(corpus.noises))]
    start = random.integers(len(clip) - SECOND + 1)
    part, whole = clip[start : start + SECOND], float(np.sqrt(np.square(clip).mean()))
    level = max(float(np.sqrt(np.square(part).mean())), 0.3 * whole, _FLOOR)
    return (part * (0.1 / level)).astype(np.float32)


def _hiss(random: Random) -> Sound:
    """Noise of level 1 whose spectrum falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(random.standard_normal(SECOND))
    spectrum *= np.maximum(np.arange(len(spectrum)), 20) ** -random.uniform(0, 1)
    hiss = np.fft.irfft(spectrum, SECOND)
    levelled: Sound = (hiss / np.sqrt(np.square(hiss).mean())).astype(np.float32)
    return levelled


def _silence(random: Random, corpus: Corpus) -> Sound:
    if random.random() < 0.08:
        return np.zeros(SECOND, np.float32)
    return noise(random, corpus) * np.float32(10 ** (random.uniform(-60, 12) / 20))


def _varied(random: Random, word: Word, strength: Strength) -> tuple[Sound, int]:
    """The word at another speed. One digit out of seven becomes unknown: a fragment, or played backwards."""
    speed, sound, label = 1 + random.uniform(-strength.speed, strength.speed), word.sound, word.label
    at = np.arange(0, len(sound) - 1, speed)
    sound = np.interp(at, np.arange(len(sound)), sound).astype(np.float32)
    if label >= UNKNOWN or not strength.speed or random.random() > 0.14:
        return sound, label
    if label in _REVERSIBLE and random.random() < 0.4:
        return np.ascontiguousarray(sound[::-1]), UNKNOWN
    length = int(len(sound) * random.uniform(0.12, 0.33))
    return sound[:length] if random.random() < 0.5 else sound[-length:], UNKNOWN


def _placed(random: Random, sound: Sound, strength: Strength) -> Sound:
    """The sound somewhere in a second; up to a part of it may be cut off on one side."""
    window = np.zeros(SECOND, np.float32)
    miss = int(len(sound) * strength.cut * random.random()) if random.random() < 0.3 else 0
    spare = SECOND - len(sound)
    start = int(random.integers(min(0, spare) - miss, max(0, spare) + miss + 1))
    begin, end = max(0, start), min(SECOND, start + len(sound))
    window[begin:end] = sound[begin - start : end - start]
    return window


def _with_neighbour(random: Random, corpus: Corpus, window: Sound) -> Sound:
    """The window with the end of another word at its beginning, or the beginning of one at its end."""
    other = corpus.digits[random.integers(len(corpus.digits))].sound
    used = np.flatnonzero(window)
    before, after = (used[0], SECOND - used[-1]) if len(used) else (0, 0)
    gap = RATE_HZ // 10
    length = min(int(len(other) * random.uniform(0.05, 0.35)), max(before, after) - gap)
    if length > 0 and before > after:
        window[:length] += other[-length:]
    elif length > 0:
        window[-length:] += other[:length]
    return window


def _coloured(random: Random, window: Sound, strength: Strength) -> Sound:
    """The window through a microphone's frequency response, and through a room."""
    if random.random() >= strength.coloured:
        return window
    spectrum = np.fft.rfft(window)
    hz = np.linspace(0, RATE_HZ / 2, len(spectrum))
    bends = np.interp(hz, np.linspace(0, RATE_HZ / 2, 6), random.uniform(-6, 6, 6))
    low, high = random.choice([0.0, 0.0, 150.0, 300.0]), random.choice([4000.0, 4000.0, 3400.0, 2800.0])
    spectrum *= 10 ** (bends / 20) / (1 + np.exp((low - hz) / 20)) / (1 + np.exp((hz - high) / 60))
    if random.random() < 0.5:
        decay = random.uniform(0.02, 0.08) * RATE_HZ
        echo = random.standard_normal(1600) * np.exp(-np.arange(1600) / decay) * random.uniform(0.05, 0.2)
        echo[0] = 1.0
        spectrum *= np.fft.rfft(echo, SECOND)
    return np.fft.irfft(spectrum, SECOND).astype(np.float32)
