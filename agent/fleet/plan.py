"""The plan of a rollout: canary, then batches. Rules without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from agent.fleet.inventorykeys import Size

Batch = tuple[str, ...]


def plan(boards: Sequence[str], canary: Sequence[str], sizes: Sequence[Size]) -> tuple[Batch, ...]:
    """Every board in one batch.

    Args:
        boards: names, in the order in which they are to come.
        canary: that come first, as a batch of their own; those that are not among `boards` are left out. None of
            them is: the first board.
        sizes: of the batches after that; the last one is repeated. Shares are of all boards, rounded up.

    Returns:
        the batches in their order, the canary first; none is empty.
    """
    first = [name for name in boards if name in canary] or list(boards[:1])
    left = [name for name in boards if name not in first]
    batches = [tuple(first)] if first else []
    for number in range(len(left)):  # each batch takes one at least
        if not left:
            break
        size = _size(sizes[min(number, len(sizes) - 1)], len(boards))
        batches.append(tuple(left[:size]))
        left = left[size:]
    return tuple(batches)


def _size(size: Size, boards: int) -> int:
    if isinstance(size, int):
        return size
    return max(1, ceil(int(size.removesuffix("%")) * boards / 100))
