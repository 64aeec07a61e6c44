"""When what breaks: faults of several kinds spread over a trial at random, from a seed. No I/O."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        times: that it breaks in a trial.
        longest_s: that one of them lasts, s.
    """

    times: int
    longest_s: float


class Step(NamedTuple):
    """One thing to do.

    Attributes:
        at: seconds after the beginning.
        kind: of the fault.
        breaks: whether it begins, or is over.
    """

    at: float
    kind: str
    breaks: bool


SHORTEST_S = 0.1
"""Shortest duration of a fault, s."""
PAUSE_S = 1.0
"""Between two faults of one kind at least, where there is room: what is broken is first to be whole."""


def schedule(seed: int, seconds: float, kinds: Mapping[str, Kind]) -> list[Step]:
    """Return the steps of a trial, in order of time.

    Each fault of a kind has a slot of equal length in which it begins and ends at random. Kinds know nothing of
    each other, so that all may be broken at once.

    Args:
        seed: the same gives the same.
        seconds: that the trial lasts, s.
        kinds: by name; their order matters to what the seed gives.
    """
    chance = random.Random(seed)
    steps: list[Step] = []
    for name, kind in kinds.items():
        for number in range(kind.times):
            slot_s = seconds / kind.times
            room_s = max(SHORTEST_S, min(kind.longest_s, slot_s - min(PAUSE_S, slot_s / 2)))
            lasts_s = chance.uniform(SHORTEST_S, room_s)
            begins_s = number * slot_s + chance.uniform(0.0, slot_s - min(PAUSE_S, slot_s / 2) - lasts_s)
            steps += [Step(begins_s, name, True), Step(begins_s + lasts_s, name, False)]
    return sorted(steps)
