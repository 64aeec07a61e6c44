"""Networks that can be pruned: a torch module, or the graph of a float `.tflite`; each becomes a file again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from agent.compute.decode.completion import PROBABILITIES, facts_of
from agent.compute.manifest import InputManifest
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.graph.objects import dump, load
from agent.optimise.graph.torch_graph import TorchGraph
from agent.optimise.pruning.connections import prunable
from agent.optimise.quantise import float_file
from agent.text import plural

_RESHAPING = ("EXPAND_DIMS", "RESHAPE", "SQUEEZE")


class PrunableNetwork(NamedTuple):
    """A network that can be pruned, and how its file is made.

    Attributes:
        module: takes float [batch, channels, height, width], gives one tensor [batch, classes].
        weights: parameters that may be pruned, by the layer's name.
        emit: returns the float `.tflite` of a module, which may have fewer channels.
        normalised: False: batch norms are part of the weights, so that training must go on in small steps.
    """

    module: Any
    weights: Mapping[str, Any]
    emit: Callable[[Any], bytes]
    normalised: bool = True


def of_module(module: Any, shape: tuple[int, ...], preparation: InputManifest) -> PrunableNetwork:
    """Return the network of a torch module.

    Args:
        module: trained.
        shape: of one input: height, width, channels.
        preparation: of pictures.
    """
    height, width, channels = shape
    mean, std = preparation.mean[:channels], preparation.std[:channels]

    def emit(pruned: Any) -> bytes:
        return float_tflite(pruned.cpu(), (height, width, channels), mean=mean, std=std)

    return PrunableNetwork(module, prunable(module), emit)


class _Graph(nn.Module):
    """A graph of one input and one output that takes pictures as modules do, and gives logits, as they do."""

    def __init__(self, graph: TorchGraph, factor: float) -> None:
        super().__init__()
        self.graph, self._factor = graph, factor

    def forward(self, inputs: Any) -> Any:
        return self.graph(inputs.permute(0, 2, 3, 1))[0].flatten(1) * self._factor


def of_file(content: bytes, path: str) -> PrunableNetwork:
    """Return the network of a float `.tflite` with one graph of one input and one output.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        ModelError: it is quantised, has several graphs, inputs or outputs, or an operation that is not known, or
            ends in a sigmoid.
    """
    model = load(float_file(content))
    if len(model.subgraphs) != 1:
        raise ModelError(f"{path}: has {len(model.subgraphs)} graphs, and pruning takes a model of one")
    graph = TorchGraph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        ends = f"{plural(len(graph.inputs), 'input')} and {plural(len(graph.outputs), 'output')}"
        raise ModelError(f"{path}: has {ends}, and pruning takes a model of one each")
    factor = _without_softmax(graph)
    if facts_of(content, read_modelfile(content)).endings[0] in PROBABILITIES and not factor:
        raise ModelError(
            f"{path}: ends in a sigmoid, and pruning trains a network that ends in a softmax or in logits: give "
            "one that is converted without it"
        )
    kinds = ("CONV_2D", "FULLY_CONNECTED")
    weights = {layer.name: graph.weights(layer) for layer in graph.layers if layer.operation.kind in kinds}

    def emit(_pruned: Any) -> bytes:
        with torch.no_grad():
            for buffer, values in graph.parameters_by_buffer.items():
                numbers = values.detach().cpu().contiguous().numpy().astype(np.float32)
                model.buffers[int(buffer)].data = np.frombuffer(numbers.tobytes(), np.uint8)
        return dump(model)

    return PrunableNetwork(_Graph(graph, factor or 1.0), weights, emit, normalised=False)


def _without_softmax(graph: TorchGraph) -> float:
    """Let a graph give what the softmax at its end takes, since the loss takes one; the file keeps its own.

    Return the factor of these logits; 0: there is no softmax.
    """
    makers = {index: one for one in graph.operations for index in one.outputs}
    last = makers.get(graph.outputs[0])
    while last is not None and last.kind in _RESHAPING:
        last = makers.get(last.inputs[0])
    if last is None or last.kind != "SOFTMAX":
        return 0.0
    graph.outputs = [last.inputs[0]]
    return float(last.options.beta or 1.0)
