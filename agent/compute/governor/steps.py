"""How much of its pictures a stream infers, and with which size of the model: steps from everything to little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from agent.compute.governor.readings import StreamReading, VariantCost

FULL_STRIDE = 1
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

    stride: int = FULL_STRIDE
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
    return max(FULL_STRIDE, min(max_stride, int(stream.fps / (_NEARLY * least))))


def leaves_too_little(stream: StreamReading, stride: int) -> bool:
    """Return True if a stride alone breaks the promise of a rate: the camera gives less than it seemed to."""
    is_slower = _CLEARLY * stream.fps <= stream.fps_lately < _NEARLY * stride * stream.min_fps
    return stride > FULL_STRIDE and is_slower


def strides_too_far(stream: StreamReading, stride: int) -> bool:
    """Return True if a stride leaves clearly less than is promised: rates of cameras vary a little."""
    return stream.fps / stride < _CLEARLY * min(stream.fps, max(stream.min_fps, _LEAST_FPS))


def _order(last: int, variants: Sequence[VariantCost]) -> Iterator[tuple[int, VariantCost]]:
    first = min(last, _SMALLER_FROM)
    for stride in range(FULL_STRIDE, first + 1):
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
