"""Adopting: a slot that scripts/install has filled becomes one that updates know."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from agent.errors import UpdateError
from agent.storage.files import remove
from agent.update.bundle.archive import check, read_description
from agent.update.install.journal import BEFORE_SWITCH, Journal
from agent.update.install.paths import Paths
from agent.update.install.slots import ModelSets, Slot, Slots
from agent.update.install.stage import take_files
from agent.update.install.switch import SlotSwitch
from agent.update.install.watch import Orders
from agent.update.protocol import State, Update

_ANEW = "Vedette was installed anew"


def adopt(where: Paths, slot: Slot, version: str, bundle: Path | None, source: str = "") -> None:
    """Note which version a slot holds, in the history, too; of a bundle, put its models in place.

    Nothing is left of an update that was at hand: what it was about is not there any more.

    Args:
        where: things are.
        slot: whose environment is made, and which nothing leads to yet.
        version: that is in it.
        bundle: that it was made from, whose signature is good; None: from a clone, which has no counter.
        source: file that the bundle is a copy of, for the history; empty: it is none.

    Raises:
        BundleError: its files are not what it says.
        UpdateError: it brings no version of Vedette.
        StorageError: the disk refuses.
    """
    slots = Slots(where.home)
    home = slots.path(slot)
    _end_at_hand(where)
    wanted = None
    if bundle is not None:
        wanted = read_description(bundle)
        if wanted.kind != "full":
            raise UpdateError(f"{bundle}: brings models only: a board is installed from a full bundle")
        check(bundle, wanted)
        ModelSets(home).point(0)
        take_files(where, wanted, home, bundle)
    running, moment = slots.of("current"), datetime.now(UTC)
    update = Update(
        state="committed",
        version=version if wanted is None else wanted.version,
        counter=0 if wanted is None else wanted.counter,
        kind="full",
        file=source or str(bundle or ""),
        slot=slot,
        from_version=slots.version(running) if running else "",
        began_at=moment,
        ended_at=moment,
        reason="installed",
        by="operator",
    )
    Journal(where).add(update)
    if running is not None and running != slot:
        slots.prove(running)  # a trial was refused before this
    slots.make_ready(slot, version)


def _end_at_hand(where: Paths) -> None:
    """Close an update that was cut off with the installation that it belonged to.

    Also forget the configurations that the slots had: the board's present one is for both.
    """
    journal, switch = Journal(where), SlotSwitch(where)
    remove(where.trial, where.verdict, where.counted, where.kept_config)
    remove(switch.config_of("a"), switch.config_of("b"))
    Orders(where).forget()
    journal.mend()
    update = journal.read()
    if update is None or update.over:
        return
    state: State = "refused" if update.state in BEFORE_SWITCH else "rolled_back"
    journal.step(update, state, reason=_ANEW, by="operator")
