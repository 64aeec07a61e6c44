"""Raw: the output tensors as they are, for consumers that decode them themselves, and for embeddings.

Each output is a detection of the whole picture, whose label is the tensor's name and whose `values` are its
numbers in the order of the tensor, dequantised; its score is 1. JSON has no number for what is not finite: NaN
becomes 0, and infinity the largest float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.compute.decode.decoder import DecoderContext, DecoderOptions, ShapeMismatchError
from agent.compute.manifest import HIDDEN
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Array, Detection

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


OPTIONS = RawOutputOptions


def build(context: DecoderContext) -> RawOutputs:
    """Build a decoder for any outputs of up to `NUMBERS_MAX` numbers together."""
    options = context.options(RawOutputOptions)
    specs = {place: spec for place, spec in enumerate(context.outputs) if spec.name != HIDDEN}
    count = sum(math.prod(spec.shape) for spec in specs.values())
    if (
        not specs
        or not 1 <= count <= NUMBERS_MAX
        or min(min(spec.shape, default=1) for spec in specs.values()) < 1
    ):
        found = ", ".join(map(str, context.outputs)) or "no output"
        raise ShapeMismatchError(f"expected outputs of 1 to {NUMBERS_MAX} numbers together, found {found}")
    if context.config.labels:
        names = [spec.name for spec in specs.values()]
        if unknown := [label for label in context.config.labels if label not in names]:
            raise ModelError(f"no label {unknown[0]!r}; the outputs are {', '.join(map(repr, names))}")
    wanted = context.config.labels
    return RawOutputs(
        {place: spec for place, spec in specs.items() if not wanted or spec.name in wanted}, options
    )


class RawOutputs:
    """Decoder that gives the outputs as they are. `scores_at` is the index of the first."""

    def __init__(self, specs: dict[int, TensorSpec], options: RawOutputOptions) -> None:
        self._specs, self._normalise = specs, options.normalise
        self.scores_at = next(iter(specs), 0)

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
