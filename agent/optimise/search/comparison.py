"""Comparison of candidates by accuracy, latency and size: who is beaten, and who is trained further.

Successive halving (Jamieson, Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016) in its asynchronous
form (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020): a candidate goes to the next
rung if it is in the better half of those that have finished this rung so far. With several objectives the halves
are taken among candidates of similar latency, so that fast networks are not compared with large ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from agent.optimise.recipe import Objective

SIMILAR = 1.25
"""Latencies whose ratio is at most this are similar."""


class Figures(Struct, frozen=True):
    """What candidates are compared by.

    Attributes:
        accuracy: 0..1; of a rung, or of the INT8 file.
        latency_ms: of the INT8 file, ms.
        size: of the INT8 file, bytes.
    """

    accuracy: float
    latency_ms: float
    size: int

    def values(self, objectives: Sequence[Objective]) -> tuple[float, ...]:
        """Return the values of some objectives; less is better."""
        known = {"accuracy": -self.accuracy, "latency": self.latency_ms, "size": float(self.size)}
        return tuple(known[name] for name in objectives)


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return True if one is nowhere worse and somewhere better; less is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def pareto_front(candidates: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the candidates that no other one beats, in order; less is better."""
    return [number for number, one in enumerate(candidates) if not any(beats(other, one) for other in candidates)]


def reason_to_stop(own: Figures, others: Iterable[Figures], objectives: Sequence[Objective]) -> str:
    """Say why a candidate is not trained further; empty: it is.

    Args:
        own: figures of the candidate after a rung.
        others: of those that have finished the same rung.
        objectives: of the search. Without latency among them, all candidates are similar.
    """
    others = list(others)
    if not any(beats(other.values(objectives), own.values(objectives)) for other in others):
        return ""
    peers = [one for one in others if "latency" not in objectives or _similar(own, one)]
    better = sum(one.accuracy > own.accuracy for one in peers)
    if better < (len(peers) + 2) // 2:
        return ""
    return f"{better} of {len(peers)} similar candidates are more accurate"


def _similar(one: Figures, other: Figures) -> bool:
    low, high = sorted((one.latency_ms, other.latency_ms))
    return high <= low * SIMILAR
