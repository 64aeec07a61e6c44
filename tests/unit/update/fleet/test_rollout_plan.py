"""The plan: every board once, the canary first, sizes as they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.update.fleet import Size
from agent.update.fleet.rollout import plan

NAMES = some.lists(some.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=40)
SIZES = some.lists(
    some.integers(1, 50) | some.integers(1, 100).map(lambda share: f"{share}%"), min_size=1, max_size=5
)


@given(NAMES, NAMES, SIZES)
def test_every_board_is_in_one_batch_and_none_is_empty(
    boards: list[str], canary: list[str], sizes: list[Size]
) -> None:
    batches = plan(boards, canary, sizes)
    assert sorted(name for batch in batches for name in batch) == sorted(boards)
    assert all(batches)


@given(NAMES, NAMES, SIZES)
def test_the_canaries_come_first_and_alone(boards: list[str], canary: list[str], sizes: list[Size]) -> None:
    batches = plan(boards, canary, sizes)
    wanted = [name for name in boards if name in canary] or boards[:1]
    assert list(batches[0] if batches else ()) == wanted


@given(NAMES, some.lists(some.integers(1, 9), min_size=1, max_size=5))
def test_no_batch_is_larger_than_it_may_be(boards: list[str], sizes: list[int]) -> None:
    for number, batch in enumerate(plan(boards, (), sizes)[1:]):
        assert len(batch) <= sizes[min(number, len(sizes) - 1)]


@given(NAMES, NAMES, SIZES)
def test_boards_keep_their_order(boards: list[str], canary: list[str], sizes: list[Size]) -> None:
    later = [name for batch in plan(boards, canary, sizes)[1:] for name in batch]
    assert later == [name for name in boards if name in later]


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (1, [5], [1]),
        (12, [4, 4, 4], [1, 4, 4, 3]),
        (11, ["10%", "25%", "100%"], [1, 2, 3, 5]),
        (10, [2], [1, 2, 2, 2, 2, 1]),
        (3, ["1%"], [1, 1, 1]),
        (0, [1], []),
    ],
)
def test_sizes_are_numbers_or_shares_rounded_up(count: int, sizes: list[Size], expected: list[int]) -> None:
    boards = [f"b{number}" for number in range(count)]
    assert [len(batch) for batch in plan(boards, (), sizes)] == expected
