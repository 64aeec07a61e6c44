"""Comparing: new models run beside those in use, by an order to the daemon that is taken back in any case."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.storage import shadoworder
from agent.storage.modelsets import ModelSets
from agent.storage.shadoworder import ShadowOrder
from agent.storage.slots import Slots, slot_of
from agent.update.description import Description
from agent.update.gates import ShadowGate
from agent.update.journal import Update
from agent.update.places import Places
from agent.update.shadowing import Shadowing
from agent.update.trial import Outcome
from agent.update.watching import Watch


class Comparison:
    """Of the models of one update."""

    def __init__(self, where: Places, update: Update, clock: Callable[[], float] = time.monotonic) -> None:
        self._where, self._update, self._clock = where, update, clock

    def run(
        self,
        wanted: Description,
        gate: ShadowGate,
        watch: Watch,
        tell: Callable[[str], None],
        asked: Callable[[], Outcome | None],
    ) -> tuple[Outcome, dict[str, float]]:
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
        judge, path = Shadowing(self._update.bundle, gate, wanted.health, self._clock()), self._where.shadow_order
        shadoworder.give(path, self._order(gate.every))
        try:
            outcome = watch.until_over(judge, self._update.failures_before, tell, asked)
        finally:
            shadoworder.take_back(path)
        return outcome, judge.agreement

    def _order(self, every: int) -> ShadowOrder:
        slot = Slots(self._where.home).path(slot_of(self._update.slot))
        candidates = ModelSets(slot).path(self._update.counter)
        return ShadowOrder(self._update.bundle, f"{self._where.home}/current/models", str(candidates), every)
