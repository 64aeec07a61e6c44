from __future__ import annotations

import struct
from collections import deque

import flatbuffers
import pytest

from agent.compute.tflite.read import ByteSource
from agent.errors import ModelError


def sample() -> bytes:
    builder = flatbuffers.Builder(64)
    text = builder.CreateString("grüße")
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependInt32Slot(1, -7, 0)
    builder.PrependUint64Slot(2, 2**40, 0)
    builder.PrependFloat32Slot(3, 0.5, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def test_fields_and_defaults() -> None:
    root = ByteSource(sample(), "it").root()
    assert root.string(0) == "grüße"
    assert root.length(0) == 7
    assert root.i32(1) == -7
    assert root.u64(2) == 2**40
    assert root.f32(3) == 0.5
    assert (root.u8(9), root.i8(9), root.i32(9, 5), root.u32(9), root.u64(9)) == (0, 0, 5, 0, 0)
    assert root.f32(9) is None
    assert root.table(9) is None
    assert root.tables(9) == []
    assert root.string(9) == ""
    assert root.array(9, "<f4").size == 0


def read(content: bytes) -> None:
    root = ByteSource(content, "it").root()
    root.string(0)
    root.i32(1)
    root.u64(2)
    root.f32(3)


@pytest.mark.parametrize("size", range(len(sample()) - 8))
def test_every_cut_is_noticed(size: int) -> None:
    with pytest.raises(ModelError, match="it is truncated or damaged"):
        read(sample()[:size])


def test_a_table_that_is_its_own_children_is_noticed() -> None:
    # vtable (4 bytes + 2 slots), table at 12 with a vector at 20 whose many entries all point back to the table.
    count = 40_000
    head = struct.pack("<IHHHH", 12, 8, 8, 4, 0)
    content = head + struct.pack("<iI", 8, 4) + struct.pack("<I", count)
    content += b"".join(struct.pack("<i", 12 - (24 + 4 * i)) for i in range(count))
    with pytest.raises(ModelError):
        ByteSource(content, "it").root().tables(0)


def test_shared_targets_cannot_make_work_without_end() -> None:
    source = ByteSource(sample(), "it")
    with pytest.raises(ModelError, match="more than it can hold"):
        deque((source.root() for _ in range(10**6)), maxlen=0)
