"""The hardware that could run models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.compute.infer.finding import Found, candidates
from agent.doctor.report import Finding

SECTION = "hardware to run models on"


def findings(root: Path) -> Iterator[Finding]:
    """Every way to run models that Vedette knows.

    Args:
        root: of the file system.
    """
    yield from of_candidates(candidates(root=root))


def of_candidates(found: Sequence[Found]) -> Iterator[Finding]:
    """What is here and what is missing, with the reason. A board without an accelerator is well."""
    yield Finding(SECTION, "cpu", "CPU (XNNPACK): always")
    for one in sorted(found, key=lambda one: one.plan is None):
        yield Finding(SECTION, one.name, f"{one.title}: {_standing(one)}")


def _standing(one: Found) -> str:
    """Where it is, or why it is not. How to install it is of no use to a board that does not have it."""
    if one.plan is not None:
        return f"found ({one.parts[0]})"
    return one.missing.partition(": ")[0] if one.missing.startswith("no device") else one.missing
