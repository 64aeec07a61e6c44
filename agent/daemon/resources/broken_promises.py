"""Remembers which promises are not kept, and logs when that begins, has another reason, and ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.governor.decision import Decision
from agent.compute.governor.readings import StreamReading

log = logging.getLogger(__name__)
_KEPT_S = 10.0
"""Time for which a promise must be kept until that is told, s."""
_WINDOW_S = 1.0
"""Time for which a promise that is told once was broken at least, s."""
_AGAIN_S = 60.0
"""Least time between two lines of the log about one promise, s."""
_FIGURE = re.compile(r"[\d.]+")


class BrokenPromise(Struct, frozen=True):
    """A promise that was told as not kept.

    Attributes:
        why: which, and why, with the newest figures.
        promise: pictures per second and ms that are promised.
        since_s, last_s: when it was told, and when it was not kept last, CLOCK_MONOTONIC, s.
        logged, logged_s: the text that was logged last, and when.
    """

    why: str
    promise: tuple[float, float]
    since_s: float
    last_s: float
    logged: str
    logged_s: float


class BrokenPromises:
    """Promises that are not kept, of streams and (an empty name) of the board. For one thread."""

    def __init__(self) -> None:
        self._broken: dict[str, BrokenPromise] = {}

    def why(self, name: str) -> str:
        """Return which promise of a stream is not kept, and why; empty: none is known."""
        return broken.why if (broken := self._broken.get(name)) else ""

    def update(self, decision: Decision, streams: Mapping[str, StreamReading] | None, now_s: float) -> None:
        """Follow a decision, and log what has changed.

        Args:
            decision: the newest.
            streams: that run; None: nothing is governed.
            now_s: CLOCK_MONOTONIC, s.
        """
        for name in list(self._broken):
            self._forget_replaced(name, streams)
        for name, why in decision.unmet.items():
            self._tell(name, why, _promise(name, streams), now_s)
        for name, broken in list(self._broken.items()):
            if name in decision.broken:
                why = decision.unmet.get(name) or decision.broken[name]
                self._broken[name] = replace(broken, why=why, last_s=now_s)
            elif now_s - broken.last_s >= _KEPT_S:
                del self._broken[name]
                kept = "as promised again" if name else "the board is within its limits again"
                log.info("%s%s, after %.0f s", _prefix(name), kept, broken.last_s - broken.since_s + _WINDOW_S)

    def _forget_replaced(self, name: str, streams: Mapping[str, StreamReading] | None) -> None:
        """Forget what is neither kept nor broken: a stream is lost or off, or promised something else now."""
        promise = _promise(name, streams)
        if streams is not None and promise == self._broken[name].promise:
            return
        del self._broken[name]
        if streams is not None and name in streams:
            log.info("%s%s", _prefix(name), _promised(*promise))

    def _tell(self, name: str, why: str, promise: tuple[float, float], now_s: float) -> None:
        """Remember a promise, and log it if that is new, or its reason is another one than the figures alone."""
        broken = self._broken.get(name)
        if broken is None:
            self._broken[name] = BrokenPromise(why, promise, now_s, now_s, why, now_s)
            log.warning("%s%s", _prefix(name), why)
        elif _reason(why) != _reason(broken.logged) and now_s - broken.logged_s >= _AGAIN_S:
            self._broken[name] = replace(broken, logged=why, logged_s=now_s)
            log.warning("%s%s", _prefix(name), why)


def _reason(text: str) -> str:
    """Return why a promise is not kept, without figures."""
    return _FIGURE.sub("", text.partition(": ")[2] or text)


def _promise(name: str, streams: Mapping[str, StreamReading] | None) -> tuple[float, float]:
    stream = streams.get(name) if streams is not None else None
    return (stream.min_fps, stream.max_latency_ms) if stream is not None else (0.0, 0.0)


def _promised(min_fps: float, max_latency_ms: float) -> str:
    parts = [
        f"{min_fps:g} pictures per second" if min_fps else "",
        f"{max_latency_ms:g} ms from capture to result" if max_latency_ms else "",
    ]
    told = " and ".join(part for part in parts if part)
    return f"now promised {told}" if told else "nothing is promised any more"


def _prefix(stream: str) -> str:
    return f"stream {stream}: " if stream else ""
