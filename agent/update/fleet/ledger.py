"""The ledger of a rollout: a JSON object in each line, added as things happen, so that it can be gone on with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError, reason_of
from agent.storage.copies import add_line, owned_file
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
    """It was gone on with; what had failed is tried again."""

    at: datetime


class Started(Struct, frozen=True, tag="started"):
    """A board is being updated."""

    at: datetime
    board: str


class Ended(Struct, frozen=True, tag="ended"):
    """What became of a board."""

    at: datetime
    outcome: BoardOutcome


class Stopped(Struct, frozen=True, tag="stopped"):
    """The rollout stopped before its end."""

    at: datetime
    reason: str


class Done(Struct, frozen=True, tag="done"):
    """Every batch had its turn."""

    at: datetime


Entry = Begun | Resumed | Started | Ended | Stopped | Done


class RolloutProgress(Struct, frozen=True):
    """How far a rollout has come.

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
        """The batches, with the boards that do not have the version yet; those that are through are empty."""
        has = {name for name, one in self.outcomes.items() if one.is_good}
        return tuple(tuple(name for name in batch if name not in has) for batch in self.begun.batches)

    @property
    def complete(self) -> bool:
        """Whether every board has the version."""
        return not any(self.left)


def replay(entries: Iterable[Entry]) -> RolloutProgress | None:
    """How far a rollout has come, by its ledger; None: it has not begun.

    Of several rollouts in one ledger the newest counts.
    """
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
        left_out: lines that the last `read` could not make anything of.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.left_out = path, 0

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own it while the context lasts; it is made where there is none.

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
        """What is in it; nothing where there is no file. Lines that are damaged, or cut off, are left out.

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
    """Whether there is one line, which the power cut off before it was whole: nothing had been done yet."""
    return len(lines) == 1 and (lines[0].startswith(_BEGINNING) or _BEGINNING.startswith(lines[0]))


def _entry(line: bytes) -> Sequence[Entry]:
    try:
        return (msgspec.json.decode(line, type=Entry),)
    except NO_JSON:
        return ()


def now() -> datetime:
    """UTC."""
    return datetime.now(UTC)
