"""What the governor has decided for one stream, and the levels of what can be reduced."""

from __future__ import annotations

from collections.abc import Container, Mapping

from agent.compute.governor.readings import StreamReading
from agent.compute.governor.steps import Step, cost_of
from agent.config.governor import Giving
from agent.types import StreamBudget

RETRY_S, RETRY_MAX_S = 10.0, 1200.0
"""First and longest pause before something comes back again that had to give way soon after it came back, s."""

SAMPLES_S = (0.0, 1.0, 5.0)
SNAPSHOTS = ((80, 1.0), (60, 3.0), (40, 10.0))
CLIPS = (1.0, 0.5, 0.2)
SYNC_S = (0.0, 0.5, 2.0)
"""Levels: time between samples, s; quality and factor on the pause of snapshots; share of the pictures of clips;
time that an event may wait for others to be synced with it, s."""
LEVELS: Mapping[Giving, int] = {"samples": 3, "snapshots": 3, "clips": 3, "decoding": 2}


class StreamState:
    """What was decided for one stream."""

    def __init__(self) -> None:
        self.stride, self.variant = 1, ""
        self.levels: dict[Giving, int] = dict.fromkeys(LEVELS, 0)
        self.why = self.cause = ""
        self.broken_s: float | None = None
        self.came_back_s, self.retry_s, self.retry_at = float("-inf"), RETRY_S, float("-inf")

    def step(self, stream: StreamReading) -> Step:
        """Return the present step with what it costs now."""
        known = {variant.name: variant for variant in stream.variants}
        variant = known.get(self.variant, stream.variants[0])
        return Step(self.stride, variant.name, cost_of(stream, self.stride, variant))

    def forget_unknown(self, stream: StreamReading, order: Container[Giving]) -> None:
        """Give back what may no longer be reduced, and a size that is no longer among those that may be used."""
        for giving in self.levels:
            if giving not in order:
                self.levels[giving] = 0
        if "inference" not in order:
            self.stride, self.variant = 1, ""
        if self.variant not in [variant.name for variant in stream.variants]:
            self.variant = ""

    @property
    def infers_less(self) -> bool:
        return self.stride > 1 or bool(self.variant)

    @property
    def is_reduced(self) -> bool:
        return self.infers_less or any(self.levels.values())

    @property
    def budget(self) -> StreamBudget:
        quality, factor = SNAPSHOTS[self.levels["snapshots"]]
        samples_s, share = SAMPLES_S[self.levels["samples"]], CLIPS[self.levels["clips"]]
        if not self.levels["decoding"]:
            return StreamBudget(self.stride, self.variant, samples_s, quality, factor, share)
        # Key frames are rarer than any stride leaves.
        return StreamBudget(1, self.variant, samples_s, quality, factor, share, "keyframes")


def has(stream: StreamReading, giving: Giving) -> bool:
    """Return True if a stream has something that can be reduced."""
    return {
        "samples": stream.has_samples,
        "snapshots": stream.has_snapshots,
        "clips": stream.has_clips,
        "decoding": stream.has_decoding,
    }[giving]


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
    return ", ".join(part for part in parts if part) or "everything again"
