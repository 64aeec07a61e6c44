"""Condition of one microphone: silent, clipped, or humming with the mains.

A second of sound is examined every two seconds. Quiet is judged against the quietest that this microphone
has been: a microphone or a room that is quiet by itself is not silent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from agent.config.features import Problem
from agent.features.condition.rules import ProblemTimers, Watcher
from agent.types import Array, AudioChunk, Samples, StreamResult

_CHECK_S, _BLOCK_S, _HUM_EVERY = 2.0, 1.0, 4
"""Time between two examined blocks, and their length, s; every fourth one is searched for a hum."""
_FULL = 32768.0
_DEAD = 1
"""Greatest deviation from the mean of a block without any sound, of 32768."""
_BELOW_DB, _LEARN_BLOCKS, _FORGET_DB = 24.0, 90, 0.001
"""Level below the quietest that was learned from which a microphone is silent, dB; blocks from which that is
known: three minutes; and its rise per block, dB: 2 dB an hour."""
_LOUD = 0.2
"""Least peak of sound that may be clipped, against full scale."""
_TOP, _SHOULDER = 0.95, 0.80
"""Samples from `_TOP` of the peak on are at the top, those from `_SHOULDER` to there below it."""
_FLAT_SHARE, _FLAT_RATIO, _FLAT_PAIRS = 0.01, 1.6, 0.3
"""Least share of samples at a flat top; least ratio to those below it: 1 for a sine, less for other sound; and
share of them that have another one behind them."""
_RAIL, _RAIL_SHARE = 0.985, 0.001
"""Level against full scale at which a converter ends, and least share of samples there."""
_LOUD_BLOCKS, _CLIPPED_BLOCKS = 5, 3
"""Newest loud blocks, and how many of them must be clipped."""
_MAINS_HZ, _HARMONICS = (50.0, 60.0), 8
_HUM_DB, _HUM_SHARE = -55.0, 0.7
"""Least level of a hum, dB of full scale, and its least share of the power."""
_HUM_LOW_HZ = 30.0
"""Lower sound is left out: wind, and what a cheap microphone adds."""


class MicrophoneWatcher(Watcher):
    """Watches the sound of one stream. A microphone is known in three minutes, so nothing is kept of it."""

    def __init__(self, rate_hz: int, alarm: Callable[[], str] = lambda: "") -> None:
        """Watch sound of this rate; `alarm` returns why the model gives one answer, empty: it does not."""
        self._timers, self._alarm = ProblemTimers(), alarm
        self._size, self._gap = round(_BLOCK_S * rate_hz), round((_CHECK_S - _BLOCK_S) * rate_hz)
        self._parts: list[Samples] = []
        self._held = self._skip = self._blocks = self._known = 0
        self._quietest_db = math.inf
        self._hum = Hum(self._size, rate_hz)
        self._clipped: deque[bool] = deque(maxlen=_LOUD_BLOCKS)

    def update(self, samples: Samples, now_ns: int) -> None:
        """Add sound, int16 [n], that ends at a monotonic time."""
        if self._skip > 0:
            self._skip -= samples.size
            return
        self._parts.append(samples)
        self._held += samples.size
        if self._held >= self._size:
            block = np.concatenate(self._parts)[: self._size]
            self._parts, self._held, self._skip = [], 0, self._gap
            self._check(block, now_ns)

    def pause(self) -> None:
        self._parts, self._held = [], 0
        self._timers.restart()

    def watch(self, item: AudioChunk, result: StreamResult) -> None:
        self.update(item.samples, item.captured_ns)

    @property
    def problems(self) -> dict[Problem, str]:
        alarm: dict[Problem, str] = {"constant": why} if (why := self._alarm()) else {}
        return self._timers.active | alarm

    def _check(self, block: Samples, now_ns: int) -> None:
        sound = block.astype(np.float32)
        sound -= sound.mean()
        peak = float(np.abs(sound).max())
        level_db = 20.0 * math.log10(float(np.sqrt(np.vdot(sound, sound) / sound.size)) / _FULL + 1e-7)
        self._timers.update("silent", peak <= _DEAD or self._is_low(level_db), now_ns)
        is_loud = peak >= _LOUD * _FULL
        if is_loud or "clipped" in self._timers.active:  # it ends in quiet, too
            self._clipped.append(is_loud and is_clipped(sound, peak))
            self._timers.update("clipped", sum(self._clipped) >= _CLIPPED_BLOCKS, now_ns)
        self._blocks += 1
        if self._blocks % _HUM_EVERY == 0:
            mains_hz = self._hum.find(sound) if peak > _DEAD and level_db >= _HUM_DB else 0.0
            self._timers.update("humming", mains_hz > 0.0, now_ns, f"{mains_hz:g} Hz")

    def _is_low(self, level_db: float) -> bool:
        """Return True for a level far below the quietest, which is learned at once and forgotten slowly."""
        if self._known >= _LEARN_BLOCKS and level_db < self._quietest_db - _BELOW_DB:
            return True
        self._quietest_db = min(self._quietest_db + _FORGET_DB, level_db)
        self._known += 1
        return False


def is_clipped(sound: Array, peak: float) -> bool:
    """Return True if the peaks of a sound are cut off: at full scale, or flat further down.

    Args:
        sound: float32 [n], with a mean of 0.
        peak: its greatest absolute value.
    """
    absolute = np.abs(sound)
    if np.count_nonzero(absolute >= _RAIL * _FULL) >= _RAIL_SHARE * sound.size:
        return True
    at_top = absolute >= _TOP * peak
    top = int(np.count_nonzero(at_top))
    below = int(np.count_nonzero(absolute >= _SHOULDER * peak)) - top
    # Of a tone whose period fits the rate, single samples lie at the peaks again and again.
    flat = int(np.count_nonzero(at_top[1:] & at_top[:-1]))
    return top >= _FLAT_SHARE * sound.size and top >= _FLAT_RATIO * below and flat >= _FLAT_PAIRS * top


class Hum:
    """Finds the mains' frequency and its multiples in blocks of one size."""

    def __init__(self, size: int, rate_hz: int) -> None:
        self._window = np.hanning(size).astype(np.float32)
        bins = np.fft.rfftfreq(size, 1.0 / rate_hz)
        self._counts = bins >= _HUM_LOW_HZ
        width = 2.0 * rate_hz / size  # main lobe of a Hann window
        lines = np.multiply.outer(_MAINS_HZ, np.arange(1, _HARMONICS + 1))
        self._lines = self._counts & (abs(bins - lines[:, :, None]) <= width).any(1)

    def find(self, sound: Array) -> float:
        """Return the frequency whose lines have most of the power of a block, float32 [n], Hz; 0: none has."""
        power = np.abs(np.fft.rfft(sound * self._window)) ** 2
        shares = self._lines @ power / max(1e-9, float(power[self._counts].sum()))
        return _MAINS_HZ[int(shares.argmax())] if shares.max() >= _HUM_SHARE else 0.0
