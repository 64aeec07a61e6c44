"""Reads the convolutions out of a TensorFlow.js graph model: JSON and weights in, numpy kernels out."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.optimise.graph.layers import Convolution

_CONVOLUTION = re.compile(r"(?:.*/)?convolution(?:_(\d+))?")


def read_convolutions(path: Path) -> list[Convolution]:
    """Return the convolutions of the graph model at `path` (model.json) in the order of their numbers."""
    model = json.loads(path.read_text())
    weights = _read_weights(path.parent, model["weightsManifest"])
    nodes = model["modelTopology"]["node"]
    bias_of = {n["input"][0]: n["input"][1] for n in nodes if n["op"] == "Add" and n["input"][1] in weights}
    found: dict[int, Convolution] = {}
    for node in nodes:
        name = _CONVOLUTION.fullmatch(node["name"])
        if name and node["op"] == "Conv2D":
            found[int(name[1] or 0)] = Convolution(weights[node["input"][1]], weights[bias_of[node["name"]]])
    return [found[number] for number in sorted(found)]


def _read_weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Weights by name; those stored as float16 come back as float32."""
    weights: dict[str, NDArray[Any]] = {}
    for group in manifest:
        data = b"".join((folder / part).read_bytes() for part in group["paths"])
        offset = 0
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            array = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
            weights[entry["name"]] = array.astype(entry["dtype"])
            offset += array.nbytes
    return weights
