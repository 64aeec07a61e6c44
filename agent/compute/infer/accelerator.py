"""LiteRT's own accelerators, GPU (WebGPU over Vulkan) and NPU, through `CompiledModel`.

Use it in worker processes only: loading LiteRT's GPU library on a Cortex-A72 ends the process with SIGILL, and
`CompiledModel` holds the GIL while it runs. `CompiledModel` knows the tensors' shapes only; their quantisation is
read from the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.compute.infer.session import BackendSpec
from agent.compute.manifest import Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import BackendError, ModelError
from agent.types import Array

_Ends = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
_Names = tuple[list[str], list[str]]


class AcceleratorSession:
    """Session of a compiled model. `nodes` is the number of operations of its first graph."""

    def __init__(self, model: Model, plan: BackendSpec, variant: str) -> None:
        """Compile the model. Raises BackendError if the accelerator is missing, or refuses the model."""
        self._model, self.backend = model, plan.backend
        self.degraded = ""
        self._file = read_modelfile(model.content)
        self.nodes = len(self._file.subgraphs[0].operations)
        try:
            self._compiled = _compile(model.content, plan)
            self._signatures = self._compiled.get_signature_list()
        except (ImportError, AttributeError, RuntimeError, ValueError) as error:
            raise BackendError(f"{model.path}: {plan.backend} cannot run it: {_cause(error)}") from error
        self._graphs: dict[str, _Graph] = {}
        self.select(variant or model.manifest.variants[0].name)

    def select(self, variant: str) -> None:
        signature = self._model.manifest.variant(variant).signature
        ends = self._file.ends(signature)
        if variant not in self._graphs:
            self._graphs[variant] = self._prepare(signature, ends)
        self.variant, self._graph = variant, self._graphs[variant]
        self.inputs, self.outputs = ends

    def input(self, index: int) -> Array:
        return self._graph.inputs[index]

    def invoke(self) -> None:
        try:
            self._graph.run()
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{self.backend} failed: {_cause(error)}") from error

    def output(self, index: int) -> Array:
        return self._graph.outputs[index]

    def close(self) -> None:
        self._graphs.clear()
        self._compiled.close()

    def _prepare(self, signature: str, ends: _Ends) -> _Graph:
        keys = list(self._signatures)
        if signature and signature not in keys:
            raise ModelError(f"no signature {signature!r}; the file has: {', '.join(keys) or 'none'}")
        number = keys.index(signature) if signature else 0
        found = self._signatures[keys[number]] if keys else {}
        inputs, outputs = ([spec.name for spec in specs] for specs in ends)
        if signature:
            inputs, outputs = found["inputs"], found["outputs"]
        try:
            return _Graph(self._compiled, number, (inputs, outputs), ends)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{self.backend}: {_cause(error)}") from error


def _compile(content: bytes, plan: BackendSpec) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator

    kind = getattr(HardwareAccelerator, plan.library)
    if plan.settings.get("precision") != "f32":
        return CompiledModel.from_buffer(content, hardware_accel=kind)
    from ai_edge_litert.gpu_options import GpuOptions
    from ai_edge_litert.options import Options

    return CompiledModel.from_buffer(content, options=Options(kind, gpu_options=GpuOptions(enforce_f32=True)))


class _Graph:
    """One signature with its buffers, and their arrays in the order of the specs."""

    def __init__(self, compiled: Any, number: int, names: _Names, ends: _Ends) -> None:
        self._compiled, self._number = compiled, number
        self._in_buffers, self._out_buffers = (
            compiled.create_input_buffers(number),
            compiled.create_output_buffers(number),
        )
        self.inputs, self.outputs = ([np.zeros(spec.shape, spec.dtype) for spec in specs] for specs in ends)
        # The accelerator has its own order of buffers.
        self._in_order, self._out_order = (
            [[spec.name for spec in specs].index(name) for name in known]
            for known, specs in zip(names, ends, strict=True)
        )

    def run(self) -> None:
        for buffer, index in zip(self._in_buffers, self._in_order, strict=True):
            buffer.write(self.inputs[index])
        self._compiled.run_by_index(self._number, self._in_buffers, self._out_buffers)
        for buffer, index in zip(self._out_buffers, self._out_order, strict=True):
            array = self.outputs[index]
            np.copyto(array, buffer.read(array.size, array.dtype.type).reshape(array.shape))


def _cause(error: Exception) -> str:
    """Return the last line: those before it are places in LiteRT's source."""
    lines = [line.strip("└ ") for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
