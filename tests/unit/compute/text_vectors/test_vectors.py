"""Text vectors: what texts of one meaning have in common, and that no file, however damaged, does any harm."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.compute.text_vectors.vectors import TextVectors, read_safetensors
from agent.errors import ModelError
from tests.unit.compute.text_vectors import small

VECTORS = TextVectors(small.content())
LENGTH = struct.unpack("<Q", small.content()[:8])[0]


def alike(one: str, other: str) -> float:
    return float(VECTORS.embed(one) @ VECTORS.embed(other))


def changed(name: str, **keys: Any) -> bytes:
    """The file with other keys of one tensor."""
    header = json.loads(small.content()[8 : 8 + LENGTH])
    header[name] = header[name] | keys
    return with_header(header)


def with_header(header: Any) -> bytes:
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + small.content()[8 + LENGTH :]


def test_words_of_one_meaning_are_alike() -> None:
    assert alike("help", "assist") > 0.7
    assert alike("somebody needs aid", "help") > 0.8
    assert abs(alike("help", "the parcel")) < 0.4
    assert VECTORS.dimensions == small.DIMENSIONS
    assert VECTORS.metadata["licence"] == "MIT"


@given(some.text(max_size=100))
def test_a_vector_has_the_length_1_or_there_is_no_word(text: str) -> None:
    length = float(np.linalg.norm(VECTORS.embed(text)))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0


def test_case_and_signs_do_not_count() -> None:
    assert np.array_equal(VECTORS.embed("HELP!!"), VECTORS.embed(" help "))
    assert not VECTORS.embed("?!").any()


def test_four_bits_keep_what_the_table_tells() -> None:
    vocab = small.tokenizer()["model"]["vocab"]
    exact = small.table()[vocab["▁help"]].astype(np.float32)
    (kept,) = VECTORS.rows(VECTORS._tokenizer.encode("help"))
    assert float(kept @ exact / np.linalg.norm(kept) / np.linalg.norm(exact)) > 0.98


@given(some.integers(0, len(small.content()) - 1))
def test_a_file_that_is_cut_is_refused(size: int) -> None:
    with pytest.raises(ModelError):
        TextVectors(small.content()[:size])


@given(some.integers(0, 8 + LENGTH - 1), some.integers(1, 255))
def test_a_header_with_another_byte_is_refused_or_read(at: int, other: int) -> None:
    damaged = bytearray(small.content())
    damaged[at] ^= other
    with suppress(ModelError):
        TextVectors(bytes(damaged)).embed("help")


@given(some.binary(max_size=200))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError):
        TextVectors(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (changed("vectors", dtype="I64"), "type I64"),
        (changed("vectors", shape=[1 << 40, 1 << 40]), "does not fit"),
        (changed("vectors", data_offsets=[-8, 8]), "does not fit"),
        (changed("scales", dtype="U8"), "does not fit"),
        (with_header({}), "no tensor"),
        (with_header([]), "no safetensors"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header"),
    ],
)
def test_why_a_file_is_refused_is_told(content: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        TextVectors(content)


def altered(name: str, at: int, value: bytes) -> bytes:
    """The file with other bytes in a tensor."""
    begin = 8 + LENGTH + json.loads(small.content()[8 : 8 + LENGTH])[name]["data_offsets"][0] + at
    return small.content()[:begin] + value + small.content()[begin + len(value) :]


SECOND = "▁b".encode()
"""A piece of the file, in place of its neighbour of the same size."""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (altered("scales", 0, np.float16(np.nan).tobytes()), "scale"),
        (altered("scales", 0, np.float16(-1).tobytes()), "scale"),
        (altered("ends", 0, b"\xff\xff\xff\x7f"), "pieces do not fit"),
        (altered("pieces", 0, b"\xff"), "not UTF-8"),
        (altered("pieces", 0, SECOND), "twice"),
    ],
)
def test_a_damaged_tensor_is_told(content: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        TextVectors(content)


def test_tensors_of_other_files_are_read_but_are_no_text_vectors() -> None:
    body = np.zeros(4, np.float32).tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    content = struct.pack("<Q", len(header)) + header + body
    tensors, metadata = read_safetensors(content)
    assert (tensors["w"].shape, metadata) == ((4,), {})
    with pytest.raises(ModelError, match="no tensor"):
        TextVectors(content)


def test_other_shapes_and_types_are_no_text_vectors() -> None:
    header = json.loads(small.content()[8 : 8 + LENGTH])
    count, half = header["vectors"]["shape"]
    for wrong in (
        {"vectors": header["vectors"] | {"shape": [count * half]}},
        {"vectors": header["vectors"] | {"shape": [count // 2, half * 2]}},
        {"scales": header["scales"] | {"dtype": "U8", "shape": [2 * count]}},
    ):
        with pytest.raises(ModelError, match=r"no text vectors|damaged"):
            TextVectors(with_header(header | wrong))
