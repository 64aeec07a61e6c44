"""Times models against each other, beside whatever else the machine does.

Models take short turns, so that what slows the machine slows all of them. In each turn the wall time of every
inference is taken where the model runs, and the CPU time of all. On one thread an inference takes no more CPU
time than wall time, and other work makes both longer, never shorter: wall time above all, by the waiting for a
core, CPU time a little, by cold caches. So the time of an inference in a turn is the lesser of the median wall
time and the mean CPU time, and that of a model the least of its turns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from agent.compute.infer.chain import TimingRun, time_runs
from agent.compute.infer.session import Session

_TURN_S, _TURNS = 0.002, 10
"""Time of a turn, s: mostly less than another process is given at once. Most turns in a round."""
_SETTLING, _ALIKE, _SAME, _GRAIN_MS = 2, 3, 0.01, 0.0001
"""Turns in a round, after which a model is timed no more if so many of its turns differ from the least by no more
than this share, or this time, which is that of reading a clock."""
_PATIENCE_S = 10.0
"""After which there is one turn in a round, s: where much else runs, each waits for its core."""


def time_turns(sessions: Sequence[Session], rounds: int) -> list[list[TimingRun]]:
    """Time models in turns on what their inputs hold.

    Args:
        sessions: of models that run on one thread, with their variants selected.
        rounds: each model runs in each of them at least once, and up to 20 ms while its times get shorter.

    Returns:
        Turns of each model.

    Raises:
        BackendError: an inference failed.
    """
    found: list[list[TimingRun]] = [[] for _ in sessions]
    until = time.monotonic() + _PATIENCE_S
    for number in range(rounds * _TURNS):
        late = number >= rounds and time.monotonic() > until
        if late or all(is_timed(turns, rounds) for turns in found):
            break
        order = range(len(sessions)) if number % 2 == 0 else reversed(range(len(sessions)))
        for at in order:
            found[at].append(_turn(sessions[at]))
    return found


def is_timed(turns: Sequence[TimingRun], rounds: int) -> bool:
    """Return True if a model was timed long enough for so many rounds, or its least times are alike."""
    if len(turns) < rounds:
        return False
    if sum(turn.cpu_ms for turn in turns) >= rounds * _TURNS * _TURN_S * 1e3:
        return True
    times = _least_times(turns)
    return len(turns) >= rounds * _SETTLING and times[-1] <= times[0] * (1 + _SAME) + _GRAIN_MS


def _turn(session: Session) -> TimingRun:
    from agent.compute.infer.worker import WorkerSession

    if isinstance(session, WorkerSession):  # here, the calls to its process would count
        return session.time_turn(_TURN_S)
    return time_runs(session.invoke, _TURN_S, time.thread_time)


def inference_ms(turn: TimingRun) -> float:
    """Return the time of an inference on one thread in a turn, without the time in which it waited, ms."""
    wall = float(np.median(turn.ms))
    return min(wall, turn.cpu_ms / len(turn.ms)) if turn.cpu_ms > 0 else wall  # 0: this clock is too coarse


def least_ms(turns: Sequence[TimingRun]) -> float:
    """Return the time of an inference of a model from its turns, ms."""
    return min(map(inference_ms, turns))


def _least_times(turns: Sequence[TimingRun]) -> list[float]:
    return sorted(map(inference_ms, turns))[:_ALIKE]
