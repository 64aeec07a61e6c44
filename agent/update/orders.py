"""Orders of an operator to the process that follows a trial: a small file, there until they are carried out."""

from __future__ import annotations

from contextlib import suppress

from agent.errors import StorageError
from agent.storage.statefile import StateFile
from agent.storage.updatefiles import remove
from agent.update.places import Places
from agent.update.trial import Outcome

_ORDERS: dict[str, Outcome] = {
    "confirm": Outcome("commit", "an operator has confirmed it"),
    "rollback": Outcome("roll back", "an operator has asked for it"),
}


class Orders:
    """Of one board.

    Attributes:
        by: who decided: `updater` until an order was taken, then `operator`.
    """

    def __init__(self, where: Places) -> None:
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

    def take(self) -> Outcome | None:
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
