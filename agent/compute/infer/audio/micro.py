"""TensorFlow Lite Micro's front end, through which microWakeWord's models hear: 40 values each 10 ms.

Noise reduction, gain control and a logarithm in fixed point, by the library `pymicro-features`, extra
`[wakeword]`.
Source: https://github.com/tensorflow/tflite-micro, `experimental/microfrontend`
"""

from __future__ import annotations

import importlib

import numpy as np
from msgspec import Struct

from agent.compute.infer.audio.frontend import Rows, options
from agent.errors import ModelError
from agent.manifest import AudioManifest
from agent.messages import Samples

_RATE_HZ, _HOP = 16_000, 160


class MicroOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """There are none: its constants are those that the models were trained with."""


OPTIONS = MicroOptions


def build(audio: AudioManifest) -> Micro:
    """See `FRONTENDS`.

    Raises:
        ModelError: the library is missing, or another rate is asked for.
    """
    options(audio, MicroOptions)
    if audio.rate_hz != _RATE_HZ:
        raise ModelError(f"front end 'micro' takes {_RATE_HZ} Hz, the manifest says rate_hz = {audio.rate_hz}")
    return Micro()


class Micro:
    """See `FrontEnd`."""

    columns = 40
    hop_s = _HOP / _RATE_HZ
    floor = 0.0
    remembers = True

    def __init__(self) -> None:
        try:
            library = importlib.import_module("pymicro_features")
        except ImportError as error:
            raise ModelError(
                "front end 'micro' needs the library pymicro-features: pip install '.[wakeword]' in the clone"
            ) from error
        self._frontend = library.MicroFrontend()
        self._rest = b""

    def __call__(self, samples: Samples) -> Rows:
        """See `FrontEnd`."""
        sound, at, rows = self._rest + samples.tobytes(), 0, []
        while at + 2 * _HOP <= len(sound):
            # It takes what completes one window and no more, and says how much that was.
            output = self._frontend.process_samples(sound[at : at + 2 * _HOP])
            at += 2 * output.samples_read
            if output.features:
                rows.append(output.features)
        self._rest = sound[at:]
        return np.array(rows, np.float32).reshape(-1, self.columns)

    def reset(self) -> None:
        """See `FrontEnd`."""
        self._frontend.reset()
        self._rest = b""
