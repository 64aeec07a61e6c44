"""Condition of one microphone: silent, clipped, or humming with the mains.

A second of sound is examined every two seconds. Quiet is judged against the quietest that this microphone
has been: a microphone or a room that is quiet by itself is not silent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from agent.config.features import ConditionConfig, Problem
from agent.features.condition.rules import ProblemTimers, Watcher
from agent.types import Array, AudioChunk, Samples, StreamResult

_CHECK_S, _BLOCK_S, _HUM_EVERY = 2.0, 1.0, 4
"""Time between two examined blocks, and their length, s; every fourth one is searched for a hum."""
_FULL = 32768.0
_DEAD = 1
"""Greatest deviation from the mean of a block without any sound, of 32768."""
_BELOW_DB = 24.0
"""Level below the quietest that was learned from which a microphone is silent, dB."""
_LEARN_BLOCKS = 90
"""Blocks from which the quietest level is known: three minutes."""
_FORGET_DB = 0.001
"""Rise of the quietest level per block, dB: 2 dB an hour."""
_PAUSE_MAX_S = 600.0
"""Longest time without any sound that is learned as a habit of the microphone, s."""
_LOUD = 0.2
"""Least peak of sound that may be clipped, against full scale."""
_TOP, _SHOULDER = 0.95, 0.80
"""Samples from `_TOP` of the peak on are at the top, those from `_SHOULDER` to there below it."""
_FLAT_SHARE, _FLAT_RATIO = 0.01, 1.6
"""Least share of samples at a flat top, and least ratio to those below it: 1 for a sine, less for other sound."""
_RAIL, _RAIL_SHARE = 0.985, 0.001
"""Level against full scale at which a converter ends, and least share of samples there."""
_LOUD_BLOCKS, _CLIPPED_BLOCKS = 5, 3
"""Newest loud blocks, and how many of them must be clipped."""
_MAINS_HZ = (50.0, 60.0)
_HARMONICS = 8
_HUM_DB, _HUM_SHARE = -55.0, 0.7
"""Least level of a hum, dB of full scale, and its least share of the power."""
_HUM_LOW_HZ = 30.0
"""Lower sound is left out: wind, and what a cheap microphone adds."""


class MicrophoneCondition(Watcher):
    """Watches the sound of one stream. A microphone is known in three minutes, so nothing is kept of it."""

    def __init__(self, config: ConditionConfig, rate_hz: int, alarm: Callable[[], str] = lambda: "") -> None:
        """Watch sound of this rate; `alarm` returns why the model gives one answer, empty: it does not."""
        self._timers, self._alarm = ProblemTimers(config.ignore), alarm
        self._ignores_constant = "constant" in config.ignore
        self._size, self._gap = round(_BLOCK_S * rate_hz), round((_CHECK_S - _BLOCK_S) * rate_hz)
        self._parts: list[Samples] = []
        self._held = self._skip = self._blocks = 0
        self._quietest = QuietestLevel()
        self._habit = SilentPauses()
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
            self.pause()
            self._skip = self._gap
            self._timers.begin_check(now_ns)
            self._check(block, now_ns)

    def pause(self) -> None:
        """Record a gap: the next sound does not continue the one before."""
        self._parts, self._held = [], 0

    def watch(self, item: AudioChunk, result: StreamResult) -> None:
        self.update(item.samples, item.captured_ns)

    @property
    def problems(self) -> dict[Problem, str]:
        found = {name: f"{self._hum.mains_hz:g} Hz" if name == "humming" else "" for name in self._timers}
        if not self._ignores_constant and (why := self._alarm()):
            found["constant"] = why
        return found

    def _check(self, block: Samples, now_ns: int) -> None:
        sound = block.astype(np.float32)
        sound -= sound.mean()
        peak = float(np.abs(sound).max())
        is_dead = peak <= _DEAD
        self._habit.update(is_dead=is_dead, now_ns=now_ns)
        level_db = 20.0 * math.log10(float(np.sqrt(np.vdot(sound, sound) / sound.size)) / _FULL + 1e-7)
        is_low = not is_dead and self._quietest.update(level_db)
        self._timers.update("silent", self._habit.is_unusual(now_ns) if is_dead else is_low, now_ns)
        is_loud = peak >= _LOUD * _FULL
        if is_loud or "clipped" in self._timers:  # it ends in quiet, too
            self._clipped.append(is_loud and is_clipped(sound, peak))
            self._timers.update("clipped", sum(self._clipped) >= _CLIPPED_BLOCKS, now_ns)
        self._blocks += 1
        if self._blocks % _HUM_EVERY == 0:
            hums = not is_dead and level_db >= _HUM_DB and self._hum.dominates(sound)
            self._timers.update("humming", hums, now_ns)


class QuietestLevel:
    """The quietest level of a microphone that works. It is learned at once and forgotten slowly."""

    def __init__(self) -> None:
        self._db, self._blocks = math.inf, 0

    def update(self, level_db: float) -> bool:
        """Add the level of a block that is not dead; return True if it is far below what is known."""
        known = self._blocks >= _LEARN_BLOCKS
        if known and level_db < self._db - _BELOW_DB:
            return True
        self._db = min(self._db + _FORGET_DB, level_db)
        self._blocks += 1
        return False


class SilentPauses:
    """Learns how long a microphone gives no sound at all: some switch themselves off in silence."""

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._longest_ns = 0

    def update(self, *, is_dead: bool, now_ns: int) -> None:
        """Add a block."""
        if is_dead:
            self._since_ns = now_ns if self._since_ns is None else self._since_ns
            return
        if self._since_ns is not None and now_ns - self._since_ns <= _PAUSE_MAX_S * 1e9:
            self._longest_ns = max(self._longest_ns, now_ns - self._since_ns)
        self._since_ns = None

    def is_unusual(self, now_ns: int) -> bool:
        """Return True if it has been without sound for longer than twice what is usual."""
        return self._since_ns is not None and now_ns - self._since_ns >= 2 * self._longest_ns


_FLAT_PAIRS = 0.3
"""Least share of the samples at the top that have another one behind them."""


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
    """Finds the mains' frequency and its multiples in blocks of one size.

    `mains_hz` is that of the newest hum, 50 or 60.
    """

    def __init__(self, size: int, rate_hz: int) -> None:
        self.mains_hz = _MAINS_HZ[0]
        self._window = np.hanning(size).astype(np.float32)
        bins = np.fft.rfftfreq(size, 1.0 / rate_hz)
        self._counts = bins >= _HUM_LOW_HZ
        width = 2.0 * rate_hz / size  # main lobe of a Hann window
        self._lines = {
            mains: self._counts
            & np.any([abs(bins - mains * k) <= width for k in range(1, _HARMONICS + 1)], axis=0)
            for mains in _MAINS_HZ
        }

    def dominates(self, sound: Array) -> bool:
        """Return True if the lines of one frequency have most of the power of a block, float32 [n]."""
        spectrum = np.fft.rfft(sound * self._window)
        power = spectrum.real**2 + spectrum.imag**2
        whole = float(power[self._counts].sum())
        shares = {mains: float(power[lines].sum()) for mains, lines in self._lines.items()}
        best = max(shares, key=lambda mains: shares[mains])
        if whole <= 0.0 or shares[best] < _HUM_SHARE * whole:
            return False
        self.mains_hz = best
        return True
