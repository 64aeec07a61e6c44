"""Import a PyTorch module with litert-torch, an optional converter with more operations than `from_torch`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree

from agent.optimise.graph.layers import Shape
from agent.optimise.graph.objects import dump, load


class _ChannelsLast(torch.nn.Module):
    """Takes and returns pictures as NHWC, and its results in one tuple."""

    def __init__(self, module: Any, factor: Any, offset: Any) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("factor", factor)
        self.register_buffer("offset", offset)

    def forward(self, image: Any) -> Any:
        results = self.module((image * self.factor + self.offset).permute(0, 3, 1, 2))
        ends = _pytree.tree_flatten(results)[0]
        return tuple(end.permute(0, 2, 3, 1) if end.dim() == 4 else end for end in ends)


def convert(
    module: Any, shape: Shape, factor: NDArray[np.float64], offset: NDArray[np.float64], names: Sequence[str]
) -> tuple[bytes, dict[str, Shape]]:
    """Return the float `.tflite` of a module, and the shapes of its outputs by name.

    Args:
        module: takes float32 [batch, channels, height, width].
        shape: height, width, channels of the file's input `image`.
        factor: [channels]; the module takes `factor × image + offset`.
        offset: [channels].
        names: of the outputs, in the order in which the module returns them.
    """
    turned = _ChannelsLast(module, *(torch.from_numpy(values).float() for values in (factor, offset)))
    converted = litert_torch.convert(turned.eval(), (torch.zeros(1, *shape),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.tflite"
        converted.export(str(path))
        return _named(path.read_bytes(), names)


def _named(content: bytes, names: Sequence[str]) -> tuple[bytes, dict[str, Shape]]:
    """Give the ends of the only signature their names. litert-torch calls outputs `output_0` and so on."""
    model = load(content)
    (signature,) = model.signatureDefs
    signature.signatureKey = "serving_default"
    signature.inputs[0].name = "image"
    ends = {bytes(end.name).decode(): end for end in signature.outputs}
    tensors, shapes = model.subgraphs[signature.subgraphIndex].tensors, {}
    for number, name in enumerate(names):
        end = ends[f"output_{number}"]
        end.name = name
        shapes[name] = tuple(map(int, tensors[end.tensorIndex].shape))
    return dump(model), shapes
