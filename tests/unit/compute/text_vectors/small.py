"""A small file of text vectors: words of two meanings, and a tokenizer that knows them, made as by `pull`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.text_vectors.tokenizer import BYTES, SPACE
from agent.models.text_vectors import pack_vectors

HELP = ("help", "assist", "aid", "somebody", "needs")
PARCEL = ("parcel", "package", "box", "delivered")
DIMENSIONS = 16


def tokenizer() -> dict[str, Any]:
    """A `tokenizer.json`: bytes, letters, and each word letter by letter from its beginning."""
    words = [SPACE + word for word in (*HELP, *PARCEL)]
    letters = sorted({letter for word in words for letter in word})
    begun = sorted(
        {word[:end] for word in words for end in range(2, len(word) + 1)}, key=lambda one: (len(one), one)
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(BYTES)), *letters, *begun]
    merges = [f"{piece[:-1]} {piece[-1]}" for piece in begun]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    steps = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"},
    }


def table() -> NDArray[np.float16]:
    """A vector for each piece: words of one meaning lie together, everything else is short."""
    chance = np.random.default_rng(1)
    vocab = tokenizer()["model"]["vocab"]
    made = chance.normal(0.0, 0.02, (len(vocab), DIMENSIONS))
    for number, words in enumerate((HELP, PARCEL)):
        for word in words:
            made[vocab[SPACE + word]] = chance.normal(0.0, 0.1, DIMENSIONS)
            made[vocab[SPACE + word], number] += 1.0
    return made.astype(np.float16)


@functools.cache
def content(seed: int = 0) -> bytes:
    """The file; another seed is another file with the same vectors."""
    return pack_vectors(table(), json.dumps(tokenizer()).encode(), {"licence": "MIT", "seed": str(seed)})


def write(path: Path, seed: int = 0) -> Path:
    path.write_bytes(content(seed))
    return path
