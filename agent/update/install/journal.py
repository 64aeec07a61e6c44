"""The journal of a board's updates: the current one with its state, an operator's orders to it, and the history.

    received → verified → staged → tested [→ shadow] → switching → trial → committed
                                                               └──────┴────→ rolled_back
    received, verified, staged, tested, shadow ────────────────────────────→ refused

Each state is on disk before the work for the next one begins. An update that is interrupted before `switching`
has changed nothing that runs, and begins again from its bundle. A switch that is interrupted is undone before the
daemon starts. An interrupted trial continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from agent.errors import NO_JSON, StorageError, UpdateError
from agent.storage.files import add_line, keep_newest, read_lines, remove, rename
from agent.storage.state import StateFile
from agent.structs import from_json
from agent.text import local_time
from agent.update.install.slots import ModelSets, Paths, Slot, Slots

# Structs that boards report of updates: `journal.json` and `vedette update status --json`.
#
# The updater and the fleet read these. Other versions may write other fields: unknown ones are
# ignored, missing ones get their defaults.

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
        models: counter of the set in use; 0: none.
        kind: of the bundle with this counter; empty: not in the history.
    """

    version: str = ""
    slot: str = ""
    previous: str = ""
    counter: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    at_hand: Update | None = None
    trouble: str = ""
    models: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
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


BEFORE_SWITCH: frozenset[State] = frozenset(("received", "verified", "staged", "tested", "shadow"))
"""States in which nothing that runs has been changed."""
_NEXT: Mapping[State, tuple[State, ...]] = {
    "received": ("verified", "refused"),
    "verified": ("staged", "refused"),
    "staged": ("tested", "refused"),
    "tested": ("shadow", "switching", "refused"),
    "shadow": ("switching", "refused"),
    "switching": ("trial", "rolled_back"),
    "trial": ("committed", "rolled_back"),
}
Order = Literal["confirm", "rollback"]
_HISTORY_MAX = 1024**2
"""Bytes of the history: about 2,000 updates."""
_REASON_MAX = 1000
"""Characters of a reason: the daemon, which is not trusted, may report any text."""


def check_step(before: State, after: State) -> None:
    """Raise UpdateError if no update takes this step."""
    if after not in _NEXT.get(before, ()):
        raise UpdateError(f"an update that is {before} cannot become {after}: internal error (please report)")


class Journal:
    """Journal of one board's updates; only one process at a time may write the current update.

    Methods raise StorageError after a disk error.
    """

    def __init__(self, where: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._history = StateFile(where.journal), where.history
        self._counter, self._trial = StateFile(where.counter), where.trial
        self._order = StateFile(where.state / "order")
        self._clock, self._since = clock, clock()

    def read(self) -> Update | None:
        """Return the current update, or the newest one; None: there was none.

        Raises:
            UpdateError: the file is damaged, which no power cut does.
        """
        content = self._file.read()
        if content is None:
            return None
        try:
            return from_json(content, Update)
        except NO_JSON as error:
            raise UpdateError(
                f"{self._file.path}: is damaged: {error}; `vedette update resume` sets it aside"
            ) from error

    def mend(self) -> bool:
        """Set a damaged journal aside; return True if it was. The rollback watchdog ends its trial."""
        try:
            self.read()
        except (UpdateError, StorageError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            rename(self._file.path, self._file.path.with_name(f"{self._file.path.name}.damaged"))
            return True
        return False

    def begin(self, update: Update) -> Update:
        """Write the first state of an update; raise UpdateError if another update is not over."""
        self.check_free()
        self._since = self._clock()
        return self._write(_bounded(update))

    def check_free(self) -> None:
        """Raise UpdateError if another update is not over."""
        last = self.read()
        if (last is None or last.finished) and self._trial.exists():
            raise UpdateError(
                "a version is on trial without an updater: the rollback watchdog ends that within minutes"
            )
        if last is not None and not last.finished:
            raise UpdateError(
                f"an update to {last.version or last.file} is not over ({last.state}): see `vedette update "
                "status`; `vedette update resume` continues it"
            )

    def step(self, update: Update, state: State, **changes: object) -> Update:
        """Write the next state; add an update that is over to the history.

        Raises:
            UpdateError: no update takes this step.
        """
        check_step(update.state, state)
        now = self._clock()
        spent = round(update.seconds.get(update.state, 0.0) + now - self._since, 3)
        self._since = now
        changes |= {"seconds": {**update.seconds, update.state: spent}}
        changes |= {"ended_at": datetime.now(UTC) if state in FINAL else None}
        update = _bounded(msgspec.structs.replace(update, state=state, **changes))
        if update.finished:  # first: `history` drops a duplicate, but a missing one would be lost
            self.add(update)
        return self._write(update)

    def add(self, update: Update) -> None:
        """Add an update that is over to the history; write the counter of a committed one first."""
        if update.state == "committed" and update.counter > self._stored_counter():
            self._counter.write(f"{update.counter}\n".encode())
        add_line(self._history, msgspec.json.encode(update))
        keep_newest(self._history, _HISTORY_MAX)

    def update_fields(self, update: Update, **changes: object) -> Update:
        """Write changed fields, in the same state."""
        return self._write(_bounded(msgspec.structs.replace(update, **changes)))

    def _write(self, update: Update) -> Update:
        self._file.write(msgspec.json.format(msgspec.json.encode(update)) + b"\n")
        return update

    def history(self) -> list[Update]:
        """Return every update with its outcome, oldest first, without damaged lines."""
        found: dict[tuple[datetime, str], Update] = {}
        for line in read_lines(self._history):
            with suppress(*NO_JSON):
                update = from_json(line, Update)
                found[update.began_at, update.bundle] = update
        return list(found.values())

    def committed_counter(self) -> int:
        """Return the highest counter that was ever committed; 0: none."""
        newest = max((one.counter for one in self.history() if one.state == "committed"), default=0)
        return max(newest, self._stored_counter())

    def _stored_counter(self) -> int:
        """Read the counter's own file: the history drops old lines."""
        content = (self._counter.read() or b"").strip()
        return int(content) if content.isdigit() and len(content) < 20 else 0

    def order(self, order: Order) -> None:
        """Store an order of an operator for the process that runs the update."""
        self._order.write(order.encode())

    def read_order(self) -> Order | None:
        """Return the stored order, if any; call `delete_order` after it is carried out."""
        try:
            text = (self._order.read() or b"").decode("utf-8", "replace").strip()
        except StorageError:
            return None
        return next((order for order in get_args(Order) if order == text), None)

    def delete_order(self) -> None:
        """Delete the stored order."""
        remove(self._order.path)


def _bounded(update: Update) -> Update:
    """Replace undecodable bytes and truncate the reason, so that the record is valid JSON."""
    reason, file = (text.encode("utf-8", "replace").decode() for text in (update.reason, update.file))
    if len(reason) > _REASON_MAX:
        reason = f"{reason[:_REASON_MAX]} …"
    return msgspec.structs.replace(update, reason=reason, file=file)


def history_line(one: Update) -> str:
    """Format an update and its outcome as one line."""
    what = f"{one.from_version or '?'} → {one.version or Path(one.file).name}"
    if one.counter and one.version != str(one.counter):  # two builds may have the same version
        what += f" (counter {one.counter})"
    took = f"{sum(one.seconds.values()):.0f} s"
    down = "" if one.downtime_s is None else f", down {one.downtime_s:.1f} s"
    why = f"  {one.by}: {one.reason}" if one.reason else ""
    return f"{local_time(one.began_at)}  {one.state:<11}  {what}  {took}{down}{why}"


def status(where: Paths) -> UpdateStatus:
    """Return the versions of a board and its current update; raise StorageError if they cannot be read."""
    slots, journal = Slots(where.home), Journal(where)
    running = slots.target("current")
    other: Slot = "b" if running == "a" else "a"
    at_hand, trouble = None, ""
    try:
        at_hand = journal.read()
    except UpdateError as error:
        trouble = str(error)
    counter, models = journal.committed_counter(), 0
    if running:
        with suppress(StorageError):  # a link that an operator has made
            models = ModelSets(slots.path(running)).current
    return UpdateStatus(
        version=slots.version(running) if running else "",
        slot=running or "",
        previous=slots.proved_version(other) if running else "",
        counter=counter,
        at_hand=at_hand,
        trouble=trouble,
        models=models,
        kind=_kind(journal, counter),
    )


def _kind(journal: Journal, counter: int) -> str:
    """Return the kind of the newest committed bundle with that counter."""
    for one in reversed(journal.history()):
        if one.state == "committed" and one.counter == counter and not one.back:
            return one.kind
    return ""


_POLL_S = 0.5
_IDLE_S = 20.0
"""Longest time for the unit to start, on a busy board or after a failure."""
_UNCHANGED_S = 3600.0
"""Longest time in one state, except for `shadow`, which waits for something to appear before the camera."""

_RESUME = "see `systemctl status vedette-update.service`; `vedette update resume` continues it here"


def follow(
    where: Paths,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    idle: Callable[[], str] = lambda: "",
    clock: Callable[[], float] = time.monotonic,
) -> Update:
    """Show the progress of an update that another process runs, until it is over.

    Args:
        where: paths of the board.
        tell: called with each state, and with what a trial waits for.
        sleep: waits so many seconds.
        idle: returns why no process runs the update now; empty: one does.
        clock: monotonic, s.

    Raises:
        UpdateError: there is no update, or no process continues it.
        StorageError: the journal cannot be read.
    """
    journal, shown, waited_s, idle_since = Journal(where), ("", ""), 0.0, clock()
    while waited_s < _UNCHANGED_S:
        update = journal.read()
        if update is None:
            raise UpdateError("there is no update: see `vedette update status`")
        if (update.state, update.reason) != shown:
            shown, waited_s = (update.state, update.reason), 0.0
            tell(f"{update.state}{': ' if update.reason else ''}{update.reason}")
        if update.finished:
            return update
        if not (why := idle()):
            idle_since = clock()
        elif clock() - idle_since > _IDLE_S:
            raise UpdateError(f"no process continues the update, which is {update.state}: {why}: {_RESUME}")
        sleep(_POLL_S)
        waited_s += 0.0 if update.state == "shadow" else _POLL_S
    raise UpdateError(f"the update is {shown[0]} for an hour: {_RESUME}")
