"""Words out of the bundled recording, each said again and again a little differently."""

from __future__ import annotations

from functools import cache

import numpy as np
import soxr

from agent.capture.audio_file import read_whole
from agent.models.files import ZOO
from agent.types import Samples

RATE = 16000
_PLACES = {"three": (1.38, 1.93), "seven": (12.85, 13.35), "alexa": (9.22, 9.80), "okay nabu": (10.90, 11.70)}
"""Where each word lies in the recording, s."""


@cache
def _recording() -> Samples:
    return read_whole(ZOO / "spoken.flac", RATE)


def quiet(seconds: float, seed: int = 0) -> Samples:
    """A silent room."""
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 8.0).astype(np.int16)


def said(word: str, number: int, pause_s: float = 0.7) -> Samples:
    """A word with a pause after it, faster or slower and louder or quieter for each number."""
    random = np.random.default_rng(number)
    first, last = (round(at * RATE) for at in _PLACES[word])
    speed, gain = random.uniform(0.92, 1.08), random.uniform(0.4, 1.6)
    sound = soxr.resample(_recording()[first:last].astype(np.float64), RATE, RATE * speed) * gain
    sound = np.concatenate((sound, np.zeros(round(pause_s * RATE))))
    return np.clip(sound + random.standard_normal(len(sound)) * 8.0, -32768, 32767).astype(np.int16)
