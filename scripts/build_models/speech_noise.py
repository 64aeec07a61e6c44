"""Noise for the small speech model's examples: recorded and mixed anew, or made up, a second at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from speech_sound import RATE_HZ, Sound

SECOND = RATE_HZ
_FLOOR = 1e-4
"""Level that noise is taken to have at least, so that its silent parts are not blown up."""
_LEVEL = 0.1

Random = np.random.Generator


def noise(random: Random, recorded: list[Sound]) -> Sound:
    """A second of noise with a level of about 0.1: recorded, or, one time out of four, coloured hiss."""
    if random.random() < 0.25:
        return hiss(random) * np.float32(_LEVEL)
    clip = recorded[random.integers(len(recorded))]
    start = random.integers(len(clip) - SECOND + 1)
    part, whole = clip[start : start + SECOND], level(clip)
    return (part * (_LEVEL / max(level(part), 0.3 * whole, _FLOOR))).astype(np.float32)


def sudden(random: Random, recorded: list[Sound]) -> Sound:
    """A second of noise that was not recorded so: at another speed, mixed, beginning or ending, or made up."""
    made = random.random()
    if made < 0.5:
        sound = _played(random, recorded)
        if random.random() < 0.35:
            sound = sound + _played(random, recorded) * np.float32(10 ** random.uniform(-1, 0.5))
    elif made < 0.7:
        sound = tones(random)
    elif made < 0.85:
        sound = clicks(random)
    else:
        sound = hiss(random) * np.float32(_LEVEL) * _swelling(random)
    if random.random() < 0.4:
        sound = sound * _part(random)
    if random.random() < 0.3:
        sound = sound + hiss(random) * np.float32(10 ** random.uniform(-4, -1.5))
    return sound.astype(np.float32)


def level(sound: Sound) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(sound).mean()))


def hiss(random: Random) -> Sound:
    """Noise of level 1 whose spectrum falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(random.standard_normal(SECOND))
    spectrum *= np.maximum(np.arange(len(spectrum)), 20) ** -random.uniform(0, 1)
    made = np.fft.irfft(spectrum, SECOND)
    return _single(made / np.sqrt(np.square(made).mean()))


def tones(random: Random) -> Sound:
    """A few tones of one fundamental or of none, steady, gliding or trembling, some of them one after another."""
    seconds = np.arange(SECOND) / RATE_HZ
    sound = np.zeros(SECOND)
    for _ in range(random.integers(1, 4)):
        hz = np.exp(random.uniform(np.log(80), np.log(3000)))
        glide = random.uniform(-0.8, 0.8) if random.random() < 0.5 else 0.0
        tremble = random.uniform(0, 0.1) * np.sin(2 * np.pi * random.uniform(2, 12) * seconds)
        phase = 2 * np.pi * hz * np.cumsum(1 + glide * seconds + tremble) / RATE_HZ
        partials = random.integers(1, 12) if random.random() < 0.7 else 1
        tone = sum(
            np.sin(n * phase) * random.uniform(0.2, 1) / n**0.7 for n in range(1, partials + 1) if n * hz < 3800
        )
        sound += tone * (_part(random) if random.random() < 0.6 else 1.0)
    return _single(sound * (_LEVEL / max(level(_single(sound)), _FLOOR)))


def clicks(random: Random) -> Sound:
    """Impulses that ring: knocks, clicks and ticks."""
    sound = np.zeros(SECOND)
    for _ in range(random.integers(1, 9)):
        length = int(random.uniform(0.005, 0.25) * RATE_HZ)
        decay = np.exp(-np.arange(length) * random.uniform(3, 12) / length)
        ring = np.sin(2 * np.pi * random.uniform(100, 3500) / RATE_HZ * np.arange(length))
        impulse = (random.standard_normal(length) * random.uniform(0, 1) + ring * random.uniform(0, 1)) * decay
        start = random.integers(SECOND - length)
        sound[start : start + length] += impulse * random.uniform(0.2, 1)
    return _single(sound * (3 * _LEVEL / max(np.abs(sound).max(), _FLOOR)))


def _single(sound: NDArray[np.floating]) -> Sound:
    return np.asarray(sound, np.float32)


def _played(random: Random, recorded: list[Sound]) -> Sound:
    """A part of a recording at another speed, one time out of five backwards."""
    clip = recorded[random.integers(len(recorded))]
    speed = np.exp(random.uniform(np.log(0.6), np.log(1.6)))
    length = int(SECOND * speed) + 2
    start = random.integers(max(1, len(clip) - length + 1))
    used = np.resize(clip[start : start + length], length)
    part = np.interp(np.arange(SECOND) * speed, np.arange(length), used)
    if random.random() < 0.2:
        part = part[::-1]
    found = max(float(np.sqrt(np.square(part).mean())), 0.3 * level(clip), _FLOOR)
    return _single(part * (_LEVEL / found))


def _part(random: Random) -> Sound:
    """1 during a part of the second and 0 else, with short ramps."""
    begin, end = np.sort(random.uniform(-0.3, 1.3, 2)) * SECOND
    ramp = random.uniform(0.002, 0.1) * SECOND
    at = np.arange(SECOND)
    up, down = np.clip((at - begin) / ramp, 0, 1), np.clip((max(end, begin + 800) - at) / ramp, 0, 1)
    return _single(up * down)


def _swelling(random: Random) -> Sound:
    """A gain that goes up and down at a few hertz."""
    at = np.arange(SECOND) / RATE_HZ
    depth, hz = random.uniform(0.3, 1), random.uniform(0.7, 9)
    gain = 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * (hz * at + random.random())))
    return _single(gain)
