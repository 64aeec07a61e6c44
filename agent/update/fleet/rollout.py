"""The rollout: takes the boards through the plan batch by batch, and writes the ledger as it goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from agent.errors import FleetError
from agent.update.bundle.archive import check, read_description
from agent.update.bundle.signing import signature_of
from agent.update.fleet.board_update import BoardUpdate, BundleInfo, Timeouts, Watch
from agent.update.fleet.inventory import FleetBoard, Inventory
from agent.update.fleet.ledger import (
    Begun,
    Done,
    Ended,
    Ledger,
    Resumed,
    RolloutProgress,
    Started,
    Stopped,
    now,
    replay,
)
from agent.update.fleet.parallel import run_parallel
from agent.update.fleet.policy import Batch, BoardOutcome, plan, stop_reason
from agent.update.fleet.ssh import Transport

Show = Callable[[BoardOutcome], None]


def _check_there(bundle: Path) -> None:
    """Refuse what is no file, or has a name that no ledger can have in it.

    Raises:
        FleetError: says what it is.
    """
    try:
        bundle.name.encode()
    except UnicodeEncodeError as error:
        raise FleetError(f"{bundle}: its name is no UTF-8: rename it, and its signature") from error
    if not bundle.is_file():
        raise FleetError(f"{bundle}: there is no such file: `vedette bundle build` makes a bundle")


def read_wanted(bundle: Path) -> BundleInfo:
    """What a bundle brings, after a look at every file of it; who signed it is for the boards to judge.

    Raises:
        FleetError: it is not there, or has no signature. BundleError: it is none.
    """
    _check_there(bundle)
    if not signature_of(bundle).is_file():
        raise FleetError(f"{bundle}: has no signature beside it: vedette bundle sign {bundle} --key KEY")
    described = read_description(bundle)
    check(bundle, described)
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = bundle.stat().st_size
    shadow_s = described.shadow.within_s if described.shadow else 0.0
    return BundleInfo(bundle, digest, size, described.version, described.counter, described.kind, shadow_s)


class Rollout:
    """Of one bundle, through one ledger."""

    def __init__(
        self,
        inventory: Inventory,
        wanted: BundleInfo,
        ledger: Ledger,
        patience: Timeouts | None = None,
    ) -> None:
        """Nothing is done yet.

        Args:
            inventory: of the boards, and how to go through them.
            wanted: what they are to have.
            ledger: that is written; what is in it of the same bundle is gone on with.
            patience: with each board.
        """
        self._inventory, self._wanted, self._ledger = inventory, wanted, ledger
        self._patience = patience or Timeouts()
        self._transport = Transport(inventory.known_hosts)

    def begin(self, boards: dict[str, FleetBoard]) -> RolloutProgress:
        """Note the plan in the ledger, or find the one that is there and goes through the same boards.

        Args:
            boards: that are to be updated.

        Raises:
            FleetError: the ledger is of another bundle, and not complete.
            StorageError: the disk refuses.
        """
        standing, is_there = self._standing(boards)
        self._ledger.add(Resumed(now()) if is_there else standing.begun)
        return standing

    def planned(self, boards: dict[str, FleetBoard]) -> list[Batch]:
        """The batches that it would go through, or is going through by the ledger. Nothing is written.

        Args:
            boards: that are to be updated.

        Raises:
            FleetError: see `begin`.
        """
        return self._standing(boards)[0].begun.batches

    def _standing(self, boards: dict[str, FleetBoard]) -> tuple[RolloutProgress, bool]:
        """Where it begins, and whether that is what the ledger tells."""
        found = replay(self._ledger.read())
        if found is not None and not found.complete:
            self._check_same(found)
            if {name for batch in found.begun.batches for name in batch} == set(boards):
                return found, True
        policy = self._inventory.policy
        batches = plan(list(boards), policy.canary, policy.batches)
        wanted = self._wanted
        begun = Begun(now(), wanted.sha256, wanted.path.name, wanted.version, wanted.counter, list(batches))
        return RolloutProgress(begun, {}), False

    def _check_same(self, found: RolloutProgress) -> None:
        if found.begun.bundle != self._wanted.sha256:
            raise FleetError(
                f"{self._ledger.path}: a rollout of another {found.begun.file} is not complete there: finish "
                "that one, or name another --ledger"
            )

    async def run(self, standing: RolloutProgress, watch: Watch, show: Show) -> RolloutProgress:
        """Go through what is left of the plan; gives how far it has come.

        Args:
            standing: as `begin` gave it.
            watch: is told what each board is at.
            show: is given each outcome.

        Raises:
            FleetError: there is no ssh or rsync here. StorageError: the ledger cannot be written.
        """
        for number, batch in enumerate(standing.left):
            outcomes = await self._batch(batch, watch, show)
            share = self._inventory.policy.stop_share
            if reason := stop_reason(outcomes, share, canary=number == 0):
                self._ledger.add(Stopped(now(), reason))
                break
        else:
            self._ledger.add(Done(now()))
        told = replay(self._ledger.read())
        assert told is not None
        return told

    async def _batch(self, batch: Batch, watch: Watch, show: Show) -> list[BoardOutcome]:
        async def update(name: str) -> BoardOutcome:
            self._ledger.add(Started(now(), name))
            board = self._inventory.boards[name]
            outcome = await BoardUpdate(self._transport, board, self._wanted, watch, self._patience).run()
            self._ledger.add(Ended(now(), outcome))
            show(outcome)
            return outcome

        return await run_parallel(batch, update, at_once=self._inventory.policy.at_once)
