"""The daemon under an update: its service and health, and rules for its trial and the shadow before that.

A trial is committed when for `steady_s` without a break every stream that inferred before infers, none much
slower than before, and the memory is within its limit. An unreachable broker does not count, nor does a camera
that was lost before. A version that ends by itself is rolled back at once; one that is not healthy, after
`within_s`.

A shadow ends well when, beside each stream that uses a changed model, the new model has agreed with the old one
often enough and in time. Nothing that runs has been changed by then, so a failure only refuses the update.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.board.proc import boot_id
from agent.errors import NO_JSON, StorageError, UpdateError
from agent.health import DaemonHealth, ShadowReport
from agent.storage.files import read_regular
from agent.structs import from_json
from agent.update.bundle import HealthGate, ShadowGate, read_description
from agent.update.install.journal import Update
from agent.update.run import output_of, run

WELL = ("running", "degraded")
"""States of a stream that infers: when a device fails, the CPU takes over."""
_IDLE = ("disabled", "ended")


class Baseline(Struct, frozen=True):
    """Health of the daemon before an update switches, with which the trial is compared.

    Attributes:
        streams: the healthy streams, with the 95th percentile of their inference times, ms; None: unknown.
        known: True if a daemon reported its health; else the trial needs every stream to be healthy.
    """

    streams: dict[str, float | None] = {}
    known: bool = False


def baseline(health: DaemonHealth | None) -> Baseline:
    """Return the baseline from the daemon's health; an unknown one while the daemon is still starting."""
    if health is None or not health.ready:
        return Baseline()
    well = {name: one.infer_p95_ms for name, one in health.streams.items() if one.state in WELL and one.inferred}
    return Baseline(well, known=True)


class DaemonBefore(Struct, frozen=True):
    """The daemon before it is asked to load new models. A daemon started later loads them at its start.

    Attributes:
        pid: 0: there was none.
        reloads: times that it had read its configuration again; -1: not reported.
    """

    pid: int = 0
    reloads: int = -1

    @classmethod
    def from_health(cls, health: DaemonHealth | None) -> DaemonBefore:
        return cls() if health is None else cls(health.pid, health.reloads)


class Observation(Struct, frozen=True):
    """The service and the daemon at one moment.

    Attributes:
        health: None: the daemon does not run, or does not report.
        failures: times that the service has ended by itself since the trial began.
        why: reason of its last end, such as `exit-code`.
    """

    health: DaemonHealth | None
    failures: int = 0
    why: str = ""


class TrialDecision(Struct, frozen=True):
    """Result of one evaluation of a trial.

    Attributes:
        verdict: `wait`, `commit` or `roll back`.
        reason: what it waits for, or why it is rolled back.
    """

    verdict: Literal["wait", "commit", "roll back"]
    reason: str = ""


def _describe_failures(seen: Observation) -> str:
    if not seen.failures:
        return ""
    again = f", {seen.failures} times" if seen.failures > 1 else ""
    why = f": {seen.why}" if seen.why not in ("", "success") else ""
    return f"the service ended by itself{again}{why}; see `journalctl -u vedette`"


class HealthTrial:
    """Judges the trial of a version, or of models. Times are of a monotonic clock, s."""

    def __init__(
        self,
        gate: HealthGate,
        before: Baseline,
        version: str,
        began_s: float,
        *,
        asked: DaemonBefore | None = None,
        replaced: int = 0,
    ) -> None:
        """Begin a trial.

        Args:
            gate: of the bundle.
            before: health before the switch.
            version: that has to run; empty: any, since only models are new.
            began_s: now.
            asked: the daemon that was asked to load new models; None: a version is new.
            replaced: pid of the daemon that has to stop first; 0: there was none. Its reports do not count, even
                with the same version.
        """
        self._gate, self._before, self._version = gate, before, version
        self._began_s, self._asked, self._replaced = began_s, asked, replaced
        self._has_reloaded = False
        self._well_since: float | None = None
        self.ready_at: float | None = None
        """When the daemon was first healthy; None: not yet."""

    def evaluate(self, now: float, seen: Observation) -> TrialDecision:
        """Judge an observation."""
        if fault := _describe_failures(seen) or self._describe_refusal(seen.health):
            return TrialDecision("roll back", fault)
        lacks = next(self._lacks(seen.health), "")
        if lacks:
            self._well_since = None
            if now - self._began_s >= self._gate.within_s:
                return TrialDecision("roll back", f"not healthy within {self._gate.within_s:g} s: {lacks}")
            return TrialDecision("wait", lacks)
        if self.ready_at is None:
            self.ready_at = now
        if self._well_since is None:
            self._well_since = now
        left_s = self._gate.steady_s - (now - self._well_since)
        if left_s <= 0:
            return TrialDecision("commit")
        if now - self._began_s >= self._gate.within_s + self._gate.steady_s:
            return TrialDecision("roll back", f"not healthy for {self._gate.steady_s:g} s without a break")
        return TrialDecision("wait", f"healthy; {left_s:.0f} s left of the trial")

    def _describe_refusal(self, health: DaemonHealth | None) -> str:
        """Return why the daemon refused the new models; empty: they are loaded, or not read yet."""
        if health is None or self._has_reloaded or not self._has_read(health):
            return ""
        if health.reload_refused:
            return f"the daemon refuses to load them: {health.reload_refused}"
        self._has_reloaded = True  # a later refusal is of another reload
        return ""

    def _has_read(self, health: DaemonHealth) -> bool:
        """Return True if the daemon that was asked to reload has read its configuration again since."""
        asked = self._asked
        return asked is not None and health.pid == asked.pid and health.reloads > asked.reloads

    def _lacks(self, health: DaemonHealth | None) -> Iterator[str]:
        """Yield the reasons why the daemon is not healthy."""
        if health is None:
            yield "the daemon does not report its health"
            return
        if self._version and health.version != self._version:
            yield f"version {health.version} runs, not {self._version}"
        if self._replaced and health.pid == self._replaced:
            yield "the previous daemon has not stopped yet"
        if (
            self._asked is not None
            and health.pid == self._asked.pid
            and 0 <= health.reloads <= self._asked.reloads
        ):
            yield "the daemon has not loaded the new models yet"
        if not health.ready:
            yield f"the daemon is not ready: {self._waits_for(health)}"
        yield from self._unhealthy(health)
        if health.rss_mb > self._gate.memory_mb:
            yield f"the daemon takes {health.rss_mb:.0f} MB of memory, {self._gate.memory_mb:g} are allowed"

    def _waits_for(self, health: DaemonHealth) -> str:
        idle = [name for name, one in health.streams.items() if not one.inferred and one.state not in _IDLE]
        return f"stream {', '.join(idle)} has not inferred yet" if idle else "it is starting"

    def _unhealthy(self, health: DaemonHealth) -> Iterator[str]:
        for name in self._before.streams if self._before.known else health.streams:
            one = health.streams.get(name)
            if one is None:
                yield f"stream {name} is gone"
            elif one.state not in (*WELL, *_IDLE):
                yield f"stream {name} is {one.state}{': ' if one.detail else ''}{one.detail}"
            elif one.state in WELL and not one.inferred:
                yield f"stream {name} has not inferred yet"
            elif (slow := self._too_slow(name, one.infer_p95_ms)) is not None:
                yield slow

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


_BLIND_S = 60.0
"""Longest time without a comparison, s: the daemon may be starting, or a camera being opened."""
_STEPS = 10
"""Number of progress reports: each costs a write to disk."""


class ShadowTrial:
    """Judges new models that run beside those in use. Times are of a monotonic clock, s."""

    def __init__(self, update: str, gate: ShadowGate, health: HealthGate, began_s: float) -> None:
        """Begin a shadow.

        Args:
            update: sha256 of the bundle, which the daemon has to report.
            gate: required agreement.
            health: limits of the inference time.
            began_s: now.
        """
        self._update, self._gate, self._health, self._began_s = update, gate, health, began_s
        self._blind_since: float | None = began_s
        self.agreement: dict[str, float] = {}
        """Agreement of each stream that was compared often enough; filled when the verdict is `commit`."""

    def evaluate(self, now: float, seen: Observation) -> TrialDecision:
        """Judge an observation."""
        if fault := _describe_failures(seen):
            return TrialDecision("roll back", fault)
        if seen.health is None or seen.health.shadow != self._update:
            return self._blind(now, "the daemon does not run the new models beside those in use")
        beside = {
            name: one.shadow for name, one in seen.health.streams.items() if one.shadow and one.state in WELL
        }
        if not beside:
            return self._blind(now, self._unused(seen.health))
        self._blind_since = None
        if refused := next((why for name, one in beside.items() for why in self._refusals(name, one)), ""):
            return TrialDecision("roll back", refused)
        left = [(name, one) for name, one in beside.items() if one.compared < self._gate.compared]
        starting = self._starting(seen.health)
        if not left and not starting:
            self.agreement = {name: one.agreement or 0.0 for name, one in beside.items()}
            return TrialDecision("commit")
        what = self._progress(*left[0]) if left else f"stream {', '.join(starting)} has not inferred yet"
        return self._wait(now - self._began_s, self._gate.within_s, what)

    def _blind(self, now: float, what: str) -> TrialDecision:
        """Return the verdict while nothing is compared, which may be for a moment only."""
        if self._blind_since is None:
            self._blind_since = now
        return self._wait(now - self._blind_since, _BLIND_S, what)

    def _wait(self, waited_s: float, within_s: float, what: str) -> TrialDecision:
        if waited_s >= within_s:
            return TrialDecision("roll back", f"undecided after {waited_s:.0f} s: {what}")
        return TrialDecision("wait", what)

    def _starting(self, health: DaemonHealth) -> list[str]:
        """Return the streams that may still get a shadow."""
        states = ("starting", *WELL)
        return [name for name, one in health.streams.items() if one.state in states and not one.inferred]

    def _unused(self, health: DaemonHealth) -> str:
        if starting := self._starting(health):
            return f"stream {', '.join(starting)} has not inferred yet"
        return "no stream that infers uses one of the models that change"

    def _refusals(self, name: str, one: ShadowReport) -> Iterator[str]:
        if one.failed:
            yield f"stream {name}: the new model fails beside the one in use: {one.failed}"
        if one.compared < self._gate.compared:
            return
        if (agreed := one.agreement or 0.0) < self._gate.agreement:
            yield (
                f"stream {name}: the new model agrees by {agreed:.2f} with the one in use in {one.compared} "
                f"answers, expected at least {self._gate.agreement:g}"
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
        return f"stream {name}: {done} % of {self._gate.compared} answers with a result"


ROLLBACK_GATE = HealthGate(steady_s=10.0, within_s=120.0, p95_factor=100.0, memory_mb=1_000_000.0)
"""Gate of a rollback: the version was healthy once, so it only has to become ready."""


def trial_gate(update: Update, incoming: Path) -> tuple[HealthGate, Baseline]:
    """Return the gate and baseline of a trial; `ROLLBACK_GATE` for a rollback, which has no bundle."""
    before = Baseline(update.streams_before or {}, known=update.back or update.streams_before is not None)
    return ROLLBACK_GATE if update.back else read_description(incoming).health, before


UNIT, FOLLOWER = "vedette.service", "vedette-update.service"
_PATIENCE_S = 60.0
"""Longer than a stop, which may take its TimeoutStopSec."""


class ServiceState(Struct, frozen=True):
    """State of a service.

    Attributes:
        active: `active`, `activating`, `deactivating`, `failed`, `inactive` …
        restarts: automatic restarts by systemd since the last manual start.
        why: reason of its last end, such as `exit-code`, `signal`, `watchdog`; `success`: no failure, or it runs.
        waits: True if it has failed and systemd will restart it after a pause.
    """

    active: str = "inactive"
    restarts: int = 0
    why: str = "success"
    waits: bool = False

    @property
    def failures(self) -> int:
        """Failures since the last manual start: the restarts, and one that no restart has followed yet."""
        return self.restarts + (self.active == "failed" or self.waits)

    @property
    def runs(self) -> bool:
        return self.active == "active" and not self.waits


class Systemd:
    """Controls the daemon's service by `systemctl`; raises UpdateError with its output if it fails."""

    def restart(self) -> None:
        """Stop the daemon and start the version that `current` leads to, without waiting until it is ready."""
        # else systemd refuses to start a service that has failed too often
        self._run("reset-failed", UNIT, check=False)
        self._run("restart", "--no-block", UNIT)

    def reload(self) -> None:
        """Have the daemon read its configuration and changed models again."""
        self._run("reload", UNIT)

    def state(self) -> ServiceState:
        """Return the state of the daemon's service."""
        return self._state(UNIT)

    def _state(self, unit: str) -> ServiceState:
        output = self._run("show", "--property=ActiveState,SubState,NRestarts,Result", unit)
        fields = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        restarts = fields.get("NRestarts", "0")
        return ServiceState(
            fields.get("ActiveState", "inactive"),
            int(restarts) if restarts.isdigit() else 0,
            fields.get("Result", "success"),
            fields.get("SubState") == "auto-restart",
        )

    def hand_over(self) -> None:
        """Let the unit continue the current update, outside of this session."""
        self._run("reset-failed", FOLLOWER, check=False)
        self._run("start", "--no-block", FOLLOWER)

    def idle(self) -> str:
        """Return why the unit does not run the current update now; empty: it does."""
        found = self._state(FOLLOWER)
        if found.active in ("active", "activating", "reloading", "deactivating") and not found.waits:
            return ""
        return f"{FOLLOWER} is {'waiting for its restart' if found.waits else found.active}: {found.why}"

    @staticmethod
    def is_there() -> bool:
        """Return True if systemd runs here and knows the unit."""
        if shutil.which("systemctl") is None:
            return False
        return run(["systemctl", "cat", FOLLOWER], FOLLOWER, _PATIENCE_S, UpdateError).returncode == 0

    def _run(self, *words: str, check: bool = True) -> str:
        what = f"systemctl {' '.join(words)}"
        done = run(["systemctl", *words], what, _PATIENCE_S, UpdateError)
        if check and done.returncode:
            raise UpdateError(f"{what}: {output_of(done)}")
        return done.stdout


_HEALTH_MAX = 256 * 1024
"""Limit of health.json, bytes, as in `vedette-ssh`: the daemon, which writes it, is not trusted."""
_STALE_S = 15.0
"""Age at which the daemon counts as stuck or gone, s: it writes the file every two seconds."""


def read_health(path: Path) -> DaemonHealth | None:
    """Read health.json; return None if it cannot be read, is old, or is from an earlier boot."""
    try:
        health = from_json(read_regular(path, _HEALTH_MAX), DaemonHealth)
    except (OSError, StorageError, *NO_JSON):
        return None
    is_new = 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - health.at_s < _STALE_S
    return health if is_new and health.boot_id == boot_id() else None
