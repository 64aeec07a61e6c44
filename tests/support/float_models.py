"""Small float models for tests of quantisation: PyTorch modules as `.tflite`, and examples for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE, CLASSES = 12, 4


def classifier(width: int = 16, sharpness: float = 1.0) -> Any:
    """Return a module with what quantisation meets: depthwise, residual, pools, a fully connected end."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, padding=1)
            self.norm = nn.BatchNorm2d(width)
            self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.point = nn.Conv2d(width, width, 1)
            self.wide = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.head = nn.Linear(2 * width, CLASSES)

        def forward(self, x: Any) -> Any:
            x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 2)
            x = functional.relu(x + self.point(functional.relu(self.deep(x))))
            return self.head(functional.relu(self.wide(x)).mean((2, 3)))

    torch.manual_seed(5)
    module = Net().eval()
    module.norm.running_var.uniform_(0.5, 2.0)
    module.head.weight.data.mul_(sharpness)
    return module


def float_file(module: Any, mean: float = 128.0, std: float = 64.0) -> bytes:
    """Return a module's float `.tflite` for pictures of `SIDE` × `SIDE`."""
    from agent.optimise.graph.from_torch import float_tflite

    return float_tflite(module, (SIDE, SIDE, 3), mean=mean, std=std)


def halved(content: bytes) -> bytes:
    """Return a float file with its constants as float16, each behind a DEQUANTIZE, as converters write it."""
    from ai_edge_litert import schema_py_generated as schema

    from agent.optimise.graph.objects import Graph, compact, dump, load

    model = load(content)
    graph = Graph(model, model.subgraphs[0])
    for index in range(len(graph.table.tensors)):
        value = graph.constant(index)
        if value is None or value.dtype != np.float32:
            continue
        half = graph.add_constant(index, value.astype(np.float16))
        graph.tensor(half).type, graph.tensor(half).name = schema.TensorType.FLOAT16, f"half_{index}".encode()
        graph.tensor(index).buffer = 0
        operator = schema.OperatorT()
        operator.opcodeIndex = graph.code(schema.BuiltinOperator.DEQUANTIZE, 3)
        operator.inputs, operator.outputs = [half], [index]
        graph.operators.insert(0, operator)
    compact(model)
    return dump(model)


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return pictures of blobs of one of four kinds, uint8 [count, SIDE, SIDE, 3]: number modulo 4."""
    random = np.random.default_rng(seed)
    found = random.integers(40, 120, (count, SIDE, SIDE, 3))
    half = SIDE // 2
    for number, picture in enumerate(found):
        down, right = divmod(number % CLASSES, 2)
        picture[down * half : (down + 1) * half, right * half : (right + 1) * half] += 110
    return found.astype(np.uint8)


def write_examples(path: Path, count: int = 64, seed: int = 0) -> Path:
    """Write pictures with their kinds as a `.npz`."""
    np.savez(path, x=pictures(count, seed), y=np.arange(count) % CLASSES)
    return path


def write_model(folder: Path, content: bytes, mean: float = 128.0, std: float = 64.0) -> Path:
    """Write a model with its manifest, and return the manifest's path."""
    (folder / "net.tflite").write_bytes(content)
    keys = f"[input]\nmean = [{mean}, {mean}, {mean}]\nstd = [{std}, {std}, {std}]\n"
    names = ", ".join(f'"{number}"' for number in range(CLASSES))
    output = f'[output]\ndecoder = "classify"\nlabels = [{names}]\n'
    (folder / "net.toml").write_text(f'name = "net"\nfile = "net.tflite"\n{keys}{output}')
    return folder / "net.toml"
