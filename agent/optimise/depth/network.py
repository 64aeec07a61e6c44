"""A graph with several exits as a module that can be trained: all of it, or the heads alone.

In a file, batch norms are part of the weights, whose sizes then differ by orders of magnitude from layer to
layer, and so do the learning rates that they bear. `ExitNetwork.unfold` puts a batch norm behind each convolution
again, which changes no answer, and `emit` makes it part of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from agent.optimise.graph.objects import dump, load
from agent.optimise.graph.operations import Key, WeightedLayer
from agent.optimise.graph.torch_graph import GraphOverrides, TorchGraph

Tensor = Any
_DENSE = "FULLY_CONNECTED"
_LEAST = 1e-6
"""Least deviation that something is divided by."""
_ROUNDS = 100
"""Rounds of L-BFGS."""


class Dense(nn.Module):
    """A fully connected layer on features that are brought to mean 0 and deviation 1.

    So one learning rate fits layers on small and on large features.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits from features [batch, …, features], in float32: the mean may be far from 0."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear((features.float() - self.mean) / self.deviation, self.weight, self.bias)

    def set_features(self, mean: Tensor, deviation: Tensor) -> None:
        """Bring features of this mean and deviation, [features], to 0 and 1; the layer answers as before."""
        with torch.no_grad():
            weight, bias = self.folded()
            self.mean.copy_(mean)
            self.deviation.copy_(deviation.clamp_min(_LEAST))
            self.weight.copy_(weight * self.deviation)
            self.bias.copy_(bias + weight @ self.mean)

    def fit(self, features: Tensor, loss: Callable[[Tensor], Tensor], ridge: float) -> None:
        """Find the weights of least loss on all features at once, by L-BFGS.

        Args:
            features: float [examples, features].
            loss: of the logits [examples, classes], a tensor without dimensions.
            ridge: penalty of the squared weights.
        """
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        search = torch.optim.LBFGS(self.parameters(), max_iter=_ROUNDS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            search.zero_grad()
            found = loss(self(features)) + ridge * self.weight.square().sum()
            found.backward()
            return found

        search.step(closure)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weights and bias of the same layer on the features as they are."""
        weight = self.weight / self.deviation
        return weight, self.bias - weight @ self.mean


class ExitNetwork(nn.Module):
    """A graph with heads. Takes float [batch, channels, height, width]; gives the logits of all exits.

    Attributes:
        graph: of the file.
        heads: of the early exits, shallow first.
    """

    def __init__(self, content: bytes) -> None:
        """Read a file of `agent.optimise.depth.stages.add_exits`.

        Raises:
            ModelError: an operation cannot be trained.
        """
        super().__init__()
        self._model = load(content)
        self.graph = TorchGraph(self._model)
        scores = self.graph.outputs[::2]  # behind those of each exit but the last is its hidden tensor
        layers = {layer.operation.outputs[0]: layer for layer in self.graph.layers}
        self._layers: list[WeightedLayer] = [layers[index] for index in scores[:-1]]
        self.heads = nn.ModuleList(Dense(*reversed(layer.shape)) for layer in self._layers)
        self._dense, self._norms = nn.ModuleList(), nn.ModuleList()
        keys = [layer.key for layer in self._layers]
        self._own: dict[Key, Dense] = dict(zip(keys, self.heads, strict=True))
        self._norm_of: dict[Key, Any] = {}
        for key in keys:
            self._fix(key)

    def _fix(self, key: Key) -> None:
        """Train something in place of parameters of the graph."""
        for buffer in key:
            if buffer:
                self.graph.parameters_by_buffer[str(buffer)].requires_grad_(False)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the logits of all exits, float [batch, classes] each."""

        def layer(layer: WeightedLayer, taken: Tensor, result: Tensor) -> Tensor:
            if layer.key in self._own:
                return self._own[layer.key](taken.reshape(*result.shape[:-1], -1))
            if layer.key in self._norm_of:
                return self._norm_of[layer.key](result.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return result

        outputs = self.graph(inputs.permute(0, 2, 3, 1), overrides=GraphOverrides(layer=layer))
        return [outputs[at].flatten(1) for at in range(0, len(outputs), 2)]

    def features(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what each head takes, float [batch, features], and the logits of the last exit."""
        wanted = [layer.operation.inputs[0] for layer in self._layers]
        found: dict[int, Tensor] = {}

        def keep(index: int, value: Tensor) -> Tensor:
            if index in wanted:
                found[index] = value
            return value

        outputs = self.graph(inputs.permute(0, 2, 3, 1), overrides=GraphOverrides(activation=keep))
        return [found[index].flatten(1) for index in wanted], outputs[-1].flatten(1)

    def unfold(self, inputs: Tensor) -> None:
        """Put batch norms behind convolutions, and bring the features of fully connected layers to one scale.

        No answer changes. Layers whose weights are used twice stay as they are.

        Args:
            inputs: typical ones, float [batch, channels, height, width].
        """
        keys = [layer.key[0] for layer in self.graph.layers]
        once = {layer.key for layer in self.graph.layers if keys.count(layer.key[0]) == 1}
        heads = {layer.key for layer in self._layers}

        def measure(layer: WeightedLayer, taken: Tensor, result: Tensor) -> Tensor:
            if layer.key in once - heads and layer.bias:
                add = self._add_dense if layer.operation.kind == _DENSE else self._add_norm
                add(layer, taken.float(), result.float())
            return result

        with torch.no_grad():
            self.graph(inputs.permute(0, 2, 3, 1), overrides=GraphOverrides(layer=measure))
            for layer in self.graph.layers:
                if layer.key in self._norm_of:
                    self._even(layer)

    def _add_dense(self, layer: WeightedLayer, taken: Tensor, _: Tensor) -> None:
        flat = taken.reshape(-1, layer.shape[1])
        dense = Dense(*reversed(layer.shape)).to(taken.device)
        dense.weight.copy_(self.graph.weights(layer))
        dense.bias.copy_(self.graph.bias(layer))
        dense.set_features(flat.mean(0), flat.std(0, unbiased=False))
        self._dense.append(dense)
        self._own[layer.key] = dense
        self._fix(layer.key)

    def _add_norm(self, layer: WeightedLayer, _: Tensor, result: Tensor) -> None:
        """Add a norm that repeats what it gets, and takes over the bias."""
        bias: Tensor = self.graph.bias(layer)
        norm = nn.BatchNorm2d(len(bias)).to(result.device)
        flat = result.reshape(-1, len(bias))
        norm.running_mean.copy_(flat.mean(0) - bias)
        norm.running_var.copy_(flat.var(0, unbiased=False))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(flat.mean(0))
        self._norms.append(norm)
        self._norm_of[layer.key] = norm

    def _even(self, layer: WeightedLayer) -> None:
        """Give the weights of each channel the size that those of new networks have; its norm undoes it."""
        weights, norm, sizes = self.graph.weights(layer), self._norm_of[layer.key], _channels(layer)
        fan_in = layer.size // layer.shape[layer.channel_axis]
        axes = [axis for axis, size in enumerate(sizes) if size == 1]
        factor = (2 / fan_in) ** 0.5 / weights.square().mean(axes).sqrt().clamp_min(_LEAST)
        deviation = (norm.running_var + norm.eps).sqrt()
        weights.mul_(factor.reshape(sizes))
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
        norm.weight.copy_(norm.weight * (norm.running_var + norm.eps).sqrt() / (deviation * factor))
        self.graph.parameters_by_buffer[str(layer.bias)].zero_().requires_grad_(False)

    def emit(self) -> bytes:
        """Return the float file with the weights as they are now."""
        with torch.no_grad():
            found = {name: one.detach().clone() for name, one in self.graph.parameters_by_buffer.items()}
            for key, dense in self._own.items():
                found |= {str(buffer): values for buffer, values in zip(key, dense.folded(), strict=True)}
            for layer in self.graph.layers:
                if layer.key in self._norm_of:
                    found |= self._folded(layer)
            for buffer, values in found.items():
                numbers = values.cpu().contiguous().numpy().astype(np.float32)
                self._model.buffers[int(buffer)].data = np.frombuffer(numbers.tobytes(), np.uint8)
        return dump(self._model)

    def _folded(self, layer: WeightedLayer) -> dict[str, Tensor]:
        """Return weights and bias of a layer with its norm."""
        norm = self._norm_of[layer.key]
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        weights = self.graph.weights(layer) * factor.reshape(_channels(layer))
        return {str(layer.weights): weights, str(layer.bias): norm.bias - norm.running_mean * factor}


def _channels(layer: WeightedLayer) -> list[int]:
    """Return the shape in which a number for each output channel is multiplied with the weights."""
    sizes = [1] * len(layer.shape)
    sizes[layer.channel_axis] = -1
    return sizes
