"""What streams may use: steps of their inferences, levels of everything else, and the changes of a decision."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from agent.config.governor import Giving, GovernorConfig
from agent.features.governor.readings import BoardReading, Change, Readings, StreamReading, VariantCost
from agent.types import StreamBudget

CHANGES_PER_MINUTE = 6
"""Decisions in any minute that change something; what one decision changes at once counts once. What heat and a
weak supply need does not count."""
FOR_PROMISES, FOR_PROMISES_BACK, FOR_PROMISES_ROOM = 3, 2, 1
"""Decisions of a minute that are left for promises when memory, the disk or the network takes something, when it
gives that back, and when processor time comes back."""
ROOM, TRIAL = "there is room for it", "for a trial"
CONFIGURED, OFF = "as it is configured now", "the governor is off"
"""Reasons of changes that no load has caused, but the configuration of a stream or of the governor."""
EVERYTHING = "everything again"
"""Text for a stream of which nothing is reduced any more."""
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
LEVELS: Mapping[Giving, int] = {"samples": 3, "snapshots": 3, "clips": 3, "decoding": 2}
_LEAST_FPS = 2.0
"""Inferences per second that no stride goes below: rarer, and tracks are lost in between."""
_CLEARLY = 0.9
"""Share of a rate below which it is clearly not reached."""
_NEARLY = 0.98
"""Share of a rate that a stride may leave of it: cameras of 10 pictures per second often give 9.9."""
_SMALLER_FROM = 3
"""Stride from which on a smaller variant is preferred to fewer inferences."""


class Step(Struct, frozen=True, gc=False):
    """One way to run a stream.

    Attributes:
        stride: one picture in so many is inferred.
        variant: size of the model; empty: the configured one.
        cost: processor time per second, as a share of one processor.
    """

    stride: int = 1
    variant: str = ""
    cost: float = 0.0


def steps(stream: StreamReading, max_stride: int) -> tuple[Step, ...]:
    """Return the ways to run a stream, the best first; each costs less than the one before.

    A stride of 3 comes before a smaller variant, because tracks are carried on between inferences; further
    strides come last. No stride leaves clearly fewer inferences than `min_fps`, or than two per second.
    """
    last = longest_stride(stream, max_stride)
    while leaves_too_little(stream, last):
        last -= 1
    found: list[Step] = []
    for stride, variant in _order(last, stream.variants):
        step = Step(stride, variant.name, cost_of(stream, stride, variant))
        if not found or step.cost < found[-1].cost:
            found.append(step)
    return tuple(found)


def longest_stride(stream: StreamReading, max_stride: int) -> int:
    """Return the longest stride that leaves what is promised, or hardly less."""
    least = max(stream.min_fps, _LEAST_FPS)
    return max(1, min(max_stride, int(stream.fps / (_NEARLY * least))))


def leaves_too_little(stream: StreamReading, stride: int) -> bool:
    """Return True if a stride alone breaks the promise of a rate: the camera gives less than it seemed to."""
    is_slower = _CLEARLY * stream.fps <= stream.fps_lately < _NEARLY * stride * stream.min_fps
    return stride > 1 and is_slower


def strides_too_far(stream: StreamReading, stride: int) -> bool:
    """Return True if a stride leaves clearly less than is promised: rates of cameras vary a little."""
    return stream.fps / stride < _CLEARLY * min(stream.fps, max(stream.min_fps, _LEAST_FPS))


def _order(last: int, variants: Sequence[VariantCost]) -> Iterator[tuple[int, VariantCost]]:
    first = min(last, _SMALLER_FROM)
    for stride in range(1, first + 1):
        yield stride, variants[0]
    for variant in variants[1:]:
        yield first, variant
    for stride in range(first + 1, last + 1):
        yield stride, variants[-1]


def cost_of(stream: StreamReading, stride: int, variant: VariantCost) -> float:
    """Return the processor time per second of a stream, as a share of one processor."""
    return stream.fps * stream.open_share * stream.cost_ms / 1e3 * variant.cost / stride


def cheaper(ladder: Sequence[Step], now: Step, at_most: float) -> Step:
    """Return the best cheaper step that costs at most so much, or the cheapest; at the end, the present one."""
    below = [step for step in ladder if step.cost < now.cost]
    return next((step for step in below if step.cost <= at_most), below[-1] if below else now)


def dearer(ladder: Sequence[Step], now: Step) -> Step:
    """Return the next better step above the present one; the present one if it is the best."""
    above = [step for step in ladder if step.cost > now.cost]
    if above:
        return above[-1]
    return ladder[0] if now.cost == 0.0 else now


def smaller_variant(stream: StreamReading, now: Step) -> Step:
    """Return the present step with the next smaller variant; the present one if there is none."""
    names = [variant.name for variant in stream.variants]
    at = names.index(now.variant) if now.variant in names else 0
    if at + 1 >= len(stream.variants):
        return now
    variant = stream.variants[at + 1]
    return Step(now.stride, variant.name, cost_of(stream, now.stride, variant))


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


class Budgets:
    """Keeps what each stream may use, the newest readings, and the changes of a decision.

    Attributes:
        config: what may be reduced.
        states: of streams, by name.
        now_s, board, streams: the newest readings.
    """

    def __init__(self, config: GovernorConfig) -> None:
        self.config = config
        self.states: dict[str, StreamState] = {}
        self.now_s, self.board, self.streams = 0.0, BoardReading(), dict[str, StreamReading]()
        self._lines: dict[str, Change] = {}
        self._changed_at: deque[float] = deque(maxlen=CHANGES_PER_MINUTE)

    def begin(self, readings: Readings) -> None:
        """Begin another decision, and forget streams that are gone."""
        self.now_s, self.board, self.streams, self._lines = readings.now_s, readings.board, readings.streams, {}
        for name in self.states.keys() - readings.streams.keys() - readings.known:
            del self.states[name]
        for name in readings.streams:
            self.states.setdefault(name, StreamState())

    @property
    def changes(self) -> tuple[Change, ...]:
        """Changes of the present decision, the last one of each stream."""
        return tuple(self._lines.values())

    def tell(self, stream: str, now: str, why: str, *, is_more: bool = False) -> None:
        """Keep a change for the present decision; it replaces an earlier one of the stream. See `Change`."""
        self._lines[stream] = Change(stream, now, why, is_more)

    @property
    def wait_s(self) -> float:
        """Time until a decision may change something again, if none may now, s."""
        return 60.0 - (self.now_s - self._changed_at[0])

    def may_change(self, kept: int = 0) -> bool:
        """Return True if this decision may change something; `kept`: so many of a minute must be left then."""
        at = self._changed_at
        if at and at[-1] == self.now_s:
            return True
        return sum(self.now_s - one < 60.0 for one in at) + kept < CHANGES_PER_MINUTE

    def record(self, stream: str, text: str, why: str, *, urgent: bool = False) -> None:
        """Keep a change for the decision; an urgent one does not count for the most changes in a minute."""
        if not urgent and (not self._changed_at or self._changed_at[-1] != self.now_s):
            self._changed_at.append(self.now_s)
        is_more = bool(stream) and why in (ROOM, TRIAL) and self.states[stream].is_reduced
        self.tell(stream, text, why, is_more=is_more)

    def step(self, name: str) -> Step:
        """Return the present step of a stream with what it costs now."""
        return self.states[name].step(self.streams[name])

    def cheaper(self, name: str, at_most: float, now: Step | None = None) -> Step:
        """Return the best step below the present or another one that costs at most so much, or the cheapest."""
        return cheaper(steps(self.streams[name], self.config.max_stride), now or self.step(name), at_most)

    def dearer(self, name: str, now: Step | None = None) -> Step:
        """Return the next better step above the present or another one."""
        return dearer(steps(self.streams[name], self.config.max_stride), now or self.step(name))

    def set_step(self, name: str, step: Step, why: str, *, urgent: bool = False) -> bool:
        """Run a stream that way; False: it does already, or too much has changed lately and it is not urgent."""
        state, before = self.states[name], self.step(name)
        variant = "" if step.variant == self.streams[name].variants[0].name else step.variant
        kept = FOR_PROMISES_ROOM if why in (ROOM, TRIAL) else 0
        if (state.stride, state.variant) == (step.stride, variant) or not (urgent or self.may_change(kept)):
            return False
        told, (state.stride, state.variant) = described(state), (step.stride, variant)
        if step.stride > before.stride or step.cost < before.cost:
            state.cause = why
        if described(state) != told:
            self.record(name, described(state), why, urgent=urgent)
        return True

    def lower(self, name: str, giving: Giving, why: str, domain: Domain) -> bool:
        """Take a level of something from a stream for a domain that is short; False: none is left, or not now."""
        state = self.states[name]
        kept = 0 if domain == PROCESSORS else FOR_PROMISES
        if state.levels[giving] >= LEVELS[giving] - 1 or not self.may_change(kept):
            return False
        state.lower(giving, domain, why)
        self.record(name, described(state), why)
        return True
