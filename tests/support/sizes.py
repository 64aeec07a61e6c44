"""Models of several sizes for tests: each ignores its input and always sees what it was told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.types import Box
from tests.support import tflite_builder as build

LEFT: Box = (0.0, 0.25, 0.5, 0.75)
RIGHT: Box = (0.5, 0.25, 1.0, 0.75)
Things = Sequence[tuple[float, Box]]
"""Score and place of what is seen."""

_MANIFEST = """
name = "sizes"
[output]
decoder = "ssd"
labels = ["person"]
score_threshold = 0.4
"""
_RUNG = """
[[variants]]
name = "{name}"
signature = "s{name}"
multiply_adds = {work}
"""


def sizes_model(folder: Path, seen: dict[str, Things]) -> Path:
    """Write a model; gives its manifest's path.

    Args:
        folder: where to.
        seen: by the side of the input picture in pixels, largest first.
    """
    graphs = [_graph(int(side), things) for side, things in seen.items()]
    keys = [
        build.Signature(f"s{side}", {"image": 0}, dict(zip(_OUTPUTS, graph.outputs, strict=True)), number)
        for number, (side, graph) in enumerate(zip(seen, graphs, strict=True))
    ]
    first, *more = graphs
    (folder / "sizes.tflite").write_bytes(
        build.write(first.tensors, first.operations, first.inputs, first.outputs, keys, more=more)
    )
    variants = [_RUNG.format(name=side, work=1000 * int(side) ** 2) for side in seen]
    path = folder / "sizes.toml"
    path.write_text(_MANIFEST + "".join(variants))
    return path


_OUTPUTS = ("boxes", "classes", "scores", "count")


def _graph(side: int, things: Things) -> build.Graph:
    boxes = [(y0, x0, y1, x1) for _, (x0, y0, x1, y1) in things] or [(0.0,) * 4]
    outputs = {
        "boxes": np.array([boxes], np.float32),
        "classes": np.zeros((1, len(boxes)), np.float32),
        "scores": np.array([[score for score, _ in things] or [0.0]], np.float32),
        "count": np.full(1, len(things), np.float32),
    }
    return build.constant_graph(outputs, (1, side, side, 3))
