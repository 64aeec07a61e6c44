"""Standing: which versions a board has, and how far an update is."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from agent.errors import UpdateError
from agent.storage.slots import Slot, Slots
from agent.update.journal import Journal, Update
from agent.update.places import Places


class Standing(Struct, frozen=True):
    """Of one board.

    Attributes:
        version: that runs. slot: that it is in; empty: nothing is installed.
        previous: that can be gone back to; empty: none. One that was refused or failed its trial cannot.
        counter: the highest that was committed; a bundle has to be above it.
        at_hand: the update that is not over, or the newest; None: there was none.
        trouble: why that is not known; empty: it is.
    """

    version: str
    slot: str
    previous: str
    counter: int
    at_hand: Update | None
    trouble: str = ""

    def lines(self) -> Iterator[str]:
        """For people."""
        if not self.slot:
            yield "nothing is installed in slots here: scripts/install does that"
            return
        yield f"version   {self.version or 'unknown'}, slot {self.slot}"
        yield f"previous  {self.previous or 'none'}"
        yield f"counter   {self.counter}"
        if self.trouble:
            yield f"at hand   not known: {self.trouble}"
        if self.at_hand is not None:
            one = self.at_hand
            why = f": {one.reason}" if one.reason else ""
            yield f"{'last' if one.over else 'at hand':<9} {one.version or one.file} {one.state}{why}"


def standing(where: Places) -> Standing:
    """How a board stands.

    Raises:
        StorageError: what tells it cannot be read.
    """
    slots, journal = Slots(where.home), Journal(where)
    running = slots.of("current")
    other: Slot = "b" if running == "a" else "a"
    at_hand, trouble = None, ""
    try:
        at_hand = journal.read()
    except UpdateError as error:
        trouble = str(error)
    return Standing(
        version=slots.version(running) if running else "",
        slot=running or "",
        previous=slots.proved(other) if running else "",
        counter=journal.committed_counter(),
        at_hand=at_hand,
        trouble=trouble,
    )
