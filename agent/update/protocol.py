"""Structs that boards report of updates: `journal.json` and `vedette update status --json`.

The updater and the fleet read these. Other versions may write other fields: unknown ones are
ignored, missing ones get their defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

State = Literal[
    "received",
    "verified",
    "staged",
    "tested",
    "shadow",
    "switching",
    "trial",
    "committed",
    "rolled_back",
    "refused",
]
STATES: tuple[State, ...] = get_args(State)
FINAL: frozenset[State] = frozenset(("committed", "rolled_back", "refused"))
"""An update in one of these states is over."""
Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""Integer that JSON encoders can write: a larger one from a board would break `vedette fleet status --json`."""


class Update(Struct, frozen=True, kw_only=True):
    """An update, current or in the history.

    Attributes:
        state: see `agent.update.install.journal`.
        version, counter, kind: of the bundle; empty and 0 until the signature is verified.
        bundle: sha256 of the bundle.
        file: path of the bundle.
        signer: name of the key in `allowed_signers`.
        slot: of the update; empty until it is staged.
        before: slot that ran before; empty until the update is staged.
        from_version: version that ran before.
        began_at, ended_at: UTC.
        seconds: time spent in each state.
        downtime_s: from the stop of the old daemon until every stream of the new one has inferred; None: nothing
            was stopped, or not yet.
        reason: why it was refused or rolled back; during a trial, what the trial waits for.
        by: who decided: `updater`, `operator`, `deadman` (the rollback watchdog), `settle` (the same at boot).
        streams_before: healthy streams before the switch, with the 95th percentile of their inference times, ms;
            None: no daemon reported.
        failures_before: failures of the service since its start.
        models_before: number of the previous set of models.
        back: True for a rollback that an operator has asked for.
        starts: number of attempts; during a trial of models, boots of the board.
        boot_id: of the boot that was counted last.
        pid_before, reloads_before: the daemon before the switch, see `health_check.DaemonBefore`.
        agreement: of new models with those in use, 0..1 by stream; empty without a shadow.
    """

    state: State
    version: str = ""
    counter: Int = 0
    kind: str = ""
    bundle: str = ""
    file: str = ""
    signer: str = ""
    slot: str = ""
    before: str = ""
    from_version: str = ""
    began_at: datetime
    ended_at: datetime | None = None
    seconds: dict[str, float] = {}
    downtime_s: float | None = None
    reason: str = ""
    by: str = "updater"
    streams_before: dict[str, float | None] | None = None
    failures_before: Int = 0
    models_before: Int = 0
    back: bool = False
    starts: Int = 0
    boot_id: str = ""
    pid_before: Int = 0
    reloads_before: Int = -1
    agreement: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """True in a final state."""
        return self.state in FINAL


class UpdateStatus(Struct, frozen=True):
    """`vedette update status --json`.

    Attributes:
        version: that runs.
        slot: of this version; empty: nothing is installed.
        previous: version that a rollback returns to, never one that was refused or failed; empty: none.
        counter: the highest that was committed; the next bundle has to be above it.
        at_hand: the current update, or the newest; None: there was none.
        trouble: why the current update is unknown; empty: it is known.
        models: counter of the set in use; 0: none; -1: not reported, by an older board.
        kind: of the bundle with this counter; empty: not in the history.
    """

    version: str = ""
    slot: str = ""
    previous: str = ""
    counter: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    at_hand: Update | None = None
    trouble: str = ""
    models: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1
    kind: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the status as text."""
        if not self.slot:
            yield "nothing is installed in slots here: run scripts/install"
            return
        yield f"version   {self.version or 'unknown'}, slot {self.slot}"
        yield f"previous  {self.previous or 'none'}"
        yield f"counter   {self.counter}"
        if self.models > 0:
            yield f"models    {self.models}"
        if self.trouble:
            yield f"update    unknown: {self.trouble}"
        if (one := self.at_hand) is not None:
            why = f": {one.reason}" if one.reason else ""
            yield f"{'last' if one.finished else 'update':<9} {one.version or one.file} {one.state}{why}"
