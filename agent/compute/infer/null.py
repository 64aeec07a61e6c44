"""The null backend: a model's tensors without computing. For tests, and to measure everything else."""

from __future__ import annotations

import numpy as np

from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.compute.tensors import TensorSpec
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.types import Array


class NullBackend:
    """Opens models whose outputs are always their zero points, so that nothing is detected."""

    def open(self, model: Model, options: SessionOptions) -> NullSession:
        return NullSession(model, read_modelfile(model.content), options.variant)


class NullSession:
    """Session that returns zero points at once."""

    backend = "null"
    degraded = ""

    def __init__(self, model: Model, file: ModelFile, variant: str) -> None:
        self._model, self._file = model, file
        self.select(variant or model.manifest.variants[0].name)

    def select(self, variant: str) -> None:
        signature = self._model.manifest.variant(variant).signature
        try:
            self.inputs, self.outputs = self._file.ends(signature)
        except ModelError as error:
            raise ModelError(f"{self._model.path}: {error}") from None
        self.variant = variant
        self._inputs = [_memory(spec) for spec in self.inputs]
        self._outputs = [_memory(spec) for spec in self.outputs]

    def input(self, index: int) -> Array:
        return self._inputs[index]

    def invoke(self) -> None:
        pass

    def output(self, index: int) -> Array:
        return self._outputs[index]

    def close(self) -> None:
        self._inputs, self._outputs = [], []


def _memory(spec: TensorSpec) -> Array:
    return np.full(
        [max(1, size) for size in spec.shape], spec.zero_point if spec.quantised else 0, np.dtype(spec.dtype)
    )
