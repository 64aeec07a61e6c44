"""Builds decoders for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from agent.compute.decode import build_decoder
from agent.compute.decode.decoder import Decoder
from agent.compute.manifest import Manifest, OutputManifest, check_manifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.config.toml import TomlFile
from agent.types import Detection


def spec(name: str, *shape: int, dtype: str = "float32", scale: float = 0.0, zero_point: int = 0) -> TensorSpec:
    return TensorSpec(name, shape, dtype, scale, zero_point)


def manifest_from(data: dict[str, Any], path: str) -> Manifest:
    """Check the tables of a manifest and build it."""
    check_manifest(TomlFile(path, data, {}))
    return msgspec.convert(data, Manifest)


def picture(height: int, width: int | None = None) -> TensorSpec:
    return spec("image", 1, height, width or height, 3, dtype="uint8", scale=1.0)


def decoder(
    name: str,
    image: TensorSpec,
    outputs: Sequence[TensorSpec],
    labels: tuple[str, ...] = (),
    *,
    score: float = 0.4,
    iou: float = 0.6,
    config: DecodeConfig | None = None,
    **options: Any,
) -> Decoder:
    output = OutputManifest(name, labels, score, iou, options)
    return build_decoder(Manifest("m", output), (image,), outputs, config or DecodeConfig())


def assert_sound(detections: Sequence[Detection]) -> None:
    """Whatever came in: what comes out is finite, within the picture, and strongest first."""
    scores = [d.score for d in detections]
    assert scores == sorted(scores, reverse=True)
    for d in detections:
        assert 0.0 <= d.score <= 1.0
        if d.box is not None:
            x0, y0, x1, y1 = d.box
            assert 0.0 <= x0 < x1 <= 1.0
            assert 0.0 <= y0 < y1 <= 1.0
        for point in d.keypoints:
            assert 0.0 <= point.x <= 1.0
            assert 0.0 <= point.y <= 1.0
        assert all(0.0 <= value <= 1.0 for corner in d.outline for value in corner)


def assert_same(left: Sequence[Detection], right: Sequence[Detection]) -> None:
    """Equal but for rounding."""
    assert [d.label for d in left] == [d.label for d in right]
    for a, b in zip(left, right, strict=True):
        assert np.isclose(a.score, b.score, atol=1e-5)
        if a.box is None or b.box is None:
            assert a.box == b.box
        else:
            assert np.allclose(a.box, b.box, atol=1e-5)
