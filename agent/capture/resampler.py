"""The resampler: a stream of sound at another rate, by soxr, which is imported where there is one to change."""

from __future__ import annotations

import importlib
from typing import Any, cast

import numpy as np

from agent.errors import SourceError
from agent.messages import Samples

_SCALE = 32768.0


class Resampler:
    """Continues from block to block, so that it does not matter how sound is cut into blocks."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        """Prepare.

        Args:
            from_hz: samples per second of what comes.
            to_hz: of what goes.

        Raises:
            SourceError: soxr is missing.
        """
        self._from_hz, self._to_hz = from_hz, to_hz
        self._came = self._went = 0
        self._soxr: Any = None if from_hz == to_hz else _soxr().ResampleStream(from_hz, to_hz, 1, "float32")

    @property
    def behind_s(self) -> float:
        """How much sound has come and not gone yet, s: a filter must look ahead."""
        return max(0.0, self._came / self._from_hz - self._went / self._to_hz)

    def change(self, samples: Samples) -> Samples:
        """The next sound, N int16, at the other rate; the first few times less than one would expect."""
        self._came += len(samples)
        changed = samples if self._soxr is None else self._changed(samples, last=False)
        self._went += len(changed)
        return changed

    def rest(self) -> Samples:
        """What is still held back, at the end."""
        none = np.empty(0, np.int16)
        rest = none if self._soxr is None else self._changed(none, last=True)
        self._went += len(rest)
        return rest

    def _changed(self, samples: Samples, *, last: bool) -> Samples:
        # As float: of int16 soxr makes int16 with dither, and silence would not stay silent.
        changed = self._soxr.resample_chunk(samples.astype(np.float32), last=last)
        return to_int16(changed, 1.0)


def to_int16(samples: Any, scale: float = _SCALE) -> Samples:
    """Samples of float32, ±1.0 unless scaled already, as int16: rounded, clipped, and 0 where it is no number."""
    scaled = np.nan_to_num(np.rint(samples * np.float32(scale)), nan=0.0)
    return cast(Samples, np.clip(scaled, -32768, 32767).astype(np.int16))


def _soxr() -> Any:
    try:
        return importlib.import_module("soxr")
    except ImportError as error:
        raise SourceError(f"expected soxr, to change a rate; it cannot be imported ({error})") from None
