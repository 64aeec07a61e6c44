"""How hard is a sound to understand? Little above the noise, flat like noise, changing fast, or spoken fast.

Speech rate: syllables are what lies between dips of the level, as in de Jong and Wempe, Praat script to detect
syllable nuclei and measure speech rate automatically, Behavior Research Methods 41 (2009).
"""

from __future__ import annotations

import numpy as np

from agent.messages import Array, Samples

_CLEAR_DB = 20.0
"""Above its floor by so much, speech is as easy as in silence."""
_FLUX_DB = 12.0
"""Change between two blocks that is as fast as can be."""
_CALM_HZ, _HASTY_HZ = 3.0, 8.0
"""Syllables a second that make nothing harder, and that are as fast as can be."""
_NOISE, _FLAT, _CHANGE, _HASTE = 0.55, 0.15, 0.15, 0.15
_NEWEST = 0.3

_STEP_S = 0.016
_DIP_DB = 3.0
_MEMORY_S = 1.0


class Difficulty:
    """One stream's, over time. For one thread."""

    def __init__(self, rate_hz: int) -> None:
        self._rate = SpeechRate(rate_hz)
        self._value = 0.5

    def of(self, samples: Samples, above_db: float, flux_db: float, power: Array) -> float:
        """Of the newest block in which something is heard, smoothed over a word: 0..1.

        Args:
            samples: int16 [n], following those before.
            above_db: level above the noise, dB.
            flux_db: mean change of the bands since the block before, dB.
            power: spectrum of the block.
        """
        noise = 1.0 - min(1.0, max(0.0, above_db / _CLEAR_DB))
        share = power / (power.sum() + 1e-20)
        entropy = float(-(share * np.log(share + 1e-20)).sum() / np.log(share.size))
        change = min(1.0, flux_db / _FLUX_DB)
        haste = min(1.0, max(0.0, (self._rate.of(samples) - _CALM_HZ) / (_HASTY_HZ - _CALM_HZ)))
        now = min(1.0, _NOISE * noise + _FLAT * entropy + _CHANGE * change + _HASTE * haste)
        self._value += _NEWEST * (now - self._value)
        return self._value

    def pause(self) -> None:
        """Nothing is heard: what comes next is another utterance."""
        self._rate.pause()


class SpeechRate:
    """Syllables a second over the last second or so. For one thread."""

    def __init__(self, rate_hz: int) -> None:
        self._size = max(1, round(_STEP_S * rate_hz))
        self._kept = float(np.exp(-self._size / rate_hz / _MEMORY_S))
        self._hz, self._in_syllable, self._extreme = 0.0, False, float("inf")

    def of(self, samples: Samples) -> float:
        """After these samples, int16 [n], too; what is left over of whole steps does not count."""
        steps = samples[: len(samples) // self._size * self._size].reshape(-1, self._size).astype(np.float32)
        levels = 10.0 * np.log10(np.einsum("ij,ij->i", steps, steps) + 1.0)
        for level in levels.tolist():
            self._hz *= self._kept
            if not self._in_syllable:
                self._extreme = min(self._extreme, level)
                self._in_syllable = level > self._extreme + _DIP_DB
                self._extreme = level if self._in_syllable else self._extreme
                continue
            self._extreme = max(self._extreme, level)
            if level < self._extreme - _DIP_DB:
                self._in_syllable, self._extreme = False, level
                self._hz += 1.0 / _MEMORY_S
        return self._hz

    def pause(self) -> None:
        """Forget it."""
        self._hz, self._in_syllable, self._extreme = 0.0, False, float("inf")
