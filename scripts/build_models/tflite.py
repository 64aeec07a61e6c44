"""Writes networks as one `.tflite` file: a signature per network, float or INT8, equal weights stored once."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from layers import Graph
from numpy.typing import NDArray
from operations import VERSIONS
from quantise import Quantisation
from subgraph import Kernels, Subgraph

_ALIGNMENT = 16


class _Buffer(schema.BufferT):
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
        network: Graph,
        outputs: Sequence[str],
        scales: Mapping[str, Quantisation] | None = None,
        kernels: Kernels | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """Add `network` as signature `key`: INT8 where `scales` are given, else float.

        `kernels` are integer kernels by layer; a layer without gets its weights rounded to the nearest. `aliases`
        are what the signature calls tensors, where that is not their own name.
        """
        graph = Subgraph(self, network, scales, kernels or {}).write(key, outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, len(self._model.subgraphs)
        named = [(network.entry, graph.inputs[0]), *zip(outputs, graph.outputs, strict=True)]
        maps = [_tensor_map((aliases or {}).get(name, name), index) for name, index in named]
        signature.inputs, signature.outputs = maps[:1], maps[1:]
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
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), VERSIONS[op]
            self._codes[op] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[op]


class Runner:
    """Runs one signature of a file on one input at a time."""

    def __init__(self, content: bytes, key: str) -> None:
        self._run = Interpreter(model_content=content, num_threads=2).get_signature_runner(key)
        ((self._entry, details),) = self._run.get_input_details().items()
        self._dtype = details["dtype"]

    def __call__(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The outputs by name, for an input such as BGR pixels 0..255, without the batch axis."""
        outputs: dict[str, NDArray[Any]] = self._run(**{self._entry: values.astype(self._dtype)[None]})
        return outputs


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
