"""The checks of `vedette doctor`, and the report that they make."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

State = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True):
    """One line of the report.

    Attributes:
        section: such as `board`.
        name: what was checked.
        value: what was found, for people.
        state: `warning`: Vedette runs, but worse than it could, or may fail soon; `problem`: something does not
            work, or gives wrong answers.
        advice: what to do, in one sentence; empty: nothing.
    """

    section: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""


class Report(Struct, frozen=True):
    """All findings.

    Attributes:
        version: Vedette's version.
        at: UTC, by the board's clock.
        healthy: no finding is a problem; warnings do not count.
        findings: in the order of the sections.
    """

    version: str
    at: datetime
    healthy: bool
    findings: list[Finding]


def advice_of(findings: list[Finding]) -> list[str]:
    """Return every advice once, problems first."""
    ordered = [one.advice for state in ("problem", "warning") for one in findings if one.state == state]
    return list(dict.fromkeys(filter(None, ordered)))
