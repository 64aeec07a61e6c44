"""Writes networks as one `.tflite` file: a signature per network, float or INT8, equal weights stored once."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from network import Network
from numpy.typing import NDArray
from quantise import Quantisation
from subgraph import Kernels, Subgraph

_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "PAD": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 3,
    "SOFTMAX": 2,
}
"""The first version of each operation that takes INT8 (for RESIZE_BILINEAR: half-pixel centres)."""
_ALIGNMENT = 16


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose bytes are aligned as the schema asks, which its own packer forgets."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 - the packer calls it by this name
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


class File:
    """A `.tflite` file in the making."""

    def __init__(self, description: str = "") -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = description
        self._model.buffers = [_Buffer()]
        self._model.operatorCodes, self._model.subgraphs, self._model.signatureDefs = [], [], []
        self._buffers: dict[bytes, int] = {}
        self._codes: dict[str, int] = {}

    def add(
        self,
        key: str,
        network: Network,
        outputs: Sequence[str],
        scales: Mapping[str, Quantisation] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        """Add `network` as signature `key`: INT8 where `scales` are given, else float.

        `kernels` are integer kernels by layer; a layer without gets its weights rounded to the nearest.
        """
        graph = Subgraph(self, network, scales, kernels or {}).write(key, outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, len(self._model.subgraphs)
        signature.inputs = [_tensor_map("image", graph.inputs[0])]
        signature.outputs = [_tensor_map(name, index) for name, index in zip(outputs, graph.outputs, strict=True)]
        self._model.subgraphs.append(graph)
        self._model.signatureDefs.append(signature)

    def pack(self) -> bytes:
        """The file's bytes."""
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def buffer(self, data: bytes) -> int:
        """The index of the buffer that holds `data`; equal data is stored once."""
        if data not in self._buffers:
            stored = _Buffer()
            stored.data = data
            self._buffers[data] = len(self._model.buffers)
            self._model.buffers.append(stored)
        return self._buffers[data]

    def code(self, op: str) -> int:
        """The index of the operator code of `op`."""
        if op not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, op)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), _VERSIONS[op]
            self._codes[op] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[op]


class Runner:
    """Runs one signature of a file on one picture at a time."""

    def __init__(self, content: bytes, key: str) -> None:
        self._run = Interpreter(model_content=content, num_threads=2).get_signature_runner(key)
        self._dtype = self._run.get_input_details()["image"]["dtype"]

    def __call__(self, pixels: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The outputs by name, for BGR pixels 0..255 of the input's size."""
        outputs: dict[str, NDArray[Any]] = self._run(image=pixels.astype(self._dtype)[None])
        return outputs


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
