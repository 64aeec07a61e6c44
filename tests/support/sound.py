"""Sound for tests: words that are tones, models that hear them, and chunks as a listener gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from agent.types import AudioChunk, Samples
from tests.support import tflite_builder as build

RATE, ROWS, MELS = 16000, 20, 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)

_MANIFEST = f"""
name = "tones"
[audio]
rate_hz = {RATE}
frontend = "logmel"
every_s = 0.1
mean = -8.0
std = 4.0
options = {{ mels = {MELS}, high_hz = 7000.0, offset = 1e-6 }}
[output]
decoder = "keyword"
labels = ["low", "high", "silence"]
score_threshold = 0.6
options = {{ logits = true, refractory_s = 0.3 }}
"""
_RUNGS = """
[[variants]]
name = "12"
signature = "exit12"
after = "3"
depth = 12
[[variants]]
name = "3"
signature = "exit3"
depth = 3
confidence = {confidence}
complexity = {complexity}
"""


def _weights(sharpness: float, rows: int = ROWS) -> np.ndarray:
    """Three rows over all bands of all rows: low bands, high bands, and neither."""
    low, high = np.zeros((rows, MELS)), np.zeros((rows, MELS))
    low[:, :8], high[:, 12:] = 1.0 / (8 * rows), 1.0 / (8 * rows)
    quiet = -np.full((rows, MELS), 0.5 / (MELS * rows))
    return np.stack([low.ravel(), high.ravel(), quiet.ravel()]).astype(np.float32) * sharpness


def tone_model(folder: Path, *, sharpness: float = 8.0, rows: int = ROWS) -> Path:
    """A model of one depth that hears `rows` of 10 ms at once; gives its manifest's path."""
    tensors = [
        build.T("features", (1, rows, MELS)),
        build.T("w", (3, rows * MELS), "float32", _weights(sharpness, rows)),
        build.T("logits", (1, 3)),
    ]
    (folder / "tones.tflite").write_bytes(
        build.write(tensors, [build.Op("FULLY_CONNECTED", (0, 1, -1), (2,))], (0,), (2,))
    )
    path = folder / "tones.toml"
    path.write_text(_MANIFEST)
    return path


def embedding_model(folder: Path) -> Path:
    """A model whose embedding has numbers for low bands, for high ones, and for neither; its manifest."""
    tensors = [
        build.T("rows", (1, ROWS, MELS)),
        build.T("w", (3, ROWS * MELS), "float32", _weights(8.0)),
        build.T("features", (1, 3)),
    ]
    (folder / "embedding.tflite").write_bytes(
        build.write(tensors, [build.Op("FULLY_CONNECTED", (0, 1, -1), (2,))], (0,), (2,))
    )
    path = folder / "embedding.toml"
    path.write_text(_MANIFEST.split("[output]")[0] + '[output]\ndecoder = "features"\n')
    return path


def head_arrays(embedding: Path, bias: float = 0.0) -> dict[str, Any]:
    """Arrays of a head for `tone_model` and `embedding_model`, of two windows; `bias` is that of low words."""
    content = embedding.with_suffix(".tflite").read_bytes()
    return {
        "labels": np.array(["low", "high", "silence"]),
        "ends_s": np.array([0.0, 0.05]),
        "embedding": np.array(hashlib.sha256(content).hexdigest()),
        "weights0": np.vstack((np.eye(3), np.eye(3))).astype(np.float16),
        "biases0": np.array([bias, 0.0, 0.0], np.float32),
    }


def verified_model(folder: Path, bias: float = 0.0, **arrays: Any) -> Path:
    """`tone_model` with a verification by `embedding_model`; its manifest."""
    np.savez(folder / "head.npz", **{**head_arrays(embedding_model(folder), bias), **arrays})
    path = tone_model(folder)
    path.write_text(
        path.read_text().replace(
            "[output]", '[verification]\nmodel = "embedding.toml"\nhead = "head.npz"\n[output]'
        )
    )
    return path


def cascade_model(folder: Path, *, confidence: float = 0.9, complexity: float = 1.0, first: float = 0.3) -> Path:
    """A model of two depths, of which the first is unsure of everything; gives its manifest's path."""
    exits = [_exit(first, hidden=True), _exit(8.0, hidden=False)]
    keys = [
        build.Signature("exit3", {"features": 0}, {"logits": 2, "hidden": 4}, 0),
        build.Signature("exit12", {"features": 0}, {"logits": 2}, 1),
    ]
    shallow, deep = exits
    (folder / "depths.tflite").write_bytes(
        build.write(shallow.tensors, shallow.operations, shallow.inputs, shallow.outputs, keys, more=[deep])
    )
    path = folder / "depths.toml"
    path.write_text(_MANIFEST + _RUNGS.format(confidence=confidence, complexity=complexity))
    return path


def _exit(sharpness: float, *, hidden: bool) -> build.Graph:
    tensors = [
        build.T("features", (1, ROWS, MELS)),
        build.T("w", (3, ROWS * MELS), "float32", _weights(sharpness)),
        build.T("logits", (1, 3)),
        build.T("zero", (MELS,), "float32", np.zeros(MELS, np.float32)),
        build.T("hidden", (1, ROWS, MELS)),
    ]
    operations = [build.Op("FULLY_CONNECTED", (0, 1, -1), (2,))]
    if hidden:
        operations.append(build.Op("ADD", (0, 3), (4,)))
    return build.Graph(tensors if hidden else tensors[:3], operations, (0,), (2, 4) if hidden else (2,))


def quiet(seconds: float, level: float = 5.0) -> Samples:
    """Noise as a microphone has it."""
    random = np.random.default_rng(3)
    return (random.standard_normal(round(seconds * RATE)) * level).astype(np.int16)


def word(name: str, seconds: float = 0.6) -> Samples:
    """`low` or `high`: many tones in the lower or the upper bands."""
    t = np.arange(round(seconds * RATE)) / RATE
    tones = np.arange(150, 1100, 90) if name == "low" else np.arange(2800, 6500, 300)
    sound = sum(np.sin(2 * np.pi * hz * t + hz) for hz in tones)
    return np.asarray(sound * 1500 * (0.8 + 0.2 * np.sin(20 * t)), np.int16)


def chunks(samples: Samples, size: int = 480, first: int = 0, rate_hz: int = RATE) -> Iterator[AudioChunk]:
    """As a listener gives them."""
    for at in range(0, len(samples), size):
        part = samples[at : at + size]
        end_s = (first + at + len(part)) / rate_hz
        at_ns, at_utc = round(end_s * 1e9), NOW + timedelta(seconds=end_s)
        yield AudioChunk(part, rate_hz, "kitchen", first + at, at_ns, at_utc, 0)
