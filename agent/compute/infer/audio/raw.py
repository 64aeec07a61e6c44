"""No front end: the samples as reals in -1..1, for models such as YAMNet that begin with a waveform."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from agent.compute.infer.audio.frontend import Rows, options
from agent.manifest import AudioManifest
from agent.messages import Samples


class RawOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """There are none."""


OPTIONS = RawOptions


def build(audio: AudioManifest) -> Raw:
    """See `FRONTENDS`."""
    options(audio, RawOptions)
    return Raw(audio.rate_hz)


class Raw:
    """See `FrontEnd`: a row is a sample."""

    columns = 1
    floor = 0.0
    remembers = False

    def __init__(self, rate_hz: int) -> None:
        self.hop_s = 1.0 / rate_hz

    def __call__(self, samples: Samples) -> Rows:
        """See `FrontEnd`."""
        return (samples.astype(np.float32) / np.float32(32768.0)).reshape(-1, 1)

    def reset(self) -> None:
        """See `FrontEnd`."""
