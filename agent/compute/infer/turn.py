"""One turn of a measurement: a few inferences that do not count, then as many as there is time for."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from agent.compute.infer.whole import Whole

SETTLE = 3
_SETTLE_S = 0.02
"""The turns of others have left the caches cold; what takes longer needs fewer inferences to forget that."""


class Turn(Struct, frozen=True, tag=True):
    """What was measured.

    Attributes:
        ms: of each inference that counts; at least one.
        cpu_ms: CPU time of all of these.
    """

    ms: tuple[float, ...]
    cpu_ms: float


def take(whole: Whole, seconds: float, cpu_s: Callable[[], float], settle: int = SETTLE) -> Turn:
    """Run the model for so long on what its input holds.

    Args:
        whole: the model.
        seconds: of the inferences that count, s; the last one may end later, and there is one in any case.
        cpu_s: tells the CPU time that what runs it has used so far, s.
        settle: inferences before that do not count; fewer of a slow model.

    Raises:
        BackendError: an inference failed.
    """
    began = time.perf_counter()
    for _ in range(settle):
        whole.invoke()
        if time.perf_counter() - began > _SETTLE_S:
            break
    ms: list[float] = []
    used, now = cpu_s(), time.perf_counter()
    until = now + seconds
    while not ms or now < until:
        began = now
        whole.invoke()
        now = time.perf_counter()
        ms.append((now - began) * 1e3)
    return Turn(tuple(ms), (cpu_s() - used) * 1e3)
