"""Adopting: a slot that scripts/install has filled becomes one that updates know."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from agent.errors import UpdateError
from agent.storage.modelsets import ModelSets
from agent.storage.slots import Slot, Slots
from agent.storage.updatefiles import add_line
from agent.update.archive import check, read_description
from agent.update.journal import Update, line_of
from agent.update.places import Places
from agent.update.staging import take_files


def adopt(where: Places, slot: Slot, version: str, bundle: Path | None) -> None:
    """Note which version a slot holds; of a bundle, put its models in place and remember its counter.

    Args:
        where: things are.
        slot: whose environment is made, and which nothing leads to yet.
        version: that is in it.
        bundle: that it was made from, whose signature is good; None: from a clone, which has no counter.

    Raises:
        BundleError: its files are not what it says.
        UpdateError: it brings no version of Vedette.
        StorageError: the disk refuses.
    """
    slots = Slots(where.home)
    home = slots.path(slot)
    if bundle is not None:
        wanted = read_description(bundle)
        if wanted.kind != "full":
            raise UpdateError(f"{bundle}: brings models only: a board is installed from a full bundle")
        check(bundle, wanted)
        ModelSets(home).point(0)
        take_files(where, wanted, home, bundle)
        moment = datetime.now(UTC)
        update = Update(
            state="committed",
            version=wanted.version,
            counter=wanted.counter,
            kind="full",
            file=str(bundle),
            slot=slot,
            began_at=moment,
            ended_at=moment,
            reason="installed",
            by="operator",
        )
        add_line(where.history, line_of(update))
    slots.make_ready(slot, version)
