"""Contents of a `.tflite` file as structs, which `agent.compute.tflite.read` fills, and its multiply-adds.

Names of operations and dtypes: tensorflow/tensorflow, tensorflow/compiler/mlir/lite/schema/schema.fbs, and its
successor in google-ai-edge/LiteRT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from msgspec import Struct

from agent.errors import ModelError

CUSTOM = "CUSTOM"
POSTPROCESS = "TFLite_Detection_PostProcess"
_POSTPROCESS_SHAPES = ((1, -1, 4), (1, -1), (1, -1), (1,))
"""Shapes of its outputs: boxes, classes, scores, count. Files mostly leave them empty, because the number of
boxes is an option of the operation."""
_RECURRENT = """
BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN LSTM RNN SVDF UNIDIRECTIONAL_SEQUENCE_LSTM
UNIDIRECTIONAL_SEQUENCE_RNN
"""
RECURRENT = frozenset(_RECURRENT.split())
"""Operations that keep a state, and may lack any input."""
_MULTIPLY = RECURRENT | {
    *("BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
}
"""Operations with kernels for float activations and integer weights."""
_INTEGERS = frozenset({"int8", "uint8", "int4", "int2", "uint4"})
_ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("complex64", "float64", "int64", "uint64"), 8),
    "complex128": 16,
}


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

    @property
    def picture(self) -> tuple[int, int, int] | None:
        """Height, width and channels of [1,height,width,channels], or grey [1,side,side]; None: no picture."""
        batch, *sizes = self.shape or (0,)
        if len(sizes) == 2 and sizes[0] == sizes[1]:
            sizes.append(1)
        if batch != 1 or len(sizes) != 3 or sizes[2] not in (1, 3, 4) or min(sizes) < 1:
            return None
        return sizes[0], sizes[1], sizes[2]

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


class Quantisation(Struct, frozen=True):
    """Quantisation of a tensor.

    Attributes:
        kind: `tensor`: one scale; `channel`: one per slice of `dimension`; `block`: one per `block` values.
        scales, zero_points: number of each; equal in a valid file.
        scale, zero_point: the first.
        dimension: of the scales of `channel`.
        block: values per scale of `block`.
    """

    kind: Literal["none", "tensor", "channel", "block"] = "none"
    scales: int = 0
    zero_points: int = 0
    scale: float = 0.0
    zero_point: int = 0
    dimension: int = 0
    block: int = 0


class TensorInfo(Struct, frozen=True):
    """One tensor.

    Attributes:
        name: may be empty.
        shape: initial sizes; -1 if the file does not state one.
        dtype: numpy name, or `int4`, `string` …
        buffer: index of its bytes; 0 for none.
        size: bytes of its constant value; 0 if it is computed.
        quantisation: see `Quantisation`.
        signature: sizes, with -1 for those that may change at each inference; empty: as `shape` has them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: int
    size: int
    quantisation: Quantisation
    signature: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes; -1: may change at each inference, or the file does not state it."""
        if len(self.signature) != len(self.shape):
            return self.shape
        return tuple(-1 if -1 in pair else pair[0] for pair in zip(self.shape, self.signature, strict=True))

    @property
    def open(self) -> bool:
        """Return True if a size, such as the batch, may change at each inference."""
        return -1 in (*self.shape, *self.signature)


class Operation(Struct, frozen=True):
    """One operation.

    Attributes:
        name: of the builtin, such as `CONV_2D`, or `CUSTOM`.
        custom: code of a custom operation.
        version: of its kernel.
        inputs, outputs: tensor indices; -1 for an absent optional input.
    """

    name: str
    custom: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Subgraph(Struct, frozen=True):
    """One graph of a file: tensors, operations, and indices of the input and output tensors."""

    name: str
    tensors: tuple[TensorInfo, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]


class Signature(Struct, frozen=True):
    """A named entry of a subgraph; its inputs and outputs map names to tensor indices."""

    name: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class ModelFile(Struct, frozen=True):
    """Contents of a `.tflite` file.

    Attributes:
        size: bytes of the file.
        version: of the schema, 3 at present.
        description: written by the converter.
        subgraphs, signatures: see each.
        metadata: names of the metadata buffers.
        weights: bytes of constants by dtype; shared ones count once.
    """

    size: int
    version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    metadata: tuple[str, ...]
    weights: dict[str, int]

    def steps(self) -> Iterator[tuple[Subgraph, Operation]]:
        """Yield every operation with its subgraph."""
        for graph in self.subgraphs:
            for operation in graph.operations:
                yield graph, operation

    def ends(self, signature: str = "") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs as a backend reports them; a size of -1 is unknown.

        Without a signature they are those of the first graph, by the tensors' own names.
        """
        graph = self.graph(signature)
        if not signature:
            inputs = {graph.tensors[i].name: i for i in graph.inputs}
            outputs = {graph.tensors[i].name: i for i in graph.outputs}
            return _specs(graph, inputs), _specs(graph, outputs)
        known = next(known for known in self.signatures if known.name == signature)
        # Backends keep signatures in sorted maps.
        inputs, outputs = dict(sorted(known.inputs.items())), dict(sorted(known.outputs.items()))
        return _specs(graph, inputs), _specs(graph, outputs)

    def output_tensors(self, signature: str = "") -> tuple[int, ...]:
        """Return the tensor indices of the outputs, in the order of `ends`."""
        graph = self.graph(signature)
        if not signature:
            return tuple({graph.tensors[i].name: i for i in graph.outputs}.values())
        known = next(known for known in self.signatures if known.name == signature)
        return tuple(index for _, index in sorted(known.outputs.items()))

    def graph(self, signature: str = "") -> Subgraph:
        """Return the graph of a signature; the first for an empty name. Raises ModelError if there is none."""
        if not signature:
            return self.subgraphs[0]
        for known in self.signatures:
            if known.name == signature:
                return self.subgraphs[known.subgraph]
        names = ", ".join(known.name for known in self.signatures) or "none"
        raise ModelError(f"the model file has no signature {signature!r}; it has: {names}")

    @property
    def least_memory(self) -> int:
        """Least memory of computed tensors while the model runs, bytes: those of the largest operation."""
        return max((_bytes(graph, operation) for graph, operation in self.steps()), default=0)

    @property
    def has_fixed_cost(self) -> bool:
        """True if time and memory of an inference cannot depend on its input."""
        return all(map(_has_fixed_cost, self.subgraphs))

    @property
    def int4(self) -> bool:
        """True if a tensor holds 4-bit integers."""
        return any(t.dtype == "int4" for graph in self.subgraphs for t in graph.tensors)

    @property
    def dynamic_range(self) -> bool:
        """True if an operation multiplies float activations with integer weights."""
        return any(_hybrid(graph, operation) for graph, operation in self.steps())

    @property
    def custom(self) -> tuple[str, ...]:
        """Codes of the custom operations, each once."""
        return tuple(dict.fromkeys(op.custom for _, op in self.steps() if op.name == CUSTOM))


_VARYING = frozenset(
    (
        *("CALL", "IF", "READ_VARIABLE", "STABLEHLO_CASE", "STABLEHLO_WHILE", "WHILE"),
        *("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"),
    )
)
"""Operations that may take any time, or return more with each inference."""
_PADDING = frozenset(("MIRROR_PAD", "PAD", "PADV2"))
"""Operations that take sizes from their second input, in whatever integers."""
_SIZED_BY_VALUES = frozenset(("RANGE", "UNIQUE", "WHERE"))
"""Operations whose output's size depends on their inputs, also on those that are no integers."""
_LOOKING_UP = frozenset(("CAST", "EMBEDDING_LOOKUP", "GATHER", "RANK", "SHAPE"))
"""Operations that read integers, and whose output's size does not depend on them."""


def _has_fixed_cost(graph: Subgraph) -> bool:
    """Return True if every size in a graph is known before its first inference.

    Other operations than those above take sizes from integers only, such as FILL and RESHAPE.
    """
    known = {index for index, tensor in enumerate(graph.tensors) if tensor.size}
    for operation in graph.operations:
        unknown = [graph.tensors[i].dtype for i in operation.inputs if i >= 0 and i not in known]
        if operation.name in _VARYING or (unknown and operation.name in _SIZED_BY_VALUES):
            return False
        if operation.name in _PADDING and not known.issuperset(operation.inputs[1:]):
            return False
        if operation.name not in _LOOKING_UP and not {"int32", "int64"}.isdisjoint(unknown):
            return False
        if not unknown or operation.name in ("RANK", "SHAPE"):
            known.update(operation.outputs)
        else:
            known.difference_update(operation.outputs)
    return True


def _bytes(graph: Subgraph, operation: Operation) -> int:
    """Return the memory of an operation's computed tensors of known shape and dtype, bytes."""
    tensors = (graph.tensors[i] for i in {*operation.inputs, *operation.outputs} if i >= 0)
    return sum(
        math.prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 0)
        for tensor in tensors
        if not tensor.size and min(tensor.shape, default=0) >= 0
    )


def _specs(graph: Subgraph, names: dict[str, int]) -> tuple[TensorSpec, ...]:
    found = {
        index: shape
        for operation in graph.operations
        if operation.custom == POSTPROCESS
        for index, shape in zip(operation.outputs, _POSTPROCESS_SHAPES, strict=False)
    }
    tensors = ((name, graph.tensors[i], found.get(i)) for name, i in names.items())
    return tuple(
        TensorSpec(
            name, shape or tensor.shape, tensor.dtype, tensor.quantisation.scale, tensor.quantisation.zero_point
        )
        for name, tensor, shape in tensors
    )


def _hybrid(graph: Subgraph, operation: Operation) -> bool:
    there = [graph.tensors[i] for i in operation.inputs if i >= 0]
    if operation.name not in _MULTIPLY or not there:
        return False
    first, *rest = there
    return first.dtype == "float32" and any(t.size and t.dtype in _INTEGERS for t in rest)


_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
"""Operations whose outputs are sums over one slice of the weights each."""


def multiply_adds(file: ModelFile, signature: str = "") -> int:
    """Return the multiply-adds of one graph's convolutions and matrix products; those of others are few."""
    graph = file.graph(signature)
    return sum(multiply_adds_of(graph, operation) for operation in graph.operations)


def multiply_adds_of(graph: Subgraph, operation: Operation) -> int:
    """Return the multiply-adds of one operation; 0 if they are few or unknown."""
    shapes = [graph.tensors[i].shape if i >= 0 else () for i in operation.inputs]
    out = graph.tensors[operation.outputs[0]].shape if operation.outputs else ()
    if operation.name in _WEIGHTED and len(shapes) > 1 and out:
        return _size(out) * _size(shapes[1]) // max(1, out[-1])
    if operation.name == "TRANSPOSE_CONV" and len(shapes) > 2 and shapes[2]:
        return _size(shapes[2]) * _size(shapes[1]) // max(1, shapes[2][-1])
    if operation.name == "BATCH_MATMUL" and shapes and shapes[0]:
        return _size(out) * shapes[0][-1]
    return 0


def _size(shape: tuple[int, ...]) -> int:
    """Return the number of elements; an unknown size counts as one."""
    return math.prod(max(1, size) for size in shape)


_OPERATORS = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH
SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN
GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM
STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM
CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN
TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN
FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV
REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE
MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG
QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND
SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO
RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL
CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE
RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC
STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP
STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL
STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR
STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER
STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE
STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA
STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER
STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT
STABLEHLO_CBRT STABLEHLO_CASE
"""
_TYPES = """
float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant
uint32 uint16 int4 bfloat16 int2 uint4 float8_e4m3fn float8_e5m2
"""
OPERATORS = tuple(_OPERATORS.split())
"""Builtin operations by code."""
TYPES = tuple(_TYPES.split())
"""Tensor types by number, by numpy's names if numpy has the type."""
