"""Outcomes of an update on the boards of a batch, and whether a rollout goes on after them. Rules without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Literal, get_args

from msgspec import Struct

from agent.update.fleet.inventory import Size

Kind = Literal["updated", "current", "refused", "rolled_back", "failed", "unreachable"]
"""updated: the board has committed the version. current: it had it already. refused: the board did not take it,
and goes on as it was. rolled_back: it tried, and rolled back. failed: it could not be asked to, or nobody knows
why. unreachable: it did not answer; nothing is known against the version."""
KINDS: tuple[Kind, ...] = get_args(Kind)
GOOD: frozenset[Kind] = frozenset(("updated", "current"))
BAD: frozenset[Kind] = frozenset(("refused", "rolled_back", "failed"))


class BoardOutcome(Struct, frozen=True, omit_defaults=True):
    """Outcome of an update on one board.

    Attributes:
        board: its name.
        kind: see `Kind`.
        reason: in words.
        version: that it runs now; empty: unknown.
        seconds: that it took in all.
        sent: bytes that went to it for the bundle. size: of the bundle, bytes.
        downtime_s: in which the daemon did not infer; None: it was not stopped, or did not tell.
    """

    board: str
    kind: Kind
    reason: str = ""
    version: str = ""
    seconds: float = 0.0
    sent: int = 0
    size: int = 0
    downtime_s: float | None = None

    @property
    def is_good(self) -> bool:
        """True if the board has the version."""
        return self.kind in GOOD


def counted(outcomes: Iterable[BoardOutcome]) -> dict[Kind, int]:
    """Count the outcomes by kind, without the kinds that do not occur."""
    kinds = [one.kind for one in outcomes]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def how_many(count: int) -> str:
    """Format a number of boards."""
    return "1 board" if count == 1 else f"{count} boards"


def stop_reason(outcomes: Sequence[BoardOutcome], share: float, *, canary: bool) -> str:
    """Return why a rollout stops after a batch; empty if it continues.

    An unreachable board says nothing about the version and does not count. But every canary has to show that the
    version is good, and a whole batch out of reach means that something else is wrong.

    Args:
        outcomes: of each board of the batch.
        share: of the boards that were reached that may fail, 0 to 1.
        canary: whether these are the canaries.
    """
    bad = [one.board for one in outcomes if one.kind in BAD]
    away = [one.board for one in outcomes if one.kind == "unreachable"]
    reached = len(outcomes) - len(away)
    if canary and (bad or away):
        return f"the canary {', '.join([*bad, *away])} did not take the version"
    if outcomes and not reached:
        return "no board of the batch can be reached: look at the network"
    if bad and len(bad) > share * reached:
        return f"{len(bad)} of {how_many(reached)} failed ({', '.join(bad)}), {share:.0%} may"
    return ""


# The plan of a rollout: canary, then batches. Rules without I/O.

Batch = tuple[str, ...]


def plan(boards: Sequence[str], canary: Sequence[str], sizes: Sequence[Size]) -> tuple[Batch, ...]:
    """Divide the boards into batches.

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
