"""The trial: whether a new version may stay. Rules without I/O.

It may when for `steady_s` on end every stream that inferred before infers, none takes much longer than it did,
and the memory is within its bound. A broker that is away says nothing against it, and neither does a camera that
was lost before. A version that ends by itself is rolled back at once; one that is not well, after `within_s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.storage.state_file import ShadowReport
from agent.update.bundle.archive import read_description
from agent.update.bundle.description import HealthGate, ShadowGate
from agent.update.protocol import Update, Vitals

WELL = ("running", "degraded")
"""States of a stream that infers: where a device fails, the CPU answers."""
_LEFT_OUT = ("disabled", "ended")


class Baseline(Struct, frozen=True):
    """How it was before.

    Attributes:
        streams: that were well, and what the 95th percentile of their inferences took, ms; None: not known.
        known: whether there was a daemon that told; if not, every stream has to be well.
    """

    streams: dict[str, float | None] = {}
    known: bool = False


def baseline(vitals: Vitals | None) -> Baseline:
    """Take the baseline from the daemon's vitals; an unknown one while the daemon is still starting."""
    if vitals is None or not vitals.ready:
        return Baseline()
    well = {name: one.infer_p95_ms for name, one in vitals.streams.items() if one.state in WELL and one.inferred}
    return Baseline(well, known=True)


class Reloaded(Struct, frozen=True):
    """The daemon before it was asked to take new models up. Another one has them from its start.

    Attributes:
        pid: of it; 0: there was none.
        count: how often it had read its configuration again; -1: it does not tell.
    """

    pid: int = 0
    count: int = -1


def reloaded(vitals: Vitals | None) -> Reloaded:
    """Record the daemon's pid and reload count before it is asked to reload."""
    return Reloaded() if vitals is None else Reloaded(vitals.pid, vitals.reloads)


class Seen(Struct, frozen=True):
    """Observation of the service at one moment.

    Attributes:
        vitals: what the daemon tells; None: nothing, or it does not run.
        failures: how often the service has ended by itself since the trial began.
        why: it did last, such as `exit-code`.
    """

    vitals: Vitals | None
    failures: int = 0
    why: str = ""


class Verdict(Struct, frozen=True):
    """Result of one evaluation of a trial.

    Attributes:
        verdict: `wait`, `commit` or `roll back`.
        reason: what it waits for, or why it is rolled back.
    """

    verdict: Literal["wait", "commit", "roll back"]
    reason: str = ""


class HealthTrial:
    """Judges the trial of one version, or of models once taken up. Times are of a monotonic clock."""

    def __init__(
        self,
        gate: HealthGate,
        before: Baseline,
        version: str,
        began_s: float,
        *,
        asked: Reloaded | None = None,
        replaced: int = 0,
    ) -> None:
        """Begin.

        Args:
            gate: what the bundle asks for.
            before: how it was.
            version: that has to run; empty: any, since only models are new.
            began_s: now.
            asked: the daemon that was asked to take new models up; None: a version is new.
            replaced: pid of the daemon that has to end for it; 0: there was none. It may be of the same version,
                and tells that all is well until it has stopped.
        """
        self._replaced = replaced
        self._gate, self._before, self._version, self._asked = gate, before, version, asked
        self._began_s, self._has_taken_up = began_s, False
        self._well_since: float | None = None
        self.ready_at: float | None = None
        """When the daemon was first seen ready."""

    def evaluate(self, now: float, seen: Seen) -> Verdict:
        """Judge what is seen now."""
        if seen.failures:
            again = f", {seen.failures} times" if seen.failures > 1 else ""
            why = f": {seen.why}" if seen.why not in ("", "success") else ""
            return Verdict("roll back", f"the service ended by itself{again}{why}; see `journalctl -u vedette`")
        if seen.vitals is not None and self._has_read(seen.vitals) and not self._has_taken_up:
            if seen.vitals.reload_refused:
                return Verdict("roll back", f"the daemon refuses to take them up: {seen.vitals.reload_refused}")
            self._has_taken_up = True  # what is refused from now on is somebody else's
        lacks = next(self._lacks(seen.vitals), "")
        if lacks:
            self._well_since = None
            if now - self._began_s >= self._gate.within_s:
                return Verdict("roll back", f"not well within {self._gate.within_s:g} s: {lacks}")
            return Verdict("wait", lacks)
        if self.ready_at is None:
            self.ready_at = now
        if self._well_since is None:
            self._well_since = now
        left_s = self._gate.steady_s - (now - self._well_since)
        if left_s <= 0:
            return Verdict("commit")
        if now - self._began_s >= self._gate.within_s + self._gate.steady_s:
            return Verdict("roll back", f"not well for {self._gate.steady_s:g} s on end")
        return Verdict("wait", f"all is well; {left_s:.0f} s more of it are asked for")

    def _has_read(self, vitals: Vitals) -> bool:
        """Return True if the daemon that was asked to reload has read its configuration again since."""
        asked = self._asked
        return asked is not None and vitals.pid == asked.pid and vitals.reloads > asked.count

    def _lacks(self, vitals: Vitals | None) -> Iterator[str]:
        """Yield the reasons why the daemon is not healthy."""
        if vitals is None:
            yield "the daemon does not tell how it is"
            return
        if self._version and vitals.version != self._version:
            yield f"version {vitals.version} runs, not {self._version}"
        if self._replaced and vitals.pid == self._replaced:
            yield "the daemon of before has not stopped yet"
        if self._asked is not None and vitals.pid == self._asked.pid and 0 <= vitals.reloads <= self._asked.count:
            yield "the daemon has not taken the new models up yet"
        if not vitals.ready:
            yield f"the daemon is not ready: {self._waits_for(vitals)}"
        yield from self._unwell(vitals)
        if vitals.rss_mb > self._gate.memory_mb:
            yield f"the daemon takes {vitals.rss_mb:.0f} MB of memory, {self._gate.memory_mb:g} are allowed"

    def _waits_for(self, vitals: Vitals) -> str:
        idle = [name for name, one in vitals.streams.items() if not one.inferred and one.state not in _LEFT_OUT]
        return f"stream {', '.join(idle)} has not inferred yet" if idle else "it begins"

    def _unwell(self, vitals: Vitals) -> Iterator[str]:
        for name in self._wanted(vitals):
            one = vitals.streams.get(name)
            if one is None:
                yield f"stream {name} is gone"
            elif one.state not in (*WELL, *_LEFT_OUT):
                yield f"stream {name} is {one.state}{': ' if one.detail else ''}{one.detail}"
            elif one.state in WELL and not one.inferred:
                yield f"stream {name} has not inferred yet"
            elif (slow := self._too_slow(name, one.infer_p95_ms)) is not None:
                yield slow

    def _wanted(self, vitals: Vitals) -> list[str]:
        return list(self._before.streams if self._before.known else vitals.streams)

    def _too_slow(self, name: str, p95_ms: float | None) -> str | None:
        before_ms = self._before.streams.get(name)
        if p95_ms is None or before_ms is None:
            return None
        allowed_ms = max(self._gate.p95_floor_ms, self._gate.p95_factor * before_ms)
        if p95_ms <= allowed_ms:
            return None
        return (
            f"stream {name} infers in {p95_ms:.1f} ms (p95), {allowed_ms:.1f} are allowed: {before_ms:.1f} before"
        )


# The shadow: whether new models may take the place of those in use. Rules without I/O.
#
# They may when beside each stream that uses one the new model has answered like the old one, often enough and in
# time. Nothing that runs is changed before that: what does not hold is refused.

_BEGINS_S = 60.0
"""So long nothing need be compared: the daemon may be starting, or a stream's camera be opened."""
_STEPS = 10
"""Progress is told so often: each time costs a write."""


class ShadowTrial:
    """Judges the shadow run of one bundle's models. Times are of a monotonic clock."""

    def __init__(self, update: str, gate: ShadowGate, health: HealthGate, began_s: float) -> None:
        """Begin.

        Args:
            update: that the daemon has to tell of: the sha256 of the bundle.
            gate: what is asked for.
            health: how long an inference may take.
            began_s: now.
        """
        self._update, self._gate, self._health, self._began_s = update, gate, health, began_s
        self._blind_since: float | None = began_s
        self.agreement: dict[str, float] = {}
        """Agreement of each stream that was compared often enough; filled when the verdict is `commit`."""

    def evaluate(self, now: float, seen: Seen) -> Verdict:
        """Judge what is seen now."""
        if seen.failures:
            why = f": {seen.why}" if seen.why not in ("", "success") else ""
            return Verdict("roll back", f"the service ended by itself{why}; see `journalctl -u vedette`")
        if seen.vitals is None or seen.vitals.shadow != self._update:
            return self._blind(now, "the daemon does not run the new models beside those in use")
        beside = {
            name: one.shadow for name, one in seen.vitals.streams.items() if one.shadow and one.state in WELL
        }
        if not beside:
            return self._blind(now, self._unused(seen.vitals))
        self._blind_since = None
        if refused := next((why for name, one in beside.items() for why in self._refusals(name, one)), ""):
            return Verdict("roll back", refused)
        left = [(name, one) for name, one in beside.items() if one.compared < self._gate.compared]
        begins = self._begins(seen.vitals)
        if not left and not begins:
            self.agreement = {name: one.agreement or 0.0 for name, one in beside.items()}
            return Verdict("commit")
        what = self._progress(*left[0]) if left else f"stream {', '.join(begins)} has not inferred yet"
        return self._wait(now - self._began_s, self._gate.within_s, what)

    def _blind(self, now: float, what: str) -> Verdict:
        """Nothing is compared now, which may be for a moment only."""
        if self._blind_since is None:
            self._blind_since = now
        return self._wait(now - self._blind_since, _BEGINS_S, what)

    def _wait(self, waited_s: float, within_s: float, what: str) -> Verdict:
        if waited_s >= within_s:
            return Verdict("roll back", f"nothing is decided after {waited_s:.0f} s: {what}")
        return Verdict("wait", what)

    def _begins(self, vitals: Vitals) -> list[str]:
        """Streams that may have a shadow yet."""
        states = ("starting", *WELL)
        return [name for name, one in vitals.streams.items() if one.state in states and not one.inferred]

    def _unused(self, vitals: Vitals) -> str:
        if begins := self._begins(vitals):
            return f"stream {', '.join(begins)} has not inferred yet"
        return "no stream that infers uses one of the models that change"

    def _refusals(self, name: str, one: ShadowReport) -> Iterator[str]:
        if one.failed:
            yield f"stream {name}: the new model fails beside the one in use: {one.failed}"
        if one.compared < self._gate.compared:
            return
        if (agreed := one.agreement or 0.0) < self._gate.agreement:
            yield (
                f"stream {name}: the new model agrees by {agreed:.2f} with the one in use, in {one.compared} "
                f"answers; {self._gate.agreement:g} is asked for"
            )
        if one.infer_p95_ms is None or one.present_p95_ms is None:
            return
        allowed_ms = max(self._health.p95_floor_ms, self._health.p95_factor * one.present_p95_ms)
        if one.infer_p95_ms > allowed_ms:
            yield (
                f"stream {name}: the new model infers in {one.infer_p95_ms:.1f} ms (p95), {allowed_ms:.1f} are "
                f"allowed: {one.present_p95_ms:.1f} for the one in use"
            )

    def _progress(self, name: str, one: ShadowReport) -> str:
        done = one.compared * _STEPS // self._gate.compared * 100 // _STEPS
        return f"stream {name}: {done} % of {self._gate.compared} answers in which something was found"


GATE = HealthGate(steady_s=10.0, within_s=120.0, p95_factor=100.0, memory_mb=1_000_000.0)
"""Gate of a rollback: the version ran well once, so it only has to become ready."""


def terms(update: Update, incoming: Path) -> tuple[HealthGate, Baseline]:
    """Return the gate and baseline of a trial; a rollback only has to become ready.

    Args:
        update: that is on trial.
        incoming: its bundle, which a return has none of.

    Raises:
        BundleError: it cannot be read.
    """
    before = Baseline(update.streams_before or {}, known=update.back or update.streams_before is not None)
    return GATE if update.back else read_description(incoming).health, before
