"""What the bundled models answer to a given input, recorded: `scripts/build_models/golden_answers` does that.

Inputs are made from integers alone, so that they are the same on every processor and with every version of numpy.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.extract import only_signature
from agent.compute.tensors import TensorSpec
from agent.library import open_whole_model
from agent.manifest import Model
from agent.messages import Array
from agent.storage.models import ZOO

RECORD = ZOO / "answers.json"
_BLOCK = 8
"""Pixels of an edge of the shapes."""
_PRIME = 31
_MULTIPLIER, _MASK = 2654435761, 0xFFFFFFFF
"""Knuth's multiplicative hash, The Art of Computer Programming, vol. 3, 6.4."""


class Golden(Struct, frozen=True):
    """A rung's answer to its golden input.

    Attributes:
        model, rung: names.
        sha256: of the model's file.
        at: by output's name, places in the flattened output.
        values: likewise, what stands there, as stored.
    """

    model: str
    rung: str
    sha256: str
    at: dict[str, list[int]]
    values: dict[str, list[int]]


def recorded(path: Path = RECORD) -> list[Golden]:
    """What was recorded.

    Args:
        path: of the record.
    """
    return msgspec.json.decode(path.read_bytes(), type=list[Golden])


def open_alone(name: str, rung: str) -> Model:
    """A bundled model with one rung only, which may go on from a state of another: that is an input then.

    Raises:
        ModelError: there is no such model or rung, or it is damaged.
    """
    model = open_whole_model(name)
    one = model.manifest.rung(rung)
    content = only_signature(model.content, one.signature)
    return replace(model, content=content, manifest=replace(model.manifest, rungs=(one,)))


def golden_input(spec: TensorSpec) -> Array:
    """Blocks with noise over them, over the whole range of an integer type.

    Args:
        spec: of an input that is quantised.
    """
    axes = np.indices(spec.shape, np.uint64)
    blocks = np.zeros(spec.shape, np.uint64)
    for axis in axes:
        blocks = blocks * np.uint64(_PRIME) + axis // np.uint64(_BLOCK)
    places = np.arange(blocks.size, dtype=np.uint64).reshape(spec.shape)
    mixed = (_hashed(blocks) * np.uint64(3) + _hashed(places)) // np.uint64(4)
    return (mixed.astype(np.int64) + np.iinfo(spec.dtype).min).astype(spec.dtype)


def _hashed(numbers: Array) -> Array:
    """A byte for each number."""
    return (numbers * np.uint64(_MULTIPLIER) & np.uint64(_MASK)) >> np.uint64(24)
