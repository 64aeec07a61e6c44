"""Makes a second of sound, as a window that slides over a stream meets it, and its label, out of the recordings.

Everything random comes from one generator per example, so that an example is the same whenever it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from speech_corpus import SILENCE, UNKNOWN, Corpus, Word
from speech_noise import SECOND, Random, hiss, level, noise, sudden
from speech_sound import RATE_HZ, Sound

_FLOOR = 1e-4
"""Level that noise is taken to have at least, so that its silent parts are not blown up."""
_REVERSIBLE = (0, 1, 2, 3, 4, 5, 6, 7, 8)
"""Digits that are another word when played backwards; nine is nearly itself."""
_AFTER = RATE_HZ // 25
"""A word is taken for ended after so much other sound: before, "six" may become "sixty"."""
_AROUND = RATE_HZ // 2
"""Silence before and after a recording of speech."""
_QUIET = 0.03
"""Speech whose peak is below this share of its recording's is none."""

Pcm = NDArray[np.int16]
Kind = Word | Literal["speech", "silence"]


@dataclass(frozen=True, slots=True)
class Strength:
    """How far examples depart from the recordings."""

    speed: float = 0.15
    gain_db: tuple[float, float] = (-18.0, 8.0)
    clean: float = 0.25
    """Share of words without noise."""
    snr_db: tuple[float, float] = (-3.0, 25.0)
    coloured: float = 0.5
    """Share of examples with an equaliser; of half as many with an echo."""
    cut: float = 0.12
    """Most of a word that the window may miss."""
    neighbour: float = 0.2
    """Share of words with a fragment of another one beside them."""
    fragments: float = 0.2
    """Share of digits that become unknown: a fragment, or played backwards."""


def example(random: Random, corpus: Corpus, kind: Kind, strength: Strength) -> tuple[Pcm, int]:
    """A second of sound with a word in it, of continuous speech or of noise; and its label."""
    if kind == "silence":
        return to_pcm(_silence(random, corpus)), SILENCE
    if kind == "speech":
        window, label = _speech(random, corpus)
    else:
        sound, label = _varied(random, kind, strength)
        window = _placed(random, sound, strength)
        if label < UNKNOWN and random.random() < strength.neighbour:
            window = _with_neighbour(random, corpus, window)
    window = _coloured(random, window, strength) * 10 ** (random.uniform(*strength.gain_db) / 20)
    if random.random() < strength.clean:
        window = window + hiss(random) * random.choice([0.0, 1e-5, 1e-4, 4e-4])
    else:
        window = mixed(window, _background(random, corpus), random.uniform(*strength.snr_db))
    return to_pcm(window), label


def to_pcm(sound: Sound) -> Pcm:
    """int16, clipped as a microphone clips."""
    return np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)


def mixed(sound: Sound, background: Sound, snr_db: float) -> Sound:
    """The sound over a background, whose level is `snr_db` below that of the sound where there is any."""
    active = np.abs(sound) > 1e-6
    own = level(sound[active]) if active.any() else _FLOOR
    scale = own / max(_FLOOR, level(background))
    return (sound + background * scale * 10 ** (-snr_db / 20)).astype(np.float32)


def _background(random: Random, corpus: Corpus) -> Sound:
    return sudden(random, corpus.noises) if random.random() < 0.3 else noise(random, corpus.noises)


def _silence(random: Random, corpus: Corpus) -> Sound:
    if random.random() < 0.06:
        return np.zeros(SECOND, np.float32)
    return _background(random, corpus) * np.float32(10 ** (random.uniform(-55, 18) / 20))


def _speech(random: Random, corpus: Corpus) -> tuple[Sound, int]:
    """A window of continuous speech, or of a few people who speak at once."""
    window, label = _crop(random, corpus.speech)
    if random.random() < 0.1:
        for _ in range(random.integers(1, 4)):
            window = window + _crop(random, corpus.speech)[0] * np.float32(random.uniform(0.2, 1))
    return window, label


def _crop(random: Random, speech: list[Sound]) -> tuple[Sound, int]:
    sound = speech[random.integers(len(speech))]
    speed = 1 + random.uniform(-0.18, 0.18)
    start = random.uniform(-_AROUND, len(sound) + _AROUND - SECOND * speed)
    at = start + np.arange(SECOND) * speed
    low, high = max(0, int(start)), max(2, int(at[-1]) + 2)
    part = sound[low:high]
    window = np.interp(at - low, np.arange(len(part)), part, 0.0, 0.0).astype(np.float32) if len(part) else None
    if window is None or np.abs(window).max() < _QUIET * np.abs(sound).max():
        return np.zeros(SECOND, np.float32) if window is None else window, SILENCE
    return window, UNKNOWN


def _varied(random: Random, word: Word, strength: Strength) -> tuple[Sound, int]:
    """The word at another speed; or unknown, for a part of the digits."""
    speed, sound, label = 1 + random.uniform(-strength.speed, strength.speed), word.sound, word.label
    at = np.arange(0, len(sound) - 1, speed)
    sound = np.interp(at, np.arange(len(sound)), sound).astype(np.float32)
    if label >= UNKNOWN or random.random() >= strength.fragments:
        return sound, label
    if label in _REVERSIBLE and random.random() < 0.3:
        return np.ascontiguousarray(sound[::-1]), UNKNOWN
    if random.random() < 0.5:
        return sound[: int(len(sound) * random.uniform(0.12, 0.5))], UNKNOWN
    return sound[-int(len(sound) * random.uniform(0.12, 0.35)) :], UNKNOWN


def _placed(random: Random, sound: Sound, strength: Strength) -> Sound:
    """The sound somewhere in a second; a part of its beginning may be cut off, but it has ended."""
    window = np.zeros(SECOND, np.float32)
    miss = int(len(sound) * strength.cut * random.random()) if random.random() < 0.3 else 0
    latest = SECOND - _AFTER - len(sound)
    start = int(random.integers(min(-miss, latest), max(-miss, latest) + 1))
    begin, end = max(0, start), min(SECOND, start + len(sound))
    window[begin:end] = sound[begin - start : end - start]
    return window


def _with_neighbour(random: Random, corpus: Corpus, window: Sound) -> Sound:
    """The window with the end of another word at its beginning, or the beginning of one at its end."""
    words = corpus.digits if random.random() < 0.7 else corpus.unknown
    other = words[random.integers(len(words))].sound
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
    bends = np.interp(hz, np.linspace(0, RATE_HZ / 2, 6), random.uniform(-8, 8, 6))
    low, high = random.choice([0.0, 0.0, 150.0, 300.0]), random.choice([4000.0, 4000.0, 3400.0, 2800.0])
    spectrum *= 10 ** (bends / 20) / (1 + np.exp((low - hz) / 20)) / (1 + np.exp((hz - high) / 60))
    if random.random() < 0.5:
        decay = random.uniform(0.02, 0.1) * RATE_HZ
        echo = random.standard_normal(2400) * np.exp(-np.arange(2400) / decay) * random.uniform(0.05, 0.25)
        echo[0] = 1.0
        spectrum *= np.fft.rfft(echo, SECOND)
    return np.fft.irfft(spectrum, SECOND).astype(np.float32)
