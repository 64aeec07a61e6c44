"""The journal: how far the update at hand has come, on the disk before more is done; and the history."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from agent.errors import NO_JSON, StorageError, UpdateError
from agent.storage.files import add_line, keep_newest, read_lines, rename
from agent.storage.state_file import StateFile
from agent.update.install.paths import Paths
from agent.update.protocol import FINAL, State, Update

# The states of an update, and which may follow which: rules without I/O.
#
#     received → verified → staged → tested [→ shadow] → switching → trial → committed
#                                                               └──────┴────→ rolled_back
#     received, verified, staged, tested, shadow ────────────────────────────→ refused
#
# Each state is on the disk before anything is done that belongs to the next one. Whatever is cut off before
# `switching` has changed nothing that runs: it is done again from the bundle. What is cut off in `switching` is
# undone before the daemon starts. A trial goes on where it was.

BEFORE_SWITCH: frozenset[State] = frozenset(("received", "verified", "staged", "tested", "shadow"))
"""Nothing that runs has been changed."""

_NEXT: Mapping[State, frozenset[State]] = {
    "received": frozenset(("verified", "refused")),
    "verified": frozenset(("staged", "refused")),
    "staged": frozenset(("tested", "refused")),
    "tested": frozenset(("shadow", "switching", "refused")),
    "shadow": frozenset(("switching", "refused")),
    "switching": frozenset(("trial", "rolled_back")),
    "trial": frozenset(("committed", "rolled_back")),
    "committed": frozenset(),
    "rolled_back": frozenset(),
    "refused": frozenset(),
}

Step = Literal["again", "undo", "follow", "nothing"]
"""Step to take with an update that was cut off: begin again with its bundle, undo the switch, go on with the
trial, or nothing."""

_AFTER_CUT: Mapping[State, Step] = {
    "received": "again",
    "verified": "again",
    "staged": "again",
    "tested": "again",
    "shadow": "again",
    "switching": "undo",
    "trial": "follow",
    "committed": "nothing",
    "rolled_back": "nothing",
    "refused": "nothing",
}


def check_step(before: State, after: State) -> None:
    """Refuse a step that no update takes.

    Raises:
        UpdateError: it is one.
    """
    if after not in _NEXT[before]:
        raise UpdateError(f"an update that is {before} cannot become {after}: internal error (please report)")


def after_cut(state: State) -> Step:
    """Return the step to take with an update that was cut off in this state."""
    return _AFTER_CUT[state]


_LARGEST = 1024**2
"""Bytes of the history: some 2,000 updates."""
_REASON = 1000
"""Letters of a reason that are kept: a daemon may say what it likes."""


class Journal:
    """Journal of one board's updates; only one process at a time may write it."""

    def __init__(self, where: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._history = StateFile(where.journal), where.history
        self._counter, self._trial = StateFile(where.counter), where.trial
        self._clock, self._since = clock, clock()

    def read(self) -> Update | None:
        """The update at hand, or the newest one; None: there was none.

        Raises:
            UpdateError: it is damaged, which no power cut does.
            StorageError: it cannot be read.
        """
        content = self._file.read()
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Update)
        except NO_JSON as error:
            raise UpdateError(
                f"{self._file.path}: is damaged: {error}; `vedette update resume` sets it aside"
            ) from error

    def mend(self) -> bool:
        """Set a damaged journal aside; return True if it was. The rollback watchdog ends its trial.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            self.read()
        except (UpdateError, StorageError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            rename(self._file.path, self._file.path.with_name(f"{self._file.path.name}.damaged"))
            return True
        return False

    def begin(self, update: Update) -> Update:
        """Write the first state of an update.

        Raises:
            UpdateError: another is at hand.
            StorageError: the disk refuses.
        """
        self.check_free()
        self._since = self._clock()
        return self._write(_bounded(update))

    def check_free(self) -> None:
        """Refuse to begin while an update is at hand.

        Raises:
            UpdateError: one is.
            StorageError: it cannot be read.
        """
        last = self.read()
        if (last is None or last.over) and self._trial.exists():
            raise UpdateError(
                "a version is on trial without an updater: the rollback watchdog ends that within minutes"
            )
        if last is not None and not last.over:
            raise UpdateError(
                f"an update to {last.version or last.file} is at hand ({last.state}): see `vedette update "
                "status`; `vedette update resume` goes on with it"
            )

    def step(self, update: Update, state: State, **changes: object) -> Update:
        """Write the next state; a final one goes into the history, too.

        Raises:
            UpdateError: no update takes this step.
            StorageError: the disk refuses.
        """
        check_step(update.state, state)
        now = self._clock()
        spent = {
            **update.seconds,
            update.state: round(update.seconds.get(update.state, 0.0) + now - self._since, 3),
        }
        self._since = now
        ended = datetime.now(UTC) if state in FINAL else None
        update = _bounded(msgspec.structs.replace(update, state=state, seconds=spent, ended_at=ended, **changes))
        if update.over:  # first: what is told twice is found by when it began, what is told never is lost
            self.add(update)
        return self._write(update)

    def add(self, update: Update) -> None:
        """Put what is over into the history; the counter of what was committed first.

        Raises:
            StorageError: the disk refuses.
        """
        if update.state == "committed" and update.counter > self._told_counter():
            self._counter.write(f"{update.counter}\n".encode())
        add_line(self._history, msgspec.json.encode(update))
        keep_newest(self._history, _LARGEST)

    def note(self, update: Update, **changes: object) -> Update:
        """Write what has become known, in the same state.

        Raises:
            StorageError: the disk refuses.
        """
        return self._write(_bounded(msgspec.structs.replace(update, **changes)))

    def telling(self, update: Update, tell: Callable[[str], None]) -> Callable[[str], None]:
        """Give what tells why it waits, and notes that."""

        def told(reason: str) -> None:
            tell(reason)
            self.note(update, reason=reason)

        return told

    def _write(self, update: Update) -> Update:
        self._file.write(msgspec.json.format(msgspec.json.encode(update)) + b"\n")
        return update

    def history(self) -> list[Update]:
        """Return every update with its outcome, oldest first; damaged lines are left out.

        Raises:
            StorageError: it cannot be read.
        """
        found: dict[tuple[datetime, str], Update] = {}
        for line in read_lines(self._history):
            try:
                update = msgspec.json.decode(line, type=Update)
            except NO_JSON:
                continue
            found[update.began_at, update.bundle] = update
        return list(found.values())

    def committed_counter(self) -> int:
        """The highest that was ever committed: an older one is refused.

        Raises:
            StorageError: it cannot be read.
        """
        told = max((one.counter for one in self.history() if one.state == "committed"), default=0)
        return max(told, self._told_counter())

    def _told_counter(self) -> int:
        """In its own file: lines of the history make room for newer ones."""
        content = (self._counter.read() or b"").strip()
        return int(content) if content.isdigit() and len(content) < 20 else 0


def _bounded(update: Update) -> Update:
    """With what JSON takes: a name of a file may have bytes that are no letters, and so may what tells of it."""
    reason, file = (text.encode("utf-8", "replace").decode() for text in (update.reason, update.file))
    if len(reason) > _REASON:
        reason = f"{reason[:_REASON]} …"
    return msgspec.structs.replace(update, reason=reason, file=file)


def now() -> datetime:
    """UTC."""
    return datetime.now(UTC)
