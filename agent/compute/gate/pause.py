"""Finds the pause after a word in the level of the sound, so that the next word is heard by itself."""

from __future__ import annotations

import numpy as np

from agent.compute.gate.preroll import PreRoll
from agent.messages import Samples

_STEP_S, _SMOOTH = 0.01, 5
"""The level is the mean power of 50 ms, taken every 10 ms."""
_DEEP = 10.0**1.2
"""A pause is 12 dB below the loudest sound before it: a held note sinks less, also with a tremolo."""
_EARLY_S = 0.25
"""A word is told at most so long after it has ended, s (p99 of the bundled model: 0.26)."""
_MEMORY_S = 1.2
"""As far back as a pause is looked for, s: a word and the pause after it."""


class Pauses:
    """The newest sound of one stream, and where a word that was told has ended in it. For one thread."""

    def __init__(self, rate_hz: int) -> None:
        """Start without sound.

        Args:
            rate_hz: samples a second.
        """
        self._rate_hz, self._step = rate_hz, round(_STEP_S * rate_hz)
        self._sound = PreRoll(round(_MEMORY_S * rate_hz))

    def add(self, samples: Samples) -> None:
        """Add sound, int16 [n], that follows the sound before."""
        self._sound.add(samples)

    def find(self, since_s: float, late_s: float = 0.0) -> float | None:
        """Find the pause after a word.

        Args:
            since_s: from the telling of the word to the end of the sound to look at, s.
            late_s: sound that was added after this end, s.

        Returns:
            how long before this end the pause was, s; None: there is no pause yet.
        """
        powers = self._powers(late_s)
        first = max(0, powers.size - round((since_s + _EARLY_S) / _STEP_S))
        if first >= powers.size:
            return None
        quiet = first + int(powers[first:].argmin())
        if powers[: quiet + 1].max() < _DEEP * powers[quiet]:
            return None
        return float(powers.size - 1 - quiet) * _STEP_S

    def reset(self) -> None:
        """Forget the sound: the next does not follow it."""
        self._sound.clear()

    def _powers(self, late_s: float) -> np.ndarray:
        """Smoothed power of each step up to `late_s` before the end of the sound, float [n]."""
        sound = self._sound.held()
        end = sound.size - round(late_s * self._rate_hz)
        steps = max(0, end) // self._step
        blocks = sound[end - steps * self._step : end].reshape(steps, self._step)
        # One unit of the last bit is silence: without it, zeros after a click would be a pause.
        powers = blocks.var(axis=1, dtype=np.float32) + 1.0
        return np.convolve(powers, np.full(_SMOOTH, 1.0 / _SMOOTH), "valid") if steps >= _SMOOTH else powers[:0]
