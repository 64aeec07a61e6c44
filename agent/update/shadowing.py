"""The shadow: whether new models may take the place of those in use. Rules without I/O.

They may when beside each stream that uses one the new model has answered like the old one, often enough and in
time. Nothing that runs is changed before that: what does not hold is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.update.gates import HealthGate, ShadowGate
from agent.update.trial import WELL, Outcome, Seen
from agent.update.vitals import ShadowVitals, Vitals

_BEGINS_S = 60.0
"""So long nothing need be compared: the daemon may be starting, or a stream's camera be opened."""
_STEPS = 10
"""Progress is told so often: each time costs a write."""


class Shadowing:
    """Of the models of one bundle. Times are of a clock that only goes forward."""

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
        """Of each stream that has shown enough."""

    def look(self, now: float, seen: Seen) -> Outcome:
        """Judge what is seen now."""
        if seen.failures:
            why = f": {seen.why}" if seen.why not in ("", "success") else ""
            return Outcome("roll back", f"the service ended by itself{why}; see `journalctl -u vedette`")
        if seen.vitals is None or seen.vitals.shadow != self._update:
            return self._blind(now, "the daemon does not run the new models beside those in use")
        beside = {
            name: one.shadow for name, one in seen.vitals.streams.items() if one.shadow and one.state in WELL
        }
        if not beside:
            return self._blind(now, self._unused(seen.vitals))
        self._blind_since = None
        if refused := next((why for name, one in beside.items() for why in self._refusals(name, one)), ""):
            return Outcome("roll back", refused)
        left = [(name, one) for name, one in beside.items() if one.compared < self._gate.compared]
        begins = self._begins(seen.vitals)
        if not left and not begins:
            self.agreement = {name: one.agreement or 0.0 for name, one in beside.items()}
            return Outcome("commit")
        what = self._progress(*left[0]) if left else f"stream {', '.join(begins)} has not inferred yet"
        return self._wait(now - self._began_s, self._gate.within_s, what)

    def _blind(self, now: float, what: str) -> Outcome:
        """Nothing is compared now, which may be for a moment only."""
        if self._blind_since is None:
            self._blind_since = now
        return self._wait(now - self._blind_since, _BEGINS_S, what)

    def _wait(self, waited_s: float, within_s: float, what: str) -> Outcome:
        if waited_s >= within_s:
            return Outcome("roll back", f"nothing is decided after {waited_s:.0f} s: {what}")
        return Outcome("wait", what)

    def _begins(self, vitals: Vitals) -> list[str]:
        """Streams that may have a shadow yet."""
        states = ("starting", *WELL)
        return [name for name, one in vitals.streams.items() if one.state in states and not one.inferred]

    def _unused(self, vitals: Vitals) -> str:
        if begins := self._begins(vitals):
            return f"stream {', '.join(begins)} has not inferred yet"
        return "no stream that infers uses one of the models that change"

    def _refusals(self, name: str, one: ShadowVitals) -> Iterator[str]:
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

    def _progress(self, name: str, one: ShadowVitals) -> str:
        done = one.compared * _STEPS // self._gate.compared * 100 // _STEPS
        return f"stream {name}: {done} % of {self._gate.compared} answers in which something was found"
