"""A rollout: the plan of its batches, and the updates of their boards; each step is recorded in the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, FleetError, reason_of
from agent.storage.files import add_line, owned_file
from agent.structs import from_json
from agent.text import plural
from agent.update.bundle import check_files, read_description
from agent.update.bundle.signing import signature_of
from agent.update.fleet import FleetBoard, Inventory, Size
from agent.update.fleet.board import BAD, BoardOutcome, BoardUpdate, BundleInfo, Timeouts, Watch
from agent.update.fleet.ssh import Transport, run_parallel

_BEGINNING = b'{"at":"'
"""Of each line of a ledger."""
_ADVICE = "name another --ledger"


Batch = tuple[str, ...]
"""Names of boards that are updated together."""


class Begun(Struct, frozen=True):
    """The plan of a rollout.

    Attributes:
        bundle: sha256 of the file. file: its name.
        version, counter: of the bundle.
        batches: names of the boards.
    """

    bundle: str
    file: str
    version: str
    counter: int
    batches: list[Batch]


class LedgerEntry(Struct, frozen=True, omit_defaults=True):
    """A line of the ledger: a rollout was begun, or the update of a board has ended.

    Attributes:
        at: UTC.
    """

    at: datetime
    begun: Begun | None = None
    outcome: BoardOutcome | None = None


class RolloutProgress(Struct, frozen=True):
    """Progress of a rollout.

    Attributes:
        begun: its plan.
        outcomes: the newest of each board, by name.
        reason: why it was stopped; empty: it was not.
    """

    begun: Begun
    outcomes: dict[str, BoardOutcome]
    reason: str = ""

    @property
    def left(self) -> tuple[Batch, ...]:
        """The batches without the boards that have the version; finished batches are empty."""
        has = {name for name, one in self.outcomes.items() if one.is_good}
        return tuple(tuple(name for name in batch if name not in has) for batch in self.begun.batches)

    @property
    def complete(self) -> bool:
        """True if every board has the version."""
        return not any(self.left)


def replay(entries: Iterable[LedgerEntry]) -> RolloutProgress | None:
    """Return the progress of the newest rollout in a ledger; None if there is none."""
    found: RolloutProgress | None = None
    for entry in entries:
        if entry.begun is not None:
            found = RolloutProgress(entry.begun, {})
        elif found is not None and entry.outcome is not None:
            found.outcomes[entry.outcome.board] = entry.outcome
    return found


class Ledger:
    """A file of entries; each is on the disk when `add` returns.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Lock the ledger, and create it if needed; raise StorageError if another process has locked it."""
        with owned_file(self.path):
            yield

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry; raise StorageError after a disk error."""
        add_line(self.path, msgspec.json.encode(entry))

    def read(self) -> list[LedgerEntry]:
        """Return all entries; none without a file, or if its first line was cut off. Damaged lines are ignored.

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
        if lines and not entries and not (len(lines) == 1 and lines[0].startswith(_BEGINNING[: len(lines[0])])):
            raise FleetError(f"{self.path}: is not a ledger of a rollout: {_ADVICE}")
        return entries


def _entry(line: bytes) -> Sequence[LedgerEntry]:
    try:
        return (from_json(line, LedgerEntry),)
    except NO_JSON:
        return ()


Show = Callable[[BoardOutcome], None]


def stop_reason(outcomes: Sequence[BoardOutcome], share: float, *, canary: bool) -> str:
    """Return why a rollout stops after a batch; empty if it continues.

    An unreachable board says nothing about the version and does not count. But every canary has to show that the
    version is good, and a whole batch out of reach means that something else is wrong.

    Args:
        outcomes: of each board of the batch.
        share: of the reached boards that may fail, 0 to 1.
        canary: True if these are the canaries.
    """
    bad = [one.board for one in outcomes if one.kind in BAD]
    away = [one.board for one in outcomes if one.kind == "unreachable"]
    reached = len(outcomes) - len(away)
    if canary and (bad or away):
        return f"the canary {', '.join([*bad, *away])} did not take the version"
    if outcomes and not reached:
        return "no board of the batch can be reached: check the network"
    if bad and len(bad) > share * reached:
        return f"{len(bad)} of {plural(reached, 'board')} failed ({', '.join(bad)}), {share:.0%} may"
    return ""


def plan(boards: Sequence[str], canary: Sequence[str], sizes: Sequence[Size]) -> tuple[Batch, ...]:
    """Divide the boards into batches.

    Args:
        boards: names, in the order of their updates.
        canary: boards of the first batch; names that are not among `boards` are ignored. If none is left, the
            first board is the canary.
        sizes: of the batches after the canary; the last one is repeated. Shares are of all boards, rounded up.

    Returns:
        the batches in their order; none is empty.
    """
    first = [name for name in boards if name in canary] or list(boards[:1])
    left = [name for name in boards if name not in first]
    batches = [tuple(first)] if first else []
    for number in range(len(left)):  # each batch takes one at least
        if not left:
            break
        size = _size(sizes[min(number, len(sizes) - 1)], len(boards))
        batches.append(tuple(left[:size]))
        left = left[size:]
    return tuple(batches)


def _size(size: Size, boards: int) -> int:
    if isinstance(size, int):
        return size
    return max(1, ceil(int(size.removesuffix("%")) * boards / 100))


def read_wanted(bundle: Path) -> BundleInfo:
    """Read and check a bundle; the boards verify its signature.

    Raises:
        FleetError: there is no such file, or no signature. BundleError: it is not a valid bundle.
    """
    try:
        bundle.name.encode()
    except UnicodeEncodeError as error:  # JSON could not hold it
        raise FleetError(f"{bundle}: its name is not UTF-8: rename it, and its signature") from error
    if not bundle.is_file():
        raise FleetError(f"{bundle}: there is no such file: `vedette bundle build` makes a bundle")
    if not signature_of(bundle).is_file():
        raise FleetError(f"{bundle}: has no signature beside it: vedette bundle sign {bundle} --key KEY")
    described = read_description(bundle)
    check_files(bundle, described)
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = bundle.stat().st_size
    shadow_s = described.shadow.within_s if described.shadow else 0.0
    return BundleInfo(bundle, digest, size, described.version, described.counter, described.kind, shadow_s)


class Rollout:
    """Rollout of one bundle with one ledger."""

    def __init__(
        self,
        inventory: Inventory,
        wanted: BundleInfo,
        ledger: Ledger,
        patience: Timeouts | None = None,
    ) -> None:
        """Create a rollout; nothing is done yet.

        Args:
            inventory: boards and policy.
            wanted: the bundle.
            ledger: an unfinished rollout of the same bundle in it is resumed.
            patience: timeouts for each board.
        """
        self._inventory, self._wanted, self._ledger = inventory, wanted, ledger
        self._patience = patience or Timeouts()
        self._transport = Transport(inventory.known_hosts)

    def begin(self, boards: dict[str, FleetBoard]) -> RolloutProgress:
        """Write the plan for these boards to the ledger, or resume the one there if it has the same boards.

        Raises:
            FleetError: the ledger has an incomplete rollout of another bundle.
            StorageError: a disk error.
        """
        progress, is_there = self._progress(boards)
        if not is_there:
            self._ledger.add(LedgerEntry(datetime.now(UTC), progress.begun))
        return progress

    def planned(self, boards: dict[str, FleetBoard]) -> list[Batch]:
        """Return the batches of `begin` without writing."""
        return self._progress(boards)[0].begun.batches

    def _progress(self, boards: dict[str, FleetBoard]) -> tuple[RolloutProgress, bool]:
        """Return the progress, and True if it comes from the ledger."""
        found = replay(self._ledger.read())
        if found is not None and not found.complete:
            self._check_same(found)
            if {name for batch in found.begun.batches for name in batch} == set(boards):
                return found, True
        policy = self._inventory.policy
        batches = plan(list(boards), policy.canary, policy.batches)
        wanted = self._wanted
        begun = Begun(wanted.sha256, wanted.path.name, wanted.version, wanted.counter, list(batches))
        return RolloutProgress(begun, {}), False

    def _check_same(self, found: RolloutProgress) -> None:
        if found.begun.bundle != self._wanted.sha256:
            raise FleetError(
                f"{self._ledger.path}: a rollout of another {found.begun.file} is not complete there: finish "
                "that one, or name another --ledger"
            )

    async def run(self, progress: RolloutProgress, watch: Watch, show: Show) -> RolloutProgress:
        """Update the remaining batches; return the progress.

        Args:
            progress: from `begin`.
            watch: called with each step of each board.
            show: called with each outcome.

        Raises:
            FleetError: there is no ssh or rsync here. StorageError: the ledger cannot be written.
        """
        outcomes, reason = dict(progress.outcomes), ""
        for number, batch in enumerate(progress.left):
            ended = await self._batch(batch, watch, show)
            outcomes |= {one.board: one for one in ended}
            if reason := stop_reason(ended, self._inventory.policy.stop_share, canary=number == 0):
                break
        return RolloutProgress(progress.begun, outcomes, reason)

    async def _batch(self, batch: Batch, watch: Watch, show: Show) -> list[BoardOutcome]:
        async def update(name: str) -> BoardOutcome:
            board = self._inventory.boards[name]
            outcome = await BoardUpdate(self._transport, board, self._wanted, watch, self._patience).run()
            self._ledger.add(LedgerEntry(datetime.now(UTC), outcome=outcome))
            show(outcome)
            return outcome

        return await run_parallel(batch, update, at_once=self._inventory.policy.at_once)


def verdict(progress: RolloutProgress) -> str:
    """Summarise a rollout in a sentence."""
    count = sum(len(batch) for batch in progress.begun.batches)
    if progress.complete:
        return "the board has it" if count == 1 else f"all {count} boards have it"
    left = sum(len(batch) for batch in progress.left)
    lack = "the board does" if count == 1 else f"{left} of {count} boards {'does' if left == 1 else 'do'}"
    if progress.reason:
        return f"stopped: {progress.reason}; {lack} not have it"
    return f"{lack} not have it yet"


def size(count: int) -> str:
    """Format a number of bytes; kB and MB are powers of 1000."""
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1_000_000:.1f} MB"
