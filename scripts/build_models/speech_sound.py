"""Sound at 8 kHz in -1..1: resampling, and cutting off what is quiet at the ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 8000
_QUIET_DB = -32.0
"""The beginning and end of a word are cut off where they are this much below its loudest 20 ms."""

Sound = NDArray[np.float32]


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
