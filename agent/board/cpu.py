"""Processor time of the threads of this process.

Source: https://man7.org/linux/man-pages/man5/proc.5.html (`/proc/[pid]/task/[tid]/stat`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.board.proc import read_text

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def thread_seconds(tasks: Path = Path("/proc/self/task")) -> dict[int, float]:
    """Return the processor time of each thread of this process by its native id, s, in steps of 10 ms."""
    return dict(_times(tasks))


def _times(tasks: Path) -> Iterator[tuple[int, float]]:
    try:
        threads = [path for path in tasks.iterdir() if path.name.isdigit()]
    except OSError:
        return
    for thread in threads:
        # The second field is a name that may hold anything, also spaces and parentheses.
        fields = read_text(thread / "stat").rpartition(")")[2].split()
        if len(fields) > 12 and fields[11].isdigit() and fields[12].isdigit():
            yield int(thread.name), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def thread_names() -> dict[int, str]:
    """Return the names of Python's threads by their native ids."""
    return {one.native_id: one.name for one in threading.enumerate() if one.native_id is not None}


class StreamCpuMeter:
    """Adds up the processor time of the threads of each stream, which come and go. Any thread may call.

    Threads belong to a stream by their names, such as `stream-front` and `clips-front`. What a thread used
    between the last call of `poll` and its end is not known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[str, float]] = {}
        self._totals: dict[str, float] = {}

    def poll(
        self, prefixes: tuple[str, ...], seconds: Mapping[int, float], names: Mapping[int, str]
    ) -> dict[str, float]:
        """Add what each thread has used since the last call; return the totals by stream, s.

        Args:
            prefixes: of the names of streams' threads, such as `stream-`.
            seconds: see `thread_seconds`.
            names: see `thread_names`.
        """
        with self._lock:
            for thread, used in seconds.items():
                stream = _stream_of(names.get(thread, ""), prefixes)
                if stream is None:
                    continue
                name, before = self._seen.get(thread, ("", 0.0))
                if name != stream or used < before:  # the kernel has given the number to a new thread
                    before = 0.0
                self._seen[thread] = stream, used
                self._totals[stream] = self._totals.get(stream, 0.0) + used - before
            self._seen = {thread: seen for thread, seen in self._seen.items() if thread in seconds}
            return dict(self._totals)

    def forget(self, streams: set[str]) -> None:
        """Forget the totals of all streams but these."""
        with self._lock:
            self._totals = {name: total for name, total in self._totals.items() if name in streams}


def _stream_of(thread: str, prefixes: tuple[str, ...]) -> str | None:
    return next((thread.removeprefix(one) for one in prefixes if thread.startswith(one)), None)
