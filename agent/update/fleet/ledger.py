"""The ledger of a rollout: one JSON object a line, written as things happen, so that a rollout can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError, reason_of
from agent.storage.files import add_line, owned_file
from agent.update.fleet.policy import Batch, BoardOutcome

_ADVICE = "name another --ledger"
_BEGINNING = b'{"type":"begun",'


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
        begun: what it is.
        outcomes: the newest of each board, by name.
        reason: it was stopped for; empty: it was not.
        done: every batch had its turn.
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
        """Lock the ledger while the context lasts; create it if it does not exist.

        Raises:
            StorageError: another process owns it, or it cannot be written.
        """
        with owned_file(self.path):
            yield

    def add(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            StorageError: the disk refuses.
        """
        add_line(self.path, msgspec.json.encode(entry))

    def read(self) -> list[Entry]:
        """Return all entries; none without a file. Damaged lines are ignored.

        Raises:
            FleetError: it cannot be read, or is no ledger.
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
            raise FleetError(f"{self.path}: is no ledger of a rollout: {_ADVICE}")
        return entries


def _is_begun(lines: Sequence[bytes]) -> bool:
    """True for a single incomplete line: a power cut before anything was done."""
    return len(lines) == 1 and (lines[0].startswith(_BEGINNING) or _BEGINNING.startswith(lines[0]))


def _entry(line: bytes) -> Sequence[Entry]:
    try:
        return (msgspec.json.decode(line, type=Entry),)
    except NO_JSON:
        return ()


def now() -> datetime:
    """UTC."""
    return datetime.now(UTC)
