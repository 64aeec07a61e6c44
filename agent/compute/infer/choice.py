"""Verdicts: the rules by which the best way to run a model is taken of those that were measured.

Apart from what measures, which a daemon does not need that has measured before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.backend import Plan
from agent.compute.infer.finding import Found
from agent.compute.infer.measure import Measured

By = Literal["latency", "energy"]
_WORTH = 0.95
"""A device must save at least a twentieth to be worth it."""
WORTH_A_THREAD = 0.97
"""More threads must save at least this: what is chosen shall be within 5 % of the best, and measuring errs."""


class Verdict(Struct, frozen=True):
    """What was chosen, and why.

    Attributes:
        chosen: how to run the model. cpu: how to run it on the CPU.
        by: what was looked at: time or CPU time.
        measured: everything that was tried, and what was found missing.
    """

    chosen: Plan
    cpu: Plan
    by: By
    measured: tuple[Measured, ...]


def decide(measured: Sequence[Measured], found: Sequence[Found], by: By, threads: int = 0) -> Verdict:
    """Take the best of what was measured.

    Args:
        measured: by `selection.survey`.
        found: what it was measured of.
        by: what to look at.
        threads: that the CPU is to have in any case, even where it was refused with them; 0: as many as is best.
    """
    processor = [one for one in measured if one.name == Plan().backend]
    asked = [one for one in processor if one.threads == threads]
    best = best_of(asked, by, WORTH_A_THREAD) or best_of(processor, by, WORTH_A_THREAD)
    if best is None:  # nothing to compare with
        return Verdict(Plan(threads=threads), Plan(threads=threads), by, tuple(measured))
    judged = tuple(_against(one, best, by) for one in measured)
    others = [one for one in judged if one.name != best.name]
    chosen = best_of([best, *others], by, _WORTH) or best
    plans = {one.name: one.plan for one in found if one.plan is not None}
    cpu = Plan(threads=threads or best.threads)
    return Verdict(plans.get(chosen.name, cpu), cpu, by, judged)


def cost(one: Measured, by: By) -> float:
    """What is compared, ms."""
    return one.cpu_ms if by == "energy" else one.p50_ms


def best_of(measured: Sequence[Measured], by: By, worth: float) -> Measured | None:
    """The one of least cost; the earlier one where the later is not worth it."""
    best = None
    for one in measured:
        if not one.refused and (best is None or cost(one, by) < worth * cost(best, by)):
            best = one
    return best


def _against(one: Measured, cpu: Measured, by: By) -> Measured:
    """Refused if it is no better than the CPU."""
    if one.refused or one.name == cpu.name or cost(one, by) <= _WORTH * cost(cpu, by):
        return one
    return replace(one, refused=f"slower than the CPU: {cost(one, by):.2f} ms against {cost(cpu, by):.2f}")
