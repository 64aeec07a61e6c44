"""The voice gate: decides which samples are worth an inference, and how complex the speech is.

It compares the level per band with a floor that follows the noise: the mean while nothing stands out, which rises
only slowly while something does, so that a fan is learned and a word is not. The idea is that of noise tracking
for speech enhancement: Cohen, IEEE Trans. Speech and Audio Processing 11 (2003).

Speech is the more complex the less it is above the noise.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from msgspec import Struct

from agent.config import GateConfig
from agent.types import Array, Samples

_CLEAR_DB = 20.0
"""Speech so far above its floor is as easy as in silence, dB."""
_NEWEST = 0.3
"""Weight of the newest audible block in the complexity, which is smoothed over a word."""
VOICE_HZ = 3800.0
"""Voices have little energy above this frequency."""
_BLOCK_S = 0.096
_LOW_HZ, _BANDS = 100.0, 8
_RISE_DB_S, _FOLLOW = 2.0, 0.14
"""Rise of the floor while something is audible, dB a second; else its weight of the newest block."""
_UNKNOWN_S = 1.0
"""Open for so long at first, s, because the first sound may be noise or a word."""
_SMOOTH = 0.85
"""Weight of the newest block in a band's power: single blocks of noise jump by 10 dB."""
_QUIETEST_DB = -75.0
"""Level of a band below which any microphone is silent, dB of full scale."""
_LOUD_DB, _FAINT_DB = 14.0, 5.0
"""Least level of bands above their floors at sensitivity 0 and 1, dB."""


class VoiceDecision(Struct, frozen=True, gc=False):
    """Decision on some samples.

    Attributes:
        open: whether to infer.
        began: whether it has just opened, so that earlier sound is needed too.
        heard: whether the newest block is audible; else the gate is only held open.
        complexity: 0..1; 0.5 until it is known.
    """

    open: bool
    began: bool
    heard: bool
    complexity: float


_ALWAYS = VoiceDecision(True, False, True, 1.0)


class VoiceGate:
    """Decides for one stream which sound is worth an inference. For one thread."""

    def __init__(self, config: GateConfig, rate_hz: int, high_hz: float = VOICE_HZ) -> None:
        """Begin with an unknown noise level.

        Args:
            config: `[streams.NAME.gate]`.
            rate_hz: of the samples.
            high_hz: highest frequency that can open the gate.
        """
        self._config = config
        self._size = round(_BLOCK_S * rate_hz)
        self._window = np.hanning(self._size).astype(np.float32) / 32768.0
        self._bands = _band_matrix(self._size, rate_hz, high_hz)
        self._rise_db = _RISE_DB_S * self._size / rate_hz
        self._needed_db = _LOUD_DB + (_FAINT_DB - _LOUD_DB) * config.sensitivity
        self._hold = max(1, round(config.hold_s * rate_hz / self._size))
        self._unknown = round(_UNKNOWN_S * rate_hz / self._size)
        self._idle = max(1, round(config.max_idle_s * rate_hz / self._size))
        self._rest = np.zeros(0, np.int16)
        self._floor: Array | None = None
        self._power: Array | None = None
        self._open_blocks = self._closed_blocks = 0
        self._last = VoiceDecision(False, False, False, 0.5)

    def evaluate(self, samples: Samples) -> VoiceDecision:
        """Decide on the next samples, int16 [n], which continue the previous ones."""
        if not self._config.voice:
            return _ALWAYS
        samples = np.concatenate((self._rest, samples)) if self._rest.size else samples
        was_open, began = self._last.open, False
        for at in range(0, samples.size - self._size + 1, self._size):
            self._block(samples[at : at + self._size])
            began = began or (self._last.open and not was_open)
        self._rest = samples[samples.size - samples.size % self._size :].copy()
        last = self._last
        # Open for all blocks if it is for any, so that a word that begins in the middle is not cut.
        return VoiceDecision(last.open or began, began, last.heard, last.complexity)

    def reset(self) -> None:
        """Record a gap: the next samples do not continue the previous ones."""
        self._rest = self._rest[:0]

    def _block(self, samples: Samples) -> None:
        spectrum = np.fft.rfft(samples * self._window)
        power = spectrum.real**2 + spectrum.imag**2
        now = self._bands @ power
        self._power = now if self._power is None else self._power + _SMOOTH * (now - self._power)
        bands: Array = np.maximum(10.0 * np.log10(self._power + 1e-12), _QUIETEST_DB)
        above_db = self._follow_floor(bands)
        heard = above_db >= self._needed_db
        self._count_blocks(heard)
        complexity = self._last.complexity
        if heard:
            complexity += _NEWEST * (1.0 - min(1.0, max(0.0, above_db / _CLEAR_DB)) - complexity)
        self._last = VoiceDecision(self._open_blocks > 0, False, heard, complexity)

    def _follow_floor(self, bands: Array) -> float:
        """Move the floor towards the bands; return how far the bands are above it, dB."""
        if self._floor is None:
            # It may be noise or a word.
            self._floor, self._open_blocks = bands, max(self._hold, self._unknown)
        floor = self._floor
        above = bands - floor
        # The loudest half: speech never fills all bands, and a hum fills one.
        above_db: float = sum(sorted(above.tolist())[_BANDS // 2 :]) / (_BANDS - _BANDS // 2)
        step = _FOLLOW * above
        self._floor = floor + (np.minimum(step, self._rise_db) if above_db >= self._needed_db else step)
        return above_db

    def _count_blocks(self, heard: bool) -> None:
        """Count the blocks for which the gate stays open, and those for which it was closed."""
        self._closed_blocks = 0 if self._open_blocks else self._closed_blocks + 1
        if heard:
            self._open_blocks = self._hold
        elif self._closed_blocks >= self._idle:
            self._open_blocks, self._closed_blocks = 1, 0
        else:
            self._open_blocks = max(0, self._open_blocks - 1)


def _band_matrix(size: int, rate_hz: int, high_hz: float) -> Array:
    """Return the matrix that averages bands of equal ratio, float32 [bands, size // 2 + 1]."""
    high_hz = min(high_hz, 0.48 * rate_hz)
    edges = np.geomspace(_LOW_HZ, high_hz, _BANDS + 1) * size / rate_hz
    bins = np.arange(size // 2 + 1)
    rows = [
        (bins >= np.floor(low)) & (bins < max(np.ceil(high), np.floor(low) + 1)) for low, high in pairwise(edges)
    ]
    matrix = np.array(rows, np.float32)
    normed: Array = matrix / matrix.sum(axis=1, keepdims=True)
    return normed


class PreRoll:
    """Buffer of the newest `size` samples or rows while the gate is closed: a word begins before the gate opens.

    `forgot` is True once older ones were dropped.
    """

    def __init__(self, size: int) -> None:
        self._size, self.forgot = size, False
        self._parts: list[Array] = []
        self._held = 0

    def add(self, part: Array) -> None:
        """Add samples or rows, and drop those beyond the capacity."""
        self._parts.append(part.copy())
        self._held += len(part)
        while self._held - len(self._parts[0]) >= self._size:
            self._held -= len(self._parts.pop(0))
            self.forgot = True

    def take(self, newest: Array) -> Array:
        """Return the contents followed by `newest`, and empty the buffer."""
        parts = [*self._parts, newest]
        self.clear()
        return np.concatenate(parts)[-(self._size + len(newest)) :]

    def held(self) -> Array:
        """Return the contents. At least one part must have been added."""
        return np.concatenate(self._parts)

    def clear(self) -> None:
        """Empty the buffer."""
        self._parts, self._held, self.forgot = [], 0, False


_PAUSE_STEP_S, _PAUSE_SMOOTH = 0.01, 5
"""The level is the mean power of 50 ms, taken every 10 ms."""
_DEEP = 10.0**1.2
"""A pause is 12 dB (power ratio) below the loudest sound before it: a held note with tremolo falls less."""
_EARLY_S = 0.25
"""Longest time from the end of a word to its event, s (p99 of the bundled model: 0.26)."""
_PAUSE_MEMORY_S = 1.2
"""Length of sound that is searched for a pause, s: a word and the pause after it."""


class Pauses:
    """Finds the pause after a word in the level of a stream's newest sound. For one thread."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz, self._step = rate_hz, round(_PAUSE_STEP_S * rate_hz)
        self._sound = PreRoll(round(_PAUSE_MEMORY_S * rate_hz))

    def add(self, samples: Samples) -> None:
        """Add samples, int16 [n], continuing the previous ones."""
        self._sound.add(samples)

    def find(self, since_s: float, late_s: float = 0.0) -> float | None:
        """Return the time from the pause after a word to the end of the searched sound, s; None: there is none.

        The search covers `since_s` from the word's event on, and ends `late_s` before the newest sound.
        """
        powers = self._powers(late_s)
        first = max(0, powers.size - round((since_s + _EARLY_S) / _PAUSE_STEP_S))
        if first >= powers.size:
            return None
        quiet = first + int(powers[first:].argmin())
        if powers[: quiet + 1].max() < _DEEP * powers[quiet]:
            return None
        return float(powers.size - 1 - quiet) * _PAUSE_STEP_S

    def reset(self) -> None:
        """Drop the sound, because the next does not continue it."""
        self._sound.clear()

    def _powers(self, late_s: float) -> np.ndarray:
        """Return the smoothed power of each step up to `late_s` before the end of the sound, float [n]."""
        sound = self._sound.held()
        end = sound.size - round(late_s * self._rate_hz)
        steps = max(0, end) // self._step
        blocks = sound[end - steps * self._step : end].reshape(steps, self._step)
        # Count one unit of the last bit as silence, else zeros after a click would be a pause.
        powers = blocks.var(axis=1, dtype=np.float32) + 1.0
        return (
            np.convolve(powers, np.full(_PAUSE_SMOOTH, 1.0 / _PAUSE_SMOOTH), "valid")
            if steps >= _PAUSE_SMOOTH
            else powers[:0]
        )
