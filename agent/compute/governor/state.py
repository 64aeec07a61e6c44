"""What the governor has decided for one stream, and the levels of what can be reduced."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from agent.compute.governor.readings import StreamReading
from agent.compute.governor.steps import Step, cost_of
from agent.config.governor import Giving, GovernorConfig
from agent.types import StreamBudget

RETRY_S, RETRY_MAX_S = 10.0, 1200.0
"""First and longest pause before something comes back again that had to give way soon after it came back, s."""

SAMPLES_S = (0.0, 1.0, 5.0)
SNAPSHOTS = ((80, 1.0), (60, 3.0), (40, 10.0))
CLIPS = (1.0, 0.5, 0.2)
SYNC_S = (0.0, 0.5, 2.0)
"""Levels: time between samples, s; quality and factor on the pause of snapshots; share of the pictures of clips;
time that an event may wait for others to be synced with it, s."""
_ROUNDING = 0.1
"""Share of a stride by which a measured rate may be too high."""
_FIGURE = re.compile(r"(?<![\w.-])\d+(\.\d+)?(?![\w-])")
"""Number that is no part of a name, in a reason that stays the same while it changes."""
Domain = Literal["processors", "memory", "disk", "link"]
"""Kind of shortage for which something was taken; it comes back when that is over."""
PROCESSORS: Domain = "processors"
EVERYTHING = "everything again"
"""Text for a stream of which nothing is reduced any more."""
LEVELS: Mapping[Giving, int] = {"samples": 3, "snapshots": 3, "clips": 3, "decoding": 2}


class StreamState:
    """Decisions for one stream.

    Attributes:
        stride, variant: of its inferences, see `StreamBudget`.
        levels: of what else can be reduced; 0: it is not.
        lowered: for each of these levels what was short then, and why it was taken.
        cause: why it infers less.
        promise: pictures per second and ms that it is promised.
        broken_s: since when that is not kept; None: it is.
        idle_s: since when that is so although all have given way and processors are idle; None: it is not.
        reliefs: decisions that have taken something from others since then.
        is_futile: True if others can do nothing for it.
        came_back_s: when it had something back that takes processor time.
        retry_s, retry_at: the next pause after something came back too early, and the end of the present one.
    """

    def __init__(self) -> None:
        self.stride, self.variant = 1, ""
        self.levels: dict[Giving, int] = dict.fromkeys(LEVELS, 0)
        self.lowered: dict[Giving, list[tuple[Domain, str]]] = {}
        self.cause = ""
        self.promise = 0.0, 0.0
        self.broken_s: float | None = None
        self.idle_s: float | None = None
        self.reliefs, self.is_futile = 0, False
        self.came_back_s, self.retry_s, self.retry_at = float("-inf"), RETRY_S, float("-inf")

    def step(self, stream: StreamReading) -> Step:
        """Return the present step with what it costs now."""
        known = {variant.name: variant for variant in stream.variants}
        variant = known.get(self.variant, stream.variants[0])
        return Step(self.stride, variant.name, cost_of(stream, self.stride, variant))

    def forget_unknown(self, stream: StreamReading, config: GovernorConfig) -> None:
        """Give back what may no longer be reduced, and forget a size or a promise that no longer holds."""
        promise = stream.min_fps, stream.max_latency_ms
        if promise != self.promise:
            self.promise = promise
            self.keeps_promise()
        for giving in self.levels:
            if giving not in config.order or (giving == "decoding" and not stream.has_decoding):
                self.levels[giving] = 0
                self.lowered.pop(giving, None)
        if "inference" not in config.order:
            self.stride, self.variant = 1, ""
        self.stride = min(self.stride, config.max_stride)
        if self.variant not in [variant.name for variant in stream.variants]:
            self.variant = ""

    @property
    def infers_less(self) -> bool:
        return self.stride > 1 or bool(self.variant)

    @property
    def is_reduced(self) -> bool:
        return self.infers_less or any(self.levels.values())

    @property
    def why(self) -> str:
        """Text of what is reduced and why; empty: nothing is."""
        causes = [self.cause] if self.infers_less else []
        causes += [cause for levels in self.lowered.values() for _, cause in levels]
        newest = {without_figures(cause): cause for cause in causes}
        return f"{described(self)}: {'; '.join(newest.values())}" if self.is_reduced else ""

    def keeps_promise(self) -> None:
        """Forget that a promise was broken."""
        self.broken_s = self.idle_s = None
        self.reliefs, self.is_futile = 0, False

    def lower(self, giving: Giving, domain: Domain, why: str) -> None:
        """Take a level."""
        self.levels[giving] += 1
        self.lowered.setdefault(giving, []).append((domain, why))

    def give_back(self, giving: Giving, domain: Domain) -> bool:
        """Give back a level that was taken for a domain; return False if there is none."""
        levels = self.lowered.get(giving, [])
        found = next((at for at, (one, _) in enumerate(levels) if one == domain), None)
        if found is None:
            return False
        del levels[found]
        self.levels[giving] -= 1
        return True

    def gave_processors(self, giving: Giving) -> bool:
        """Return True if a level was taken because the processors were short."""
        return any(domain == PROCESSORS for domain, _ in self.lowered.get(giving, ()))

    def budget(self, stream: StreamReading) -> StreamBudget:
        """Return what the stream may use.

        While key frames alone are decoded, a stride leaves no more inferences than before: usually each key frame
        is inferred. A camera whose pictures are all key frames, or whose others still come, keeps its stride.
        """
        quality, factor = SNAPSHOTS[self.levels["snapshots"]]
        samples_s, share = SAMPLES_S[self.levels["samples"]], CLIPS[self.levels["clips"]]
        if not self.levels["decoding"]:
            return StreamBudget(self.stride, self.variant, samples_s, quality, factor, share)
        most = stream.fps / self.stride
        stride = math.ceil(stream.handled_fps / most - _ROUNDING) if most > 0.0 else self.stride
        stride = max(1, min(self.stride, stride))
        return StreamBudget(stride, self.variant, samples_s, quality, factor, share, "keyframes")


def has(stream: StreamReading, giving: Giving) -> bool:
    """Return True if a stream has something that can be reduced."""
    return {
        "samples": stream.has_samples,
        "snapshots": stream.has_snapshots,
        "clips": stream.has_clips,
        "decoding": stream.has_decoding,
    }[giving]


def sharers(name: str, streams: Mapping[str, StreamReading]) -> list[str]:
    """Return the streams that have the camera of a stream, itself included."""
    camera = streams[name].camera
    return [one for one, stream in streams.items() if one == name or (camera and stream.camera == camera)]


def without_figures(reason: str) -> str:
    """Return a reason without its numbers: two that differ in these alone are of one kind."""
    return _FIGURE.sub("", reason)


def described(state: StreamState) -> str:
    """Return what a stream has now, for people."""
    parts = [
        "key frames alone are decoded" if state.levels["decoding"] else "",
        f"one picture in {state.stride} is inferred" if state.stride > 1 and not state.levels["decoding"] else "",
        f"size {state.variant}" if state.variant else "",
        f"detections every {SAMPLES_S[state.levels['samples']]:g} s" if state.levels["samples"] else "",
        f"snapshots {SNAPSHOTS[state.levels['snapshots']][1]:g} times rarer" if state.levels["snapshots"] else "",
        f"clips with {CLIPS[state.levels['clips']]:.0%} of their pictures" if state.levels["clips"] else "",
    ]
    return ", ".join(part for part in parts if part) or EVERYTHING


def sync_text(level: int) -> str:
    """Return what a level of `SYNC_S` means, for people."""
    wait_s = SYNC_S[level]
    return (
        f"events wait up to {wait_s:g} s to be synced together"
        if wait_s
        else "each event is synced at once again"
    )
