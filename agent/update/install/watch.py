"""Watching: looks at the service and at the daemon's vitals, until whoever judges them has."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from agent.errors import StorageError
from agent.storage.files import remove
from agent.storage.state_file import ShadowOrder, StateFile, delete_shadow_order, write_shadow_order
from agent.update.bundle.description import Description, ShadowGate
from agent.update.install.health_check import Seen, ShadowTrial, Verdict
from agent.update.install.paths import Paths
from agent.update.install.service import Service, read_vitals
from agent.update.install.slots import ModelSets, Slots, slot_of
from agent.update.protocol import Update

_LOOK_S = 1.0


class Judge(Protocol):
    """Says what is to become of it: `Trial` and `ShadowTrial` of `agent.update.install.health_check`."""

    def evaluate(self, now: float, seen: Seen) -> Verdict:
        """Judge what is seen now, s of a clock that only goes forward."""


class Watch:
    """Watches one trial from its beginning until it is decided."""

    def __init__(
        self,
        where: Paths,
        service: Service,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._where, self._service, self._clock, self._sleep = where, service, clock, sleep

    def until_over(
        self, judge: Judge, failures_before: int, tell: Callable[[str], None], asked: Callable[[], Verdict | None]
    ) -> Verdict:
        """Look every second.

        Args:
            judge: that is asked.
            failures_before: of the service, before it began.
            tell: is given what it waits for, each time that this changes.
            asked: what an operator has asked for meanwhile; None: nothing.

        Returns:
            What is to be done: commit, or roll back with the reason.
        """
        told = ""
        while True:
            outcome = asked() or judge.evaluate(self._clock(), self._seen(failures_before))
            if outcome.verdict != "wait":
                return outcome
            # That seconds pass is no news.
            if outcome.reason.partition(";")[0] != told:
                told = outcome.reason.partition(";")[0]
                tell(outcome.reason)
            self._sleep(_LOOK_S)

    def _seen(self, failures_before: int) -> Seen:
        standing = self._service.standing()
        return Seen(read_vitals(self._where.health), max(0, standing.failures - failures_before), standing.why)


# Comparing: new models run beside those in use, by an order to the daemon that is taken back in any case.


class Comparison:
    """Runs the new models of one update in the shadow of those in use."""

    def __init__(self, where: Paths, update: Update, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._update, self._clock = where, update, clock

    def run(
        self,
        wanted: Description,
        gate: ShadowGate,
        watch: Watch,
        tell: Callable[[str], None],
        asked: Callable[[], Verdict | None],
    ) -> tuple[Verdict, dict[str, float]]:
        """Have the daemon compare, until it is known what is to become of the new models.

        Args:
            wanted: description of their bundle.
            gate: of it.
            watch: that looks.
            tell: is given what is waited for.
            asked: what an operator has asked for meanwhile.

        Returns:
            What is to be done, and how far they agree by stream.

        Raises:
            StorageError: the order cannot be given.
        """
        judge, path = (
            ShadowTrial(self._update.bundle, gate, wanted.health, self._clock()),
            self._where.shadow_order,
        )
        write_shadow_order(path, self._order(gate.every))
        try:
            outcome = watch.until_over(judge, self._update.failures_before, tell, asked)
        finally:
            delete_shadow_order(path)
        return outcome, judge.agreement

    def _order(self, every: int) -> ShadowOrder:
        slot = Slots(self._where.home).path(slot_of(self._update.slot))
        candidates = ModelSets(slot).path(self._update.counter)
        return ShadowOrder(self._update.bundle, f"{self._where.home}/current/models", str(candidates), every)


# Orders of an operator to the process that follows a trial: a small file, there until they are carried out.

_ORDERS: dict[str, Verdict] = {
    "confirm": Verdict("commit", "an operator has confirmed it"),
    "rollback": Verdict("roll back", "an operator has asked for it"),
}


class Orders:
    """Passes an operator's orders to the process that follows this board's trial.

    Attributes:
        by: who decided: `updater` until an order was taken, then `operator`.
    """

    def __init__(self, where: Paths) -> None:
        self._path = where.state / "order"
        self.by = "updater"

    def give(self, order: str) -> None:
        """Leave an order, `confirm` or `rollback`.

        Raises:
            StorageError: the disk refuses.
        """
        StateFile(self._path).write(order.encode())

    def forget(self) -> None:
        """Drop an order that came too late for what was before.

        Raises:
            StorageError: the disk refuses.
        """
        remove(self._path)
        self.by = "updater"

    def take(self) -> Verdict | None:
        """The order that was left; None: there is none. It stays until it is carried out: see `done`."""
        try:
            content = StateFile(self._path).read()
        except StorageError:
            return None
        if content is None:
            return None
        outcome = _ORDERS.get(content.decode("utf-8", "replace").strip())
        if outcome is not None:
            self.by = "operator"
        return outcome

    def done(self, order: str = "") -> None:
        """Drop an order that is carried out; what cannot be deleted is dropped before the next update.

        Args:
            order: that it has to be; empty: whichever it is.
        """
        with suppress(StorageError):
            content = StateFile(self._path).read() or b""
            if not order or content.decode("utf-8", "replace").strip() == order:
                remove(self._path)
