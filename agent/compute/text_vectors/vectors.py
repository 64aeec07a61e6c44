"""Text vectors: a table of static vectors of pieces of words, whose mean is the vector of a text.

A text is matched by its meaning: how alike it and a phrase are, as the cosine of their vectors. A message of
several sentences is compared as a whole and sentence by sentence, and the most alike counts: what one sentence
asks for would be lost in the mean of all.

A file of text vectors is a safetensors file with four tensors:

| name | type | of |
|---|---|---|
| `vectors` | U8 [n, d / 2] | d numbers of 4 bits for each piece, -8..7 plus 8, the even ones in the low half |
| `scales` | F16 [n] | what the numbers of a piece are multiplied by |
| `pieces` | U8 [bytes] | the pieces from number 256 on, UTF-8, in the order in which they are joined |
| `ends` | U32 [n - 256] | end of each of them in `pieces` |

The first 256 rows are of single bytes. Sources: the format, https://github.com/huggingface/safetensors; the
method, mean pooling of trained static vectors, https://github.com/dleemiller/WordLlama.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.text_vectors.tokenizer import BYTES, Tokenizer
from agent.compute.track.fusion_rule import plain_words
from agent.errors import NO_JSON, ModelError
from agent.structs import convert, from_json

FILE_MAX = 32 << 20
"""Largest file, bytes."""
_HEAD = struct.Struct("<Q")
_HEADER_MAX, _DIMENSIONS_MAX, _PIECES_MAX = 1 << 20, 4096, 1 << 18
_TYPES: dict[str, Any] = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "U32": np.uint32}

LONGEST, SENTENCES_MAX = 4096, 64
"""Characters of a text, and sentences, that are compared; more are left out."""
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|[\n;。！？]+")

Floats = NDArray[np.float32]


class _Tensor(Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_safetensors(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the tensors of a safetensors file, views of its content, and its metadata.

    Raises:
        ModelError: it is none, is damaged, or has a type other than U8, U32, F16 and F32.
    """
    try:
        (length,) = _HEAD.unpack_from(content)
        if length > min(_HEADER_MAX, len(content) - _HEAD.size):
            raise ModelError("its header is longer than the file, or than 1 MiB")
        header = from_json(content[_HEAD.size : _HEAD.size + length], dict[str, Any])
        metadata = convert(header.pop("__metadata__", {}), dict[str, str])
        tensors = convert(header, dict[str, _Tensor])
        return {name: _view(content, _HEAD.size + length, one) for name, one in tensors.items()}, metadata
    except (struct.error, *NO_JSON) as error:
        raise ModelError(f"is no safetensors file: {error}") from None


def _view(content: bytes, start: int, tensor: _Tensor) -> NDArray[Any]:
    if tensor.dtype not in _TYPES:
        raise ModelError(f"has a tensor of type {tensor.dtype}: expected {', '.join(_TYPES)}")
    kind = np.dtype(_TYPES[tensor.dtype])
    begin, end = tensor.data_offsets
    count = 1
    for size in tensor.shape:
        count *= size
    is_inside = 0 <= begin <= end <= len(content) - start and all(size >= 0 for size in tensor.shape)
    if not is_inside or end - begin != count * kind.itemsize:
        raise ModelError("is damaged: a tensor does not fit into it")
    return np.frombuffer(content, kind, count, start + begin).reshape(tensor.shape)


class TextVectors:
    """Vectors of texts. Any thread may use it.

    Attributes:
        sha256: of the file.
        dimensions: numbers in a vector.
        metadata: such as `licence` and `source`.
    """

    def __init__(self, content: bytes) -> None:
        """Read the content of a file.

        Raises:
            ModelError: it is no file of text vectors, or is damaged.
        """
        tensors, self.metadata = read_safetensors(content)
        shapes = {name: one.shape for name, one in tensors.items()}
        try:
            self._vectors, self._scales = tensors["vectors"], tensors["scales"]
            pieces, ends = tensors["pieces"], tensors["ends"]
        except KeyError as error:
            raise ModelError(f"holds no text vectors: it has no tensor {error}") from None
        types = [one.dtype for one in (self._vectors, self._scales, pieces, ends)]
        count, half = shapes["vectors"] if len(shapes["vectors"]) == 2 else (0, 0)
        expected = ((count, half), (count,), (pieces.size,), (count - BYTES,))
        found = tuple(shapes[name] for name in ("vectors", "scales", "pieces", "ends"))
        if types != [np.uint8, np.float16, np.uint8, np.uint32] or found != expected:
            raise ModelError(f"holds no text vectors: its tensors are {', '.join(map(str, found))}")
        if not (BYTES < count <= _PIECES_MAX and 0 < 2 * half <= _DIMENSIONS_MAX):
            raise ModelError(f"holds {count} vectors of {2 * half} numbers, more or fewer than can be used")
        if not (np.isfinite(self._scales).all() and (self._scales >= 0).all()):
            raise ModelError("is damaged: a scale is no positive number")
        self._tokenizer = Tokenizer(_split(pieces.tobytes(), ends))
        self.dimensions = 2 * half
        self.sha256 = hashlib.sha256(content).hexdigest()

    def embed(self, text: str) -> Floats:
        """Return the vector of a text, [dimensions], of length 1; zeros if there is no word in it.

        Case, punctuation and spaces do not count, see `plain_words`.
        """
        rows = self._tokenizer.encode(plain_words(text))
        if not rows:
            return np.zeros(self.dimensions, np.float32)
        mean: Floats = self.rows(rows).mean(0)
        length = float(np.linalg.norm(mean))
        return mean / length if length > 0.0 else mean

    def rows(self, numbers: list[int]) -> Floats:
        """Return the vectors of pieces, [n, dimensions]."""
        packed = self._vectors[numbers]
        made = np.empty((len(numbers), self.dimensions), np.float32)
        made[:, 0::2], made[:, 1::2] = packed & 15, packed >> 4
        made -= 8.0
        made *= self._scales[numbers, None].astype(np.float32)
        return made


def _split(pieces: bytes, ends: NDArray[np.uint32]) -> list[str]:
    """Return the pieces that lie one after the other. Raises ModelError if they are no different words."""
    edges = [0, *map(int, ends)]
    if sorted(edges) != edges or edges[-1] != len(pieces):
        raise ModelError("is damaged: the pieces do not fit into it")
    try:
        found = [pieces[begin:end].decode() for begin, end in itertools.pairwise(edges)]
    except UnicodeDecodeError:
        raise ModelError("is damaged: a piece is not UTF-8") from None
    if "" in found or len(set(found)) < len(found):
        raise ModelError("is damaged: a piece is empty, or there twice")
    return found


def sentences_in(text: str) -> list[str]:
    """Return the sentences of a text, at most `SENTENCES_MAX`."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()][:SENTENCES_MAX]


class PhraseMatcher:
    """Compares texts with some phrases.

    Attributes:
        phrases: in order.
        sha256: of the file of vectors.
    """

    def __init__(self, vectors: TextVectors, phrases: Iterable[str]) -> None:
        self._vectors, self.phrases = vectors, tuple(phrases)
        self.sha256 = vectors.sha256
        made = [vectors.embed(phrase) for phrase in self.phrases]
        self._wanted: Floats = np.stack(made) if made else np.zeros((0, vectors.dimensions), np.float32)

    def compare(self, text: str) -> dict[str, float]:
        """Return how alike a text is to each phrase, 0..1: the cosine, 0 where that is negative."""
        bounded = text[:LONGEST]
        parts = dict.fromkeys((bounded, *sentences_in(bounded)))
        cosines = self._wanted @ np.stack([self._vectors.embed(part) for part in parts]).T
        best = np.clip(cosines.max(1), 0.0, 1.0)
        return {phrase: float(one) for phrase, one in zip(self.phrases, best, strict=True)}
