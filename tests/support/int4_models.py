"""Models of one operation with INT8 activations, whose weights are INT4 or INT8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.support.tflite_builder import Op, T, write

SHAPES = {"CONV_2D": (6, 3, 3, 4), "DEPTHWISE_CONV_2D": (1, 3, 3, 4), "FULLY_CONNECTED": (6, 36)}
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4}


def packed(values: NDArray[np.int8]) -> bytes:
    """Store INT4 values, the first of two in the low half of a byte."""
    flat = np.append(values.reshape(-1), np.zeros(values.size % 2, np.int8))
    return ((flat[0::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8).tobytes()


def int4_model(operation: str, values: NDArray[np.int8], scales: NDArray[np.float32], dtype: str) -> bytes:
    """One operation with INT8 activations; its weights are stored as `dtype`."""
    shape = SHAPES[operation]
    channels = shape[-1] if operation == "DEPTHWISE_CONV_2D" else shape[0]
    is_matrix = operation == "FULLY_CONNECTED"
    data = packed(values) if dtype == "int4" else values
    dimension = 3 if operation == "DEPTHWISE_CONV_2D" else 0
    tensors = [
        T("x", (1, 36) if is_matrix else (1, 5, 5, 4), "int8", scale=(0.05,), zero_point=(3,)),
        T("w", shape, dtype, data, tuple(scales), (0,) * channels, dimension),
        T("b", (channels,), "int32", np.arange(channels, dtype=np.int32), tuple(scales * 0.05), (0,) * channels),
        T("y", (1, channels) if is_matrix else (1, 5, 5, channels), "int8", scale=(0.5,)),
    ]
    return write(tensors, [Op(operation, (0, 1, 2), (3,), VERSIONS[operation])], (0,), (3,))
