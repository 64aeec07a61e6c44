"""The reductions of a stream, their steps, and those in force for each stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from agent.config.features import Giving, GovernorConfig, StreamBudget
from agent.features.governor.readings import StreamReading, VariantCost

Domain = Literal["processors", "memory", "disk", "link"]
"""Kind of shortage for which something was taken; it comes back when that is over."""


class Reduction(Struct, frozen=True):
    """One thing of a stream that can be reduced.

    Attributes:
        relieves: shortages for which it is.
        levels: fields of `StreamBudget` at each level.
        text: of a level, for people.
    """

    relieves: tuple[Domain, ...]
    levels: tuple[dict[str, Any], ...]
    text: str


REDUCTIONS: dict[Giving, Reduction] = {
    "samples": Reduction(
        ("link",), ({"samples_every_s": 1.0}, {"samples_every_s": 5.0}), "detections every {samples_every_s:g} s"
    ),
    "snapshots": Reduction(
        ("link",),
        ({"snapshot_quality": 60, "snapshot_factor": 3.0}, {"snapshot_quality": 40, "snapshot_factor": 10.0}),
        "snapshots {snapshot_factor:g} times rarer",
    ),
    "clips": Reduction(
        ("memory", "disk", "processors"),
        ({"clips_share": 0.5}, {"clips_share": 0.2}),
        "clips with {clips_share:.0%} of their pictures",
    ),
    "decoding": Reduction(("processors",), ({"decode": "keyframes"},), "key frames alone are decoded"),
}
"""The reductions besides inferences, see `steps`."""
SYNC_S = (0.0, 0.5, 2.0)
"""Time that an event may wait for others to be synced with it, s: after clips, where the disk is slow."""

CHANGES_PER_MINUTE = 6
"""Decisions in any minute that change something; what one decision changes at once counts once. What heat and a
weak supply need does not count."""
FOR_PROMISES = 2
"""Decisions of a minute that are left for promises and heat when another shortage takes something, or something
comes back."""
ROOM, TRIAL = "there is room for it", "for a trial"
CONFIGURED, OFF = "as it is configured now", "the governor is off"
"""Reasons of changes that no load has caused, but the configuration of a stream or of the governor."""
EVERYTHING = "everything again"
"""Text for a stream of which nothing is reduced any more."""
_PAUSE_MAX_S, _FORGIVEN_S = 1200.0, 600.0
"""Longest pause before something comes back, and quiet time after which the first one holds again, s."""
_RETURN_S, _RELAPSE_S = 5.0, 45.0
"""First pause until a stream has something back, and time after which that was not too early, s."""
_LEAST_FPS = 2.0
"""Inferences per second that no stride goes below: rarer, and tracks are lost in between."""
_CLEARLY, _NEARLY = 0.9, 0.98
"""Share of a rate below which a camera is clearly slower, and that a stride may leave of a promise: cameras of 10
pictures per second often give 9.9."""
_ROUNDING = 0.1
"""Share of a stride by which a measured rate may be too high."""
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
    first, variants = min(last, _SMALLER_FROM), stream.variants
    order = [(stride, variants[0]) for stride in range(1, first + 1)]
    order += [(first, variant) for variant in variants[1:]]
    order += [(stride, variants[-1]) for stride in range(first + 1, last + 1)]
    found: list[Step] = []
    for stride, variant in order:
        step = Step(stride, variant.name, cost_of(stream, stride, variant))
        if not found or step.cost < found[-1].cost:
            found.append(step)
    return tuple(found)


def longest_stride(stream: StreamReading, max_stride: int) -> int:
    """Return the longest stride that leaves what is promised, or hardly less."""
    fps = stream.fps
    if stream.min_fps and _CLEARLY * fps <= stream.fps_lately:
        fps = min(fps, stream.fps_lately)
    return max(1, min(max_stride, int(fps / (_NEARLY * max(stream.min_fps, _LEAST_FPS)))))


def cost_of(stream: StreamReading, stride: int, variant: VariantCost) -> float:
    """Return the processor time per second of a stream, as a share of one processor."""
    return stream.fps * stream.open_share * stream.cost_ms / 1e3 * variant.cost / stride


def cheaper(stream: StreamReading, max_stride: int, now: Step, at_most: float) -> Step:
    """Return the best cheaper step that costs at most so much, or the cheapest; at the end, the present one."""
    below = [step for step in steps(stream, max_stride) if step.cost < now.cost]
    return next((step for step in below if step.cost <= at_most), below[-1] if below else now)


def dearer(stream: StreamReading, max_stride: int, now: Step) -> Step:
    """Return the next better step above the present one; the present one if it is the best."""
    ladder = steps(stream, max_stride)
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


class Pause:
    """Time until something comes back: twice as long each time that it came back too early."""

    def __init__(self, first_s: float, soon_s: float) -> None:
        """Begin. `soon_s`: time after a return within which trouble shows that it was too early, s."""
        self.pause_s = self._first_s = first_s
        self._soon_s = soon_s
        self.returned_s = self.until_s = self._trouble_s = -math.inf

    def is_over(self, now_s: float) -> bool:
        """Return True if something may come back."""
        return now_s >= max(self.until_s, self.returned_s + self.pause_s)

    def trouble(self, now_s: float) -> bool:
        """Begin anew because there is trouble. Return True if something came back too early."""
        is_early = self._trouble_s < self.returned_s and now_s - self.returned_s < self._soon_s
        if is_early:
            self.pause_s = min(_PAUSE_MAX_S, 2.0 * self.pause_s)
        elif now_s - max(self.until_s, self.returned_s) > _FORGIVEN_S:
            self.pause_s = self._first_s
        self._trouble_s, self.until_s = now_s, now_s + self.pause_s
        return is_early

    def returned(self, now_s: float) -> None:
        """Record that something has come back."""
        self.returned_s = now_s


class StreamState:
    """Decisions for one stream.

    Attributes:
        stride, variant: of its inferences, see `StreamBudget`.
        cause: why it infers less.
        taken: levels of what else is reduced: what was short, and why each was taken.
        pause: until it has something back that takes processor time.
        promise: pictures per second and ms that it is promised.
        broken_s: since when that is not kept; None: it is.
        idle_s: since when that is so although all have given way and processors are idle; None: it is not.
        reliefs: decisions that have taken something from others since then.
        is_alone: nothing is left that could give way for it.
        is_futile: others can do nothing for it.
    """

    def __init__(self) -> None:
        self.stride, self.variant, self.cause = 1, "", ""
        self.taken: dict[Giving, list[tuple[Domain, str]]] = {}
        self.pause = Pause(_RETURN_S, _RELAPSE_S)
        self.promise = 0.0, 0.0
        self.keeps_promise()

    def keeps_promise(self) -> None:
        """Forget that a promise was broken."""
        self.broken_s: float | None = None
        self.idle_s: float | None = None
        self.reliefs, self.is_alone, self.is_futile = 0, False, False

    def step(self, stream: StreamReading) -> Step:
        """Return the present step with what it costs now."""
        known = {variant.name: variant for variant in stream.variants}
        variant = known.get(self.variant, stream.variants[0])
        return Step(self.stride, variant.name, cost_of(stream, self.stride, variant))

    def level(self, giving: Giving) -> int:
        return len(self.taken.get(giving, ()))

    def has_given(self, giving: Giving, domain: Domain) -> bool:
        """Return True if a level was taken because that was short."""
        return any(known == domain for known, _ in self.taken.get(giving, ()))

    def give_back(self, giving: Giving, domain: Domain) -> None:
        """Give back a level that was taken for a domain."""
        levels = self.taken[giving]
        del levels[[known for known, _ in levels].index(domain)]

    @property
    def infers_less(self) -> bool:
        return self.stride > 1 or bool(self.variant)

    @property
    def is_reduced(self) -> bool:
        return self.infers_less or any(self.taken.values())

    @property
    def text(self) -> str:
        """Text of what the stream has now."""
        parts = [f"one picture in {self.stride} is inferred"] * (self.stride > 1 and not self.level("decoding"))
        parts += [f"size {self.variant}"] * bool(self.variant)
        for giving, reduction in REDUCTIONS.items():
            if level := self.level(giving):
                text = reduction.text.format(**reduction.levels[level - 1])
                parts.insert(0 if giving == "decoding" else len(parts), text)
        return ", ".join(parts) or EVERYTHING

    @property
    def why(self) -> str:
        """Text of what is reduced and why; empty: nothing is."""
        causes = [self.cause] if self.infers_less else []
        causes += [cause for levels in self.taken.values() for _, cause in levels]
        return f"{self.text}: {'; '.join(dict.fromkeys(causes))}" if causes else ""

    def budget(self, stream: StreamReading) -> StreamBudget:
        """Return what the stream may use.

        While key frames alone are decoded, a stride leaves no more inferences than before: usually each key frame
        is inferred. A camera whose others still come keeps its stride.
        """
        fields: dict[str, Any] = {}
        for giving, reduction in REDUCTIONS.items():
            if level := self.level(giving):
                fields |= reduction.levels[level - 1]
        stride, most = self.stride, stream.fps / self.stride
        if self.level("decoding") and most > 0.0:
            stride = max(1, min(stride, math.ceil(stream.handled_fps / most - _ROUNDING)))
        return StreamBudget(stride, self.variant, **fields)


class Change(Struct, frozen=True):
    """A change of what a stream may use.

    Attributes:
        stream: its name; empty: the change is one of the event queue.
        now: what holds now.
        why: its reason.
    """

    stream: str
    now: str
    why: str

    @property
    def text(self) -> str:
        """Text of what holds now, and why."""
        return f"{self.now}: {self.why}"


class Decision(Struct, frozen=True):
    """Budgets that hold from now on, and what has changed.

    Attributes:
        budgets: by stream.
        sync_every_s: time that an event may wait for others to be synced to the disk with it, s.
        changes: since the decision before.
        reduced: why a stream has less than everything, by stream.
        unmet: why a promise cannot be kept, by stream; empty name: the board.
        broken: which promise is not kept now, by stream, whatever can still give way for it; empty name: why the
            board is too hot, or its supply too weak.
    """

    budgets: dict[str, StreamBudget]
    sync_every_s: float
    changes: tuple[Change, ...]
    reduced: dict[str, str]
    unmet: dict[str, str]
    broken: Mapping[str, str] = {}


class Budgets:
    """The budget of each stream, the newest readings, and the changes of a decision: every change passes here."""

    def __init__(self, config: GovernorConfig) -> None:
        self._config = config
        self._now_s, self._streams, self._settled_s = 0.0, dict[str, StreamReading](), -math.inf
        self._states: dict[str, StreamState] = {}
        self._changes: dict[str, Change] = {}
        self._changed_at: deque[float] = deque(maxlen=CHANGES_PER_MINUTE)
        self._sync = 0

    def configure(self, config: GovernorConfig) -> None:
        """Use another configuration from the next decision on."""
        self._config = config

    def _may_change(self, reserved: int = 0) -> bool:
        """Return True if this decision may change something; `reserved`: changes per minute to leave unused."""
        at = self._changed_at
        if at and at[-1] == self._now_s:
            return True
        return sum(self._now_s - one < 60.0 for one in at) + reserved < CHANGES_PER_MINUTE

    def _record(self, stream: str, text: str, why: str, *, urgent: bool = False) -> None:
        """Keep a change, which replaces an earlier one of this decision; an urgent one does not count."""
        if not urgent and (not self._changed_at or self._changed_at[-1] != self._now_s):
            self._changed_at.append(self._now_s)
        self._changes[stream] = Change(stream, text, why)

    def _set_sync(self, level: int, why: str) -> None:
        self._sync, wait_s = level, SYNC_S[level]
        waits = f"events wait up to {wait_s:g} s to be synced together"
        self._record("", waits if wait_s else "each event is synced at once again", why)

    def _set_step(self, name: str, step: Step, why: str, *, urgent: bool = False) -> bool:
        """Run a stream that way; False: it does already, or too much has changed lately and it is not urgent."""
        state, before = self._states[name], self._step(name)
        variant = "" if step.variant == self._streams[name].variants[0].name else step.variant
        reserved = FOR_PROMISES if why in (ROOM, TRIAL) else 0
        if (state.stride, state.variant) == (step.stride, variant) or not (urgent or self._may_change(reserved)):
            return False
        text, (state.stride, state.variant) = state.text, (step.stride, variant)
        if why in (ROOM, TRIAL):
            state.pause.returned(self._now_s)
            self._settled_s = self._now_s
        elif step.stride > before.stride or step.cost < before.cost:
            state.cause = why
            state.pause.trouble(self._now_s)
        if state.text != text:
            self._record(name, state.text, why, urgent=urgent)
        return True

    def _take(self, name: str, giving: Giving, why: str, domain: Domain) -> bool:
        """Take a level of something from a stream for a domain that is short; False: none is left, or not now."""
        state, reserved = self._states[name], 0 if domain == "processors" else FOR_PROMISES
        if state.level(giving) >= len(REDUCTIONS[giving].levels) or not self._may_change(reserved):
            return False
        state.taken.setdefault(giving, []).append((domain, why))
        if domain == "processors":
            state.pause.trouble(self._now_s)
        self._record(name, state.text, why)
        return True

    def _step(self, name: str) -> Step:
        return self._states[name].step(self._streams[name])

    def _cheaper(self, name: str, at_most: float, now: Step | None = None) -> Step:
        return cheaper(self._streams[name], self._config.max_stride, now or self._step(name), at_most)

    def _dearer(self, name: str, now: Step | None = None) -> Step:
        return dearer(self._streams[name], self._config.max_stride, now or self._step(name))
