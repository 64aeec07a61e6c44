"""The voice gate: is there anything to hear, and how hard is it? Samples in, a `Sound` out.

Level and spectrum against a floor that follows the noise: per band it is the mean of what is heard while nothing
stands out, and rises only slowly while something does, so that a fan is learned and a word is not. The idea is
that of noise tracking for speech enhancement: Cohen, IEEE Trans. Speech and Audio Processing 11 (2003).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from msgspec import Struct

from agent.compute.gate.difficulty import Difficulty
from agent.config import GateConfig
from agent.messages import Array, Samples

VOICE_HZ = 3800.0
"""Above this there is little of a voice."""
_BLOCK_S = 0.096
_LOW_HZ, _BANDS = 100.0, 8
_RISE_DB_S, _FOLLOW = 2.0, 0.14
"""While something is heard the floor rises by so many dB a second; else it goes this share of the way a block."""
_UNKNOWN_S = 1.0
"""Open so long at first: what is heard then may be the noise, or a word."""
_SMOOTH = 0.85
"""Share of the newest block in a band's power: single blocks of noise jump by 10 dB."""
_QUIETEST_DB = -75.0
"""Below this, of full scale in a band, is silence on any microphone."""
_LOUD_DB, _FAINT_DB = 14.0, 5.0
"""Bands must rise so far above their floors: at sensitivity 0 and at 1."""


class Sound(Struct, frozen=True, gc=False):
    """What the gate made of some samples.

    Attributes:
        open: listen.
        began: it has just opened: what came before should be heard, too.
        heard: the newest block stands out, it is not only held open.
        complexity: 0..1, how hard it is to understand; 1 where nothing is known.
    """

    open: bool
    began: bool
    heard: bool
    complexity: float


_ALWAYS = Sound(True, False, True, 1.0)


class VoiceGate:
    """Decides for one stream what is worth listening to. For one thread."""

    def __init__(
        self, config: GateConfig, rate_hz: int, high_hz: float = VOICE_HZ, *, judges: bool = True
    ) -> None:
        """Prepare.

        Args:
            config: of the stream.
            rate_hz: of the samples.
            high_hz: nothing above opens it.
            judges: whether anybody asks how hard it is to understand.
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
        self._before: Array | None = None
        self._open_left = self._since = 0
        self._difficulty = Difficulty(rate_hz) if judges else None
        self._last = Sound(False, False, False, 1.0)

    def look(self, samples: Samples) -> Sound:
        """Look at the next samples.

        Args:
            samples: int16 [n], following those before.
        """
        if not self._config.voice:
            return _ALWAYS
        samples = np.concatenate((self._rest, samples)) if self._rest.size else samples
        was_open, began = self._last.open, False
        for at in range(0, samples.size - self._size + 1, self._size):
            self._block(samples[at : at + self._size])
            began = began or (self._last.open and not was_open)
        self._rest = samples[samples.size - samples.size % self._size :].copy()
        last = self._last
        # Open for any block is open for all of them: a word that begins in the middle is not cut.
        return Sound(last.open or began, began, last.heard, last.complexity)

    def reset(self) -> None:
        """Sound was lost: what comes next does not follow what came before."""
        self._rest = self._rest[:0]
        self._before = None

    def _block(self, samples: Samples) -> None:
        spectrum = np.fft.rfft(samples * self._window)
        power = spectrum.real**2 + spectrum.imag**2
        now = self._bands @ power
        self._power = now if self._power is None else self._power + _SMOOTH * (now - self._power)
        bands: Array = np.maximum(10.0 * np.log10(self._power + 1e-12), _QUIETEST_DB)
        if self._floor is None:
            # Whether that is noise or a word is not known yet.
            self._floor, self._open_left = bands, max(self._hold, self._unknown)
        floor = self._floor
        above = bands - floor
        # The loudest half: speech never fills all bands, and a hum fills one.
        above_db = sum(sorted(above.tolist())[_BANDS // 2 :]) / (_BANDS - _BANDS // 2)
        heard = above_db >= self._needed_db
        step = _FOLLOW * above
        self._floor = floor + (np.minimum(step, self._rise_db) if heard else step)
        flux = 0.0 if self._before is None else float(np.add.reduce(np.abs(bands - self._before))) / _BANDS
        self._before = bands
        self._since = 0 if self._open_left else self._since + 1
        if heard:
            self._open_left = self._hold
        elif self._since >= self._idle:
            self._open_left, self._since = 1, 0
        else:
            self._open_left = max(0, self._open_left - 1)
        complexity = self._last.complexity
        if self._difficulty is not None and heard:
            complexity = self._difficulty.of(samples, above_db, flux, power)
        elif self._difficulty is not None and not self._open_left:
            self._difficulty.pause()
        self._last = Sound(self._open_left > 0, False, heard, complexity)


def _band_matrix(size: int, rate_hz: int, high_hz: float) -> Array:
    """Means over bands of equal ratio, float32 [bands, size // 2 + 1]."""
    high_hz = min(high_hz, 0.48 * rate_hz)
    edges = np.geomspace(_LOW_HZ, high_hz, _BANDS + 1) * size / rate_hz
    bins = np.arange(size // 2 + 1)
    rows = [
        (bins >= np.floor(low)) & (bins < max(np.ceil(high), np.floor(low) + 1)) for low, high in pairwise(edges)
    ]
    matrix = np.array(rows, np.float32)
    normed: Array = matrix / matrix.sum(axis=1, keepdims=True)
    return normed
