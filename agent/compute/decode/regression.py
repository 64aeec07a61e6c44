"""Regression: measurements, one number for each label, such as the reading of a gauge or a filling level.

One output of as many numbers as there are labels. Each is `scale * output + offset`, and a detection of the whole
picture that has it in `values`; its score is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agent.compute.decode.decoder import DecoderContext, DecoderOptions, ShapeMismatchError
from agent.compute.manifest import HIDDEN
from agent.errors import ModelError
from agent.text import plural
from agent.types import Array, Detection

NUMBERS_MAX = 64
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


OPTIONS = RegressionOptions


def build(context: DecoderContext) -> Regression:
    """Build a decoder for one output of up to `NUMBERS_MAX` numbers, one for each label if there are labels."""
    options = context.options(RegressionOptions)
    seen = [place for place, spec in enumerate(context.outputs) if spec.name != HIDDEN]
    if len(seen) != 1:
        found = ", ".join(map(str, context.outputs))
        raise ShapeMismatchError(f"expected one output with a number for each label, found {found}")
    spec = context.outputs[seen[0]]
    count = math.prod(spec.shape)
    if not 1 <= count <= NUMBERS_MAX:
        raise ShapeMismatchError(f"expected 1 to {NUMBERS_MAX} numbers, found {spec}")
    labels = context.output.labels
    if labels and len(labels) != count:
        raise ShapeMismatchError(f"expected a number for each of {plural(len(labels), 'label')}, found {spec}")
    if len(set(labels)) < len(labels):
        raise ModelError("decoder 'regression': two numbers have the same label")
    if not options.unit.isprintable():
        raise ModelError("decoder 'regression': options: `unit` has characters that cannot be printed")
    return Regression(context, options, seen[0])


def names_of(count: int) -> tuple[str, ...]:
    """Return the names of so many measurements where the manifest has none."""
    return ("value",) if count == 1 else tuple(f"value{number}" for number in range(count))


class Regression:
    """Decoder of measurements. `scores_at` is the index of the output."""

    def __init__(self, context: DecoderContext, options: RegressionOptions, place: int) -> None:
        self._place = self.scores_at = place
        self._spec = context.outputs[place]
        self._scale, self._offset = options.scale, options.offset
        labels = context.labels(names_of(math.prod(self._spec.shape)))
        self._labels = [labels.wanted(number) for number in range(len(labels))]

    def __call__(self, outputs: Sequence[Array]) -> list[Detection]:
        real = np.asarray(self._spec.real(outputs[self._place]), np.float64).reshape(-1)
        values = (self._scale * real + self._offset).tolist()
        return [
            Detection(label, 1.0, values=(value,))
            for label, value in zip(self._labels, values, strict=True)
            if label is not None and math.isfinite(value)
        ]
