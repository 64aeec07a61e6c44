"""The checks of `vedette doctor`: what they report, and the table of their sections.

A check is a function that yields findings. A section that fails becomes a finding, and the others still run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Literal

from msgspec import Struct

State = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True):
    """One line of the report.

    Attributes:
        name: what was checked.
        value: what was found, for people.
        state: `warning`: Vedette runs, but worse than it could, or may fail soon; `problem`: something does not
            work, or gives wrong answers.
        advice: what to do, in one sentence; empty: nothing.
        section: such as `board`; filled in by `examine`.
    """

    name: str
    value: str
    state: State = "ok"
    advice: str = ""
    section: str = ""


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


Job = Callable[[], Iterable[Finding]]


def advice_of(findings: list[Finding]) -> list[str]:
    """Return every advice once, problems first."""
    ordered = [one.advice for state in ("problem", "warning") for one in findings if one.state == state]
    return list(dict.fromkeys(filter(None, ordered)))


def run_parallel(
    jobs: list[tuple[str, Job]], limit_s: float, timed_out: Callable[[str, float], Finding]
) -> Iterator[Finding]:
    """Yield each job's findings in order; a job that exceeds the time limit is abandoned.

    Args:
        jobs: name and function of each.
        limit_s: for all of them, s.
        timed_out: returns the finding for a job that was abandoned, from its name and the limit.
    """
    results: dict[int, list[Finding]] = {}

    def run(number: int) -> None:
        name, job = jobs[number]
        try:
            results[number] = list(job())
        except Exception as error:
            value = f"cannot be tried: {type(error).__name__}"
            results[number] = [Finding(name, value, "warning", f"please report this internal error: {value}")]

    threads = [
        threading.Thread(target=run, args=(number,), name=f"doctor {name}", daemon=True)
        for number, (name, _) in enumerate(jobs)
    ]
    until = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for number, thread in enumerate(threads):
        thread.join(max(0.0, until - time.monotonic()))
        yield from results.get(number, [timed_out(jobs[number][0], limit_s)])
