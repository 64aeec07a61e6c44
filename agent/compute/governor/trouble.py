"""What is wrong, in words: a broken promise, heat, a slow disk, a slow network; and what time is left."""

from __future__ import annotations

from collections.abc import Container, Mapping

from agent.compute.governor import pace
from agent.compute.governor.readings import BoardReading, StreamReading
from agent.config.governor import Giving
from agent.types import DiskLoad, LinkLoad

_AHEAD_S, _NEAR_S = 90.0, 45.0
"""The load is reduced if the limit would be reached within this time, s: by a curve, and by the slope alone."""
UNLOADED_C = 40.0
"""Temperature of a board without load that is assumed, °C; in a warm place the load is reduced too far."""
_BY_LOAD_C = 4.0
"""Part of a temperature that comes from the load at least, °C."""
COLD_C, _WARM_C = 15.0, 6.0
"""So far below its limit a board is cold, and everything may come back, °C; nearer than the second, the slope of
the temperature alone is reason enough to reduce the load."""
COOL_C = 2.0
"""What comes back must leave the temperature so far below its limit, °C."""
_LEAST_KEPT, _MOST_KEPT = 0.3, 0.9
"""Least and greatest share of the load that one reduction because of heat leaves."""

_COMMIT_MS, _WAITING_S, _BEHIND_S = 400.0, 1.5, 2.0
"""The disk is too slow from these times on: of a commit, of a waiting event, of a picture of a clip."""
_MEMORY_FREE = 0.05
"""Memory is short below this free share."""
_UNSENT_BYTES, _OLDEST_S = 65_536, 2.0
"""The network is too slow from so many waiting bytes, or such an age of an unacknowledged event, on."""


NO_INFERENCE = "`governor.order` lets no inference give way"
_FAR, _NEARLY = 0.7, 0.96
"""Shares of a promised rate: below the first it is far from kept; from the second on, for 10 s, it is kept."""
_PICTURE, _FEW = 0.5, 0.25
"""A window of two seconds has few pictures: so many per second may be missing, but no more than this share."""


def broken_promise(stream: StreamReading) -> str:
    """Return which promise a stream's window breaks; empty: none."""
    if _lacks_rate(stream):
        most = f", of {stream.fps:.3g} that its camera gives" if stream.fps < stream.min_fps else ""
        rates = [rate for rate in (stream.inferred_fps, stream.inferred_lately) if rate is not None]
        return f"infers {min(rates):.1f} of {stream.min_fps:g} pictures per second{most}"
    if stream.latency_ms is not None and 0.0 < stream.max_latency_ms < stream.latency_ms:
        return f"takes {stream.latency_ms:.4g} of {stream.max_latency_ms:g} ms"
    return ""


def _lacks_rate(stream: StreamReading) -> bool:
    """Return True if the newest window clearly has too little, or a little too little as those before it."""
    if stream.inferred_fps is None or stream.inferred_fps >= _NEARLY * min(stream.min_fps, stream.fps_now):
        return False
    if stream.inferred_lately is not None and stream.inferred_lately < _NEARLY * min(
        stream.min_fps, stream.fps_lately
    ):
        return True
    promised = min(stream.min_fps, 0.9 * stream.fps_now)
    return stream.inferred_fps < promised - min(_PICTURE, _FEW * promised)


def is_hopeless(stream: StreamReading) -> bool:
    """Return True if others can give a stream nothing: an inference alone takes longer than is promised."""
    return 0.0 < stream.max_latency_ms < stream.least_ms and not _lacks_rate(stream)


def is_far_below(stream: StreamReading) -> bool:
    """Return True if a stream gets much less than it is promised."""
    slow = stream.inferred_fps is not None and stream.inferred_fps < _FAR * min(stream.min_fps, stream.fps_now)
    if slow or stream.latency_ms is None or stream.max_latency_ms < stream.least_ms:
        return slow
    return 0.0 < stream.max_latency_ms < _FAR * stream.latency_ms


def who_has_it(
    name: str,
    board: BoardReading,
    streams: Mapping[str, StreamReading],
    order: Container[Giving],
    broken: Container[str],
    reduced: Container[str],
) -> str:
    """Return who uses what a stream lacks for which nothing can give way.

    Args:
        name: of the stream.
        board: the newest reading.
        streams: the newest readings.
        order: what may be reduced.
        broken: streams that lack something.
        reduced: streams that have given way.
    """
    stream = streams[name]
    if board.slowed:
        return board.slowed
    if is_hopeless(stream):
        return f"an inference alone takes {stream.least_ms:.3g} ms of processor time here"
    if "inference" not in order:
        return NO_INFERENCE
    if board.idle >= pace.IDLE:
        return f"its inferences take too long, though {board.idle:.0%} of the processors are idle"
    if board.quota is not None:
        return f"the daemon may use {board.quota:.2g} processors alone (CPUQuota)"
    if board.others >= 0.25:
        return f"other programs use {board.others:.0%} of the processors"
    rivals = {one: other for one, other in streams.items() if one != name and other.inferred_fps}
    lacking = [one for one, other in rivals.items() if other.priority == stream.priority and one in broken]
    least = [one for one, other in rivals.items() if other.priority <= stream.priority and one in reduced]
    spared = [one for one in rivals if one not in lacking and one not in least]
    if spared:
        return f"{', '.join(spared)} may not give way for it"
    least = [one for one in least if one not in lacking]
    text = f"this board is too slow for it{''.join(f' and {one}' for one in lacking)}"
    return f"{text}, with as little as possible for {', '.join(least)}" if least else text


def heat_trouble(board: BoardReading) -> str:
    """Return why the load must be reduced to keep the board cool; empty: it need not."""
    if board.slowed:
        return board.slowed
    if board.celsius is None:
        return ""
    if board.celsius >= board.limit_c:
        return f"the board is at {board.celsius:.0f} °C"
    near = board.settles_c is None and board.celsius >= board.limit_c - _WARM_C
    if board.limit_in_s is not None and board.limit_in_s <= (_NEAR_S if near else _AHEAD_S):
        if board.settles_c is None and not near:
            return ""
        return f"the board would reach {board.limit_c:.0f} °C in {board.limit_in_s:.0f} s"
    return ""


def kept_share(board: BoardReading) -> float:
    """Return the share of the load that keeps the board a little below its limit."""
    if board.settles_c is None or board.settles_c <= board.limit_c:
        return 0.75
    unloaded_c = _unloaded(board)
    kept = (board.limit_c - COOL_C - unloaded_c) / max(1.0, board.settles_c - unloaded_c)
    return min(_MOST_KEPT, max(_LEAST_KEPT, kept))


def spare(board: BoardReading, *, now_s: float, warm_s: float, heat_s: float) -> float:
    """Return the processor time per second that may be used in addition, as a share of one processor.

    It is negative where the temperature allows nothing, or is not known well enough yet.

    Args:
        board: the newest reading.
        now_s: CLOCK_MONOTONIC, s.
        warm_s: when the board was last seen to be warm, s; -inf: it was not when its temperature was last read.
        heat_s: when the load was last reduced because of heat, s.
    """
    idle = (board.idle - pace.RESERVE) * board.cores
    if board.celsius is None and now_s - warm_s < pace.BLIND_S:
        return -1.0
    if board.celsius is None or board.celsius < board.limit_c - COLD_C:
        return max(0.0, idle)
    if board.settles_c is None or now_s - heat_s < pace.HEAT_CALM_S:
        return -1.0
    busy = max(0.05, 1.0 - board.idle) * board.cores
    unloaded_c = _unloaded(board)
    allowed_c = board.limit_c - COOL_C - unloaded_c
    by_heat = busy * (allowed_c / max(1.0, board.settles_c - unloaded_c) - 1.0)
    return max(0.0, min(idle, by_heat)) if by_heat >= 0.0 else -1.0


def _unloaded(board: BoardReading) -> float:
    """Return the temperature without load that is assumed, °C: a little below the present one at most."""
    return UNLOADED_C if board.celsius is None else min(UNLOADED_C, board.celsius - _BY_LOAD_C)


def memory_trouble(board: BoardReading) -> str:
    """Return how memory is short; empty: it is not, or that is unknown."""
    if board.memory_free is None or board.memory_free >= _MEMORY_FREE:
        return ""
    return f"{board.memory_free:.0%} of the memory are free"


def disk_trouble(disk: DiskLoad) -> str:
    """Return how the disk is too slow; empty: it is not."""
    if disk.commit_ms is not None and disk.commit_ms > _COMMIT_MS:
        return f"the disk takes {disk.commit_ms:.0f} ms to store an event"
    if disk.waiting_s > _WAITING_S:
        return f"an event has been waiting for the disk for {disk.waiting_s:.1f} s"
    if disk.clips_behind_s > _BEHIND_S:
        return f"pictures of clips have been waiting for the disk for {disk.clips_behind_s:.1f} s"
    return ""


def link_trouble(link: LinkLoad) -> str:
    """Return how the connection to the broker is too slow; empty: it is not, or there is none."""
    if not link.connected:
        return ""
    if link.oldest_s > _OLDEST_S:
        return f"the broker has not acknowledged an event for {link.oldest_s:.1f} s"
    if link.unsent_bytes > _UNSENT_BYTES:
        return f"{link.unsent_bytes // 1024} kB are waiting to be sent"
    return ""
