"""Shape, dtype and quantisation of a model's tensors."""

from __future__ import annotations

import numpy as np
from msgspec import Struct


class TensorSpec(Struct, frozen=True):
    """Shape, type and quantisation of one input or output.

    `real = scale * (stored - zero_point)`; scale 0 means not quantised (or per channel, which inputs and
    outputs never are). Source: https://ai.google.dev/edge/litert/models/quantization_spec

    Attributes:
        name: as in the signature, or the tensor's own name without a signature.
        shape: sizes, batch first.
        dtype: numpy name such as `uint8`, `int8`, `float32`.
        scale: quantisation scale, 0 when not quantised.
        zero_point: quantisation zero point.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def quantised(self) -> bool:
        """True if stored values are quantised."""
        return self.scale != 0.0

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Return a dequantised float32 copy; floats are returned unchanged."""
        if not self.quantised:
            return stored
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    def stored_threshold(self, real: float) -> float:
        """Return the stored value of `real`, so that a comparison needs no dequantising."""
        return real / self.scale + self.zero_point if self.quantised else real

    def __str__(self) -> str:
        quant = f" (scale {self.scale:.4g}, zero point {self.zero_point})" if self.quantised else ""
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]{quant}"
