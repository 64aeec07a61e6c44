"""Runs a rung before it is needed: the first inference is slow, and one that is interrupted is slower still."""

from __future__ import annotations

import time

from agent.compute.infer.backend import Session

_RUNS = 3


def usual_ns(session: Session, rung: str) -> int:
    """How long an inference takes once it is warm: the shortest of a few, ns. The session uses this rung then.

    Raises:
        BackendError: it failed.
    """
    session.use(rung)
    session.invoke()
    times = []
    for _ in range(_RUNS):
        began = time.monotonic_ns()
        session.invoke()
        times.append(time.monotonic_ns() - began)
    return min(times)
