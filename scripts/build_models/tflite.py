"""Writes networks as INT8 `.tflite` files, and runs them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import quantise
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from quantise import Quantisation

from agent.optimise.graph.layers import Layer, Network
from agent.optimise.graph.writer import KERNELS, ModelWriter, SubgraphWriter

_UINT8_PIXELS = Quantisation(quantise.PIXELS.scale, 0)
_INT8, _UINT8 = np.dtype(np.int8), np.dtype(np.uint8)

Scales = Mapping[str, Quantisation]
"""Of every activation, by its name."""
Kernels = Mapping[str, tuple[NDArray[np.int8], Quantisation]]
"""Integer kernels [height, width, in, out] and their scales, by the name of the layer's output."""


class File(ModelWriter):
    """A `.tflite` file in the making, whose networks are float or INT8."""

    def add_int8(
        self,
        key: str,
        network: Network,
        outputs: Sequence[str],
        scales: Scales,
        kernels: Kernels | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """Add an INT8 network as signature `key`, see `add`.

        `kernels` are integer kernels by layer; a layer without gets its weights rounded to the nearest.
        """
        self.add_subgraph(key, _Int8Writer(self, network, scales, kernels or {}), outputs, aliases or {})


class _Int8Writer(SubgraphWriter):
    """Writes a network with integer weights and activations."""

    def __init__(self, model: ModelWriter, network: Network, scales: Scales, kernels: Kernels) -> None:
        super().__init__(model, network)
        self._scales, self._kernels = scales, kernels

    def write_input(self) -> int:
        """The input; the layers read pixels through a QUANTIZE that shifts uint8 to int8."""
        if not self.network.pixels:
            return super().write_input()
        name = self.network.entry
        shape = self.network.shapes[name]
        pixels = self.tensor(name, shape, _UINT8, _parameters(_UINT8_PIXELS))
        self.index[name] = self.tensor(f"{name}_int8", shape, _INT8, _parameters(self._scales[name]))
        self.operator("QUANTIZE", [pixels], self.index[name], schema.QuantizeOptionsT())
        return pixels

    def activation(self, name: str) -> int:
        return self.tensor(name, self.network.shapes[name], _INT8, _parameters(self._scales[name]))

    def weights(self, layer: Layer) -> list[int]:
        assert layer.convolution is not None
        place, axis = KERNELS[layer.op]
        incoming = self._scales[layer.inputs[0]]
        integers, scale = self._kernels.get(layer.output) or quantise.nearest(layer)
        integers = np.ascontiguousarray(place(integers))
        product = Quantisation(incoming.scale * scale.scale, 0)
        bias = quantise.bias(layer.convolution.bias, product.scale)
        return [
            self.constant(f"{layer.output}/kernel", integers, _parameters(scale, axis)),
            self.constant(f"{layer.output}/bias", bias, _parameters(product)),
        ]


def _parameters(scale: Quantisation, axis: int = 0) -> schema.QuantizationParametersT:
    parameters = schema.QuantizationParametersT()
    parameters.scale = scale.scale
    parameters.zeroPoint = np.full(scale.scale.shape, scale.zero_point, np.int64)
    parameters.quantizedDimension = axis
    return parameters


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
