"""One turn of a measurement: inferences apart from each other, as those of a stream are.

Back to back they say something else: threads that were awake a moment ago are woken at no cost, and share the
cores in another way. There are machines where a second thread then saves a third of the time, and in a stream
costs a fifth more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from agent.compute.infer.whole import Whole

_PAUSE_S = 0.01


class Turn(Struct, frozen=True, tag=True):
    """What was measured.

    Attributes:
        ms: of each inference that counts.
        cpu_ms: CPU time of all of these.
    """

    ms: tuple[float, ...]
    cpu_ms: float


def take(whole: Whole, seconds: float, cpu_s: Callable[[], float]) -> Turn:
    """Run the model for so long on what its input holds, after one inference that does not count.

    Args:
        whole: the model.
        seconds: for how long, s; the last inference may end later, and there is one in any case.
        cpu_s: tells the CPU time that what runs it has used so far, s.

    Raises:
        BackendError: an inference failed.
    """
    whole.invoke()  # the turn of another has left the caches cold
    ms: list[float] = []
    used, now = cpu_s(), time.perf_counter()
    until = now + seconds
    while not ms or now < until:
        time.sleep(_PAUSE_S)
        began = time.perf_counter()
        whole.invoke()
        now = time.perf_counter()
        ms.append((now - began) * 1e3)
    return Turn(tuple(ms), (cpu_s() - used) * 1e3)
