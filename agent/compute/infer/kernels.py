"""Which operation of a graph a kernel of XNNPACK belongs to: told by kind and place, for it bears no number.

XNNPACK keeps the operations' order, but fuses some, leaves some out, and makes several kernels of others.
Names are those of `xnn_operator_type_to_string` in google/XNNPACK, src/operator-utils.c.
"""

from __future__ import annotations

from collections.abc import Sequence

_LARGEST = 2_000_000
"""Kernels times operations beyond which the search would take seconds; then nothing is told."""
_WEIGHTED, _ADVANCE, _SHARED = 10, 3, 1
"""What a pair counts: convolutions are anchors, and a further kernel of the same operation is second choice."""

_KINDS: dict[str, tuple[str, ...]] = {
    "Convolution": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "Fully Connected": ("CONV_2D", "FULLY_CONNECTED"),
    "Deconvolution": ("TRANSPOSE_CONV",),
    "Batch Matrix Multiply": ("BATCH_MATMUL",),
    "Max Pooling": ("MAX_POOL_2D",),
    "Average Pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "Global Average Pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "Mean": ("MEAN",),
    "Sum": ("SUM", "MEAN"),
    "Add": ("ADD",),
    "Subtract": ("SUB",),
    "Multiply": ("MUL",),
    "Divide": ("DIV",),
    "Maximum": ("MAXIMUM",),
    "Minimum": ("MINIMUM",),
    "Squared Difference": ("SQUARED_DIFFERENCE",),
    "LeakyReLU": ("LEAKY_RELU",),
    "Leaky ReLU": ("LEAKY_RELU",),
    "PReLU": ("PRELU",),
    "Sigmoid": ("LOGISTIC",),
    "Tanh": ("TANH",),
    "HardSwish": ("HARD_SWISH",),
    "ELU": ("ELU",),
    "GELU": ("GELU",),
    "Softmax": ("SOFTMAX",),
    "Static Reshape": ("RESHAPE", "EXPAND_DIMS", "SQUEEZE"),
    "Constant Pad": ("PAD", "PADV2"),
    "Transpose": ("TRANSPOSE",),
    "Resize Bilinear": ("RESIZE_BILINEAR",),
    "Depth To Space": ("DEPTH_TO_SPACE",),
    "Space To Depth": ("SPACE_TO_DEPTH",),
    "Copy": ("CONCATENATION", "RESHAPE", "EXPAND_DIMS", "SQUEEZE", "SPLIT", "PACK"),
    "Slice": ("SLICE", "STRIDED_SLICE", "SPLIT"),
    "Convert": ("QUANTIZE", "DEQUANTIZE"),
    "Clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "ADD", "SUB", "MUL", "DIV", "CONCATENATION"),
}
"""How a kernel's name begins → operations that it may belong to."""

_MULTIPLYING = {"Convolution", "Fully Connected", "Deconvolution", "Batch Matrix Multiply"}
_SEVERAL = {"Copy", "Slice", "Clamp"}
"""Kernels of which an operation may have more than one, or one behind its own."""


def paired(kernels: Sequence[str], operations: Sequence[str]) -> list[int]:
    """For each kernel the index of its operation, rising; -1: it cannot be told.

    The pairing is the one of greatest worth that crosses nowhere, found as the longest common subsequence is.

    Args:
        kernels: names, in the order in which they run.
        operations: names of those that the delegate has taken, in the graph's order.
    """
    found = [-1] * len(kernels)
    if not kernels or not operations or len(kernels) * len(operations) > _LARGEST:
        return found
    kinds = [_kind(name) for name in kernels]
    best = _table(kinds, operations)
    kernel, operation = len(kinds), len(operations)
    while kernel and operation:
        here = best[kernel][operation]
        if here == best[kernel][operation - 1]:
            operation -= 1
        elif here == best[kernel - 1][operation]:
            kernel -= 1
        else:
            kernel -= 1
            found[kernel] = operation - 1
            if here == best[kernel][operation - 1] + _worth(kinds[kernel], operations[operation - 1]):
                operation -= 1
    return found


def _table(kinds: Sequence[str], operations: Sequence[str]) -> list[list[int]]:
    """Worth of the best pairing of the first so many kernels and the first so many operations."""
    best = [[0] * (len(operations) + 1)]
    for kind in kinds:
        before, row = best[-1], [0]
        for place, name in enumerate(operations):
            one = max(before[place + 1], row[place])
            if name in _KINDS.get(kind, ()):
                shared = before[place + 1] + _SHARED if kind in _SEVERAL else 0
                one = max(one, before[place] + _worth(kind, name), shared)
            row.append(one)
        best.append(row)
    return best


def _worth(kind: str, operation: str) -> int:
    if operation not in _KINDS.get(kind, ()):
        return 0
    return _WEIGHTED if kind in _MULTIPLYING else _ADVANCE


def _kind(name: str) -> str:
    """A kernel's kind: its name up to the bracket with layout and types."""
    return name.partition(" (")[0]
