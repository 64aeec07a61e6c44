from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.storage.clips.matroska import element, read_elements, uint, void, wide_size

IDS = st.sampled_from([0xEC, 0x4489, 0x23E383, 0x1F43B675])


@given(st.lists(st.tuples(IDS, st.binary(max_size=300)), max_size=8))
def test_what_is_written_is_read(parts: list[tuple[int, bytes]]) -> None:
    data = b"".join(element(number, body) for number, body in parts)
    found = list(read_elements(io.BytesIO(data), 0, len(data)))
    assert [(part.id, data[part.body : part.end]) for part in found] == parts


@given(st.lists(st.tuples(IDS, st.binary(max_size=300)), min_size=1, max_size=4), st.data())
def test_what_is_cut_off_is_read_up_to_there(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = [element(number, body) for number, body in parts]
    cut = data.draw(st.integers(0, len(b"".join(whole)) - 1))
    found = list(read_elements(io.BytesIO(b"".join(whole)[:cut]), 0, cut))
    assert len(found) == sum(len(b"".join(whole[: n + 1])) <= cut for n in range(len(whole)))


@given(st.binary(max_size=200))
def test_garbage_is_read_without_an_end_beyond_it(data: bytes) -> None:
    for part in read_elements(io.BytesIO(data), 0, len(data)):
        assert part.end is None or part.begin < part.body <= part.end <= len(data)


@pytest.mark.parametrize("size", [0, 126, 127, 128, 16382, 16383, 16384, 2_097_150, 2_097_151])
def test_a_size_at_the_edge_of_its_length_is_no_unknown_one(size: int) -> None:
    data = element(0xA3, bytes(size))
    (found,) = read_elements(io.BytesIO(data), 0, len(data))
    assert (found.end or 0) - found.body == size


def test_an_unknown_size_goes_on_to_the_end() -> None:
    data = b"\x18\x53\x80\x67" + wide_size(None) + b"anything"
    (found,) = read_elements(io.BytesIO(data), 0, len(data))
    assert (found.id, found.body, found.end) == (0x18538067, 12, None)


@given(st.integers(0, 2**64 - 1))
def test_integers_are_as_short_as_can_be(value: int) -> None:
    assert len(uint(0xD7, value)) == 2 + max(1, (value.bit_length() + 7) // 8)


@pytest.mark.parametrize("length", [2, 11, 128])
def test_a_void_has_its_length(length: int) -> None:
    assert len(void(length)) == length
