"""Mel-frequency cepstral coefficients: the cosine transform of a log-mel row.

Source: Davis and Mermelstein, IEEE Trans. ASSP 28 (1980); the transform is the orthonormal DCT-II.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from msgspec.structs import asdict

from agent.compute.infer.audio.frontend import Rows, options
from agent.compute.infer.audio.logmel import LogMel, LogMelOptions
from agent.manifest import AudioManifest
from agent.messages import Samples


class MfccOptions(LogMelOptions, frozen=True, forbid_unknown_fields=True):
    """Those of `logmel`, and:

    Attributes:
        coefficients: of each row, the first ones; at most as many as mels.
    """

    coefficients: Annotated[int, Meta(ge=1, le=512)] = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients > self.mels:
            raise ValueError(f"{self.coefficients} coefficients of {self.mels} mels")


OPTIONS = MfccOptions


def build(audio: AudioManifest) -> Mfcc:
    """See `FRONTENDS`.

    Raises:
        ModelError: an option is wrong.
    """
    return Mfcc(options(audio, MfccOptions))


class Mfcc:
    """See `FrontEnd`."""

    remembers = False

    def __init__(self, chosen: MfccOptions) -> None:
        fields = asdict(chosen)
        self.columns = fields.pop("coefficients")
        self._logmel = LogMel(LogMelOptions(**fields))
        self.hop_s = self._logmel.hop_s
        n = np.arange(chosen.mels)
        cosine = np.cos(np.pi / chosen.mels * (n + 0.5)[:, None] * n[None, : self.columns])
        cosine *= np.sqrt(np.where(n[: self.columns] == 0, 1.0, 2.0) / chosen.mels)
        self._cosine = cosine.astype(np.float32)
        self.floor = float(self._logmel.floor * self._cosine[:, 0].sum())

    def __call__(self, samples: Samples) -> Rows:
        """See `FrontEnd`."""
        return np.asarray(self._logmel(samples) @ self._cosine, np.float32)

    def reset(self) -> None:
        """See `FrontEnd`."""
        self._logmel.reset()
