"""The ledger of a rollout, so that it can be resumed: the outcome of each board, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError, reason_of
from agent.storage.files import add_line, owned_file
from agent.structs import from_json

_ADVICE = "name another --ledger"
_BEGINNING = b'{"type":"begun",'


Batch = tuple[str, ...]
"""Names of boards that are updated together."""
Kind = Literal["updated", "current", "refused", "rolled_back", "failed", "unreachable"]
"""Outcome: `updated`: it has committed the version. `current`: it had the version already. `refused`: it
has refused the update. `rolled_back`: it tried, and rolled back. `failed`: it could not be asked to, or does not
say why. `unreachable`: it did not answer, which says nothing about the version."""
KINDS: tuple[Kind, ...] = get_args(Kind)
GOOD: frozenset[Kind] = frozenset(("updated", "current"))
BAD: frozenset[Kind] = frozenset(("refused", "rolled_back", "failed"))


class BoardOutcome(Struct, frozen=True, omit_defaults=True):
    """Outcome of an update on one board.

    Attributes:
        board: its name.
        kind: see `Kind`.
        reason: in words.
        version: that runs now; empty: unknown.
        seconds: duration of the update.
        sent: bytes of the bundle that were sent. size: of the bundle, bytes.
        downtime_s: time without inferences; None: the daemon was not stopped, or this is unknown.
    """

    board: str
    kind: Kind
    reason: str = ""
    version: str = ""
    seconds: float = 0.0
    sent: int = 0
    size: int = 0
    downtime_s: float | None = None

    @property
    def is_good(self) -> bool:
        """True if the board has the version."""
        return self.kind in GOOD


def count_by_kind(outcomes: Iterable[BoardOutcome]) -> dict[Kind, int]:
    """Count the outcomes by kind, without the kinds that do not occur."""
    kinds = [one.kind for one in outcomes]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def how_many(count: int) -> str:
    """Format a number of boards."""
    return "1 board" if count == 1 else f"{count} boards"


class Begun(Struct, frozen=True, tag="begun"):
    """A rollout was begun.

    Attributes:
        at: UTC.
        bundle: sha256 of the file. file: its name.
        version, counter: of the bundle.
        batches: names of the boards.
    """

    at: datetime
    bundle: str
    file: str
    version: str
    counter: int
    batches: list[Batch]


class Resumed(Struct, frozen=True, tag="resumed"):
    """The rollout was resumed; failed boards are tried again."""

    at: datetime


class Started(Struct, frozen=True, tag="started"):
    """The update of a board was started."""

    at: datetime
    board: str


class Ended(Struct, frozen=True, tag="ended"):
    """The update of a board ended."""

    at: datetime
    outcome: BoardOutcome


class Stopped(Struct, frozen=True, tag="stopped"):
    """The rollout stopped before its end."""

    at: datetime
    reason: str


class Done(Struct, frozen=True, tag="done"):
    """All batches were tried."""

    at: datetime


Entry = Begun | Resumed | Started | Ended | Stopped | Done


class RolloutProgress(Struct, frozen=True):
    """Progress of a rollout.

    Attributes:
        begun: its first entry.
        outcomes: the newest of each board, by name.
        reason: why it was stopped; empty: it was not.
        done: all batches were tried.
    """

    begun: Begun
    outcomes: dict[str, BoardOutcome]
    reason: str = ""
    done: bool = False

    @property
    def left(self) -> tuple[Batch, ...]:
        """The batches without the boards that have the version; finished batches are empty."""
        has = {name for name, one in self.outcomes.items() if one.is_good}
        return tuple(tuple(name for name in batch if name not in has) for batch in self.begun.batches)

    @property
    def complete(self) -> bool:
        """True if every board has the version."""
        return not any(self.left)


def replay(entries: Iterable[Entry]) -> RolloutProgress | None:
    """Return the progress of the newest rollout in a ledger; None if there is none."""
    found: RolloutProgress | None = None
    for entry in entries:
        if isinstance(entry, Begun):
            found = RolloutProgress(entry, {})
        elif found is not None:
            found = _after(found, entry)
    return found


def _after(before: RolloutProgress, entry: Entry) -> RolloutProgress:
    match entry:
        case Ended(_, outcome):
            outcomes = {**before.outcomes, outcome.board: outcome}
            return msgspec.structs.replace(before, outcomes=outcomes)
        case Resumed():
            return msgspec.structs.replace(before, reason="", done=False)
        case Stopped(_, reason):
            return msgspec.structs.replace(before, reason=reason)
        case Done():
            return msgspec.structs.replace(before, done=True)
    return before


class Ledger:
    """A file of entries; each is on the disk when `add` returns.

    Attributes:
        path: of the file.
        left_out: damaged lines that the last `read` ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.left_out = path, 0

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Lock the ledger, and create it if needed; raise StorageError if another process has locked it."""
        with owned_file(self.path):
            yield

    def add(self, entry: Entry) -> None:
        """Add an entry; raise StorageError after a disk error."""
        add_line(self.path, msgspec.json.encode(entry))

    def read(self) -> list[Entry]:
        """Return all entries; none without a file. Damaged lines are ignored.

        Raises:
            FleetError: it cannot be read, or is not a ledger.
        """
        try:
            lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FleetError(f"{self.path}: cannot be read: {reason_of(error)}; {_ADVICE}") from error
        entries = [entry for line in lines for entry in _entry(line)]
        self.left_out = len(lines) - len(entries)
        if lines and not entries and not _is_begun(lines):
            raise FleetError(f"{self.path}: is not a ledger of a rollout: {_ADVICE}")
        return entries


def _is_begun(lines: Sequence[bytes]) -> bool:
    """True for a single incomplete line: a power cut before anything was done."""
    return len(lines) == 1 and (lines[0].startswith(_BEGINNING) or _BEGINNING.startswith(lines[0]))


def _entry(line: bytes) -> Sequence[Entry]:
    try:
        return (from_json(line, Entry),)
    except NO_JSON:
        return ()
