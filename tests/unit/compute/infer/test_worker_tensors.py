"""Tensors in shared memory, and answers that cannot be true."""

from __future__ import annotations

import fcntl
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.child import InvalidMessageError, encode
from agent.compute.infer import worker
from agent.compute.tflite.model import TensorSpec


def test_the_size_of_the_shared_memory_cannot_be_changed() -> None:
    memory = worker.create_shared_memory()
    for size in (0, worker.TENSORS_BYTES - 4096, worker.TENSORS_BYTES + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(memory).st_blocks == 0
    os.close(memory)


def test_memory_of_another_kind_is_not_mapped() -> None:
    memory = os.memfd_create("open")
    os.ftruncate(memory, 4096)
    with pytest.raises(InvalidMessageError, match="not sealed"):
        worker.map_tensors(memory, worker.TensorRegion((), (), 0, 4096))
    os.close(memory)


SPEC = TensorSpec("in", (1, 4), "float32")


@pytest.mark.parametrize(
    ("spec", "offset", "size"),
    [
        (SPEC, 0, 1 << 40),
        (SPEC, 0, 1),
        (SPEC, -4096, 4096),
        (SPEC, 1, 4096),
        (SPEC, worker.TENSORS_BYTES, 4096),
        (replace(SPEC, shape=(1 << 31, 1 << 31, 4)), 0, 4096),
        (replace(SPEC, shape=(-1, 4)), 0, 4096),
        (replace(SPEC, shape=(1,) * 100), 0, 4096),
        (replace(SPEC, dtype="object"), 0, 4096),
        (replace(SPEC, dtype="f8,(10000,10000)f8"), 0, 4096),
    ],
)
def test_tensors_that_do_not_lie_where_it_says_are_refused(spec: TensorSpec, offset: int, size: int) -> None:
    with pytest.raises(InvalidMessageError):
        worker.decode_answer(encode(worker.TensorRegion((spec,), (), offset, size)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_answer_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        worker.decode_answer(data)
