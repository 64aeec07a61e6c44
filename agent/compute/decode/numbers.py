"""Numbers instead of detections: measurements, and the output tensors as they are. Their score is 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import DecoderContext, DecoderOptions, ShapeMismatchError
from agent.compute.manifest import HIDDEN
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Array, Detection

_MEASUREMENTS_MAX = 64
"""Most measurements of a model."""
_Factor = Annotated[float, Meta(ge=-1e12, le=1e12)]


class RegressionOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `regression`.

    Attributes:
        scale, offset: the measurement is `scale * output + offset`.
        unit: of the measurements, for people and Home Assistant, such as `°C`.
        step: least change that is published at `value/<label>`.
    """

    scale: _Factor = 1.0
    offset: _Factor = 0.0
    unit: Annotated[str, Meta(max_length=16)] = ""
    step: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0


class Regression:
    """Decoder of measurements, one number for each label, such as the reading of a gauge or a filling level.

    Each is `scale * output + offset`, and a detection of the whole picture that has it in `values`.
    """

    Options = RegressionOptions

    def __init__(self, context: DecoderContext) -> None:
        options = context.options(RegressionOptions)
        seen = [place for place, spec in enumerate(context.outputs) if spec.name != HIDDEN]
        sizes = [math.prod(context.outputs[place].shape) for place in seen]
        labels = context.output.labels
        if len(seen) != 1 or not 1 <= sizes[0] <= _MEASUREMENTS_MAX or len(labels) not in (0, sizes[0]):
            count = len(labels) or f"1 to {_MEASUREMENTS_MAX}"
            found = ", ".join(map(str, context.outputs))
            raise ShapeMismatchError(f"expected one output with a number for each label, {count}; found {found}")
        if len(set(labels)) < len(labels):
            raise ModelError("decoder 'regression': two numbers have the same label")
        if not options.unit.isprintable():
            raise ModelError("decoder 'regression': options: `unit` has characters that cannot be printed")
        self.scores_at = seen[0]
        self._spec = context.outputs[self.scores_at]
        self._scale, self._offset = options.scale, options.offset
        names = ("value",) if sizes[0] == 1 else tuple(f"value{number}" for number in range(sizes[0]))
        known = context.labels(names)
        self._labels = [known.wanted(number) for number in range(len(known))]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        real = np.asarray(self._spec.real(outputs[self.scores_at]), np.float64).reshape(-1)
        values = (self._scale * real + self._offset).tolist()
        return [
            Detection(label, 1.0, values=(value,))
            for label, value in zip(self._labels, values, strict=True)
            if label is not None and math.isfinite(value)
        ]


NUMBERS_MAX = 4096
"""Most numbers of all outputs together: each is some 10 bytes of a message."""
_LEAST = 1e-12
_LARGEST = float(np.finfo(np.float32).max)


class RawOutputOptions(DecoderOptions, frozen=True, forbid_unknown_fields=True):
    """Options of `raw`.

    Attributes:
        normalise: divide each output by its Euclidean length, as embeddings are compared.
    """

    normalise: bool = False


class RawOutputs:
    """Decoder that gives the outputs as they are, for consumers that decode them, and for embeddings.

    Each output is a detection of the whole picture, whose label is the tensor's name and whose `values` are its
    numbers in the order of the tensor, dequantised. JSON has no number for what is not finite: NaN becomes 0, and
    infinity the largest float32.
    """

    Options = RawOutputOptions

    def __init__(self, context: DecoderContext) -> None:
        specs = {place: spec for place, spec in enumerate(context.outputs) if spec.name != HIDDEN}
        sizes = [math.prod(spec.shape) for spec in specs.values()]
        if min(sizes, default=0) < 1 or sum(sizes) > NUMBERS_MAX:
            found = ", ".join(map(str, context.outputs)) or "no output"
            raise ShapeMismatchError(f"expected outputs of 1 to {NUMBERS_MAX} numbers together, found {found}")
        names, wanted = [spec.name for spec in specs.values()], context.config.labels
        if unknown := [label for label in wanted if label not in names]:
            raise ModelError(f"no label {unknown[0]!r}; the outputs are {', '.join(map(repr, names))}")
        self._specs = {place: spec for place, spec in specs.items() if not wanted or spec.name in wanted}
        self._normalise = context.options(RawOutputOptions).normalise
        self.scores_at = next(iter(self._specs))

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        return [
            Detection(spec.name or f"output{place}", 1.0, values=self._values(spec, outputs[place]))
            for place, spec in self._specs.items()
        ]

    def _values(self, spec: TensorSpec, output: Array) -> tuple[float, ...]:
        found = np.asarray(spec.real(output) if spec.quantised else output, np.float64).reshape(-1)
        real = np.nan_to_num(found, posinf=_LARGEST, neginf=-_LARGEST)
        if self._normalise:
            real = real / max(float(np.linalg.norm(real)), _LEAST)
        return tuple(real.tolist())
