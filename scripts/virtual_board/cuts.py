"""Power cuts in every state of an update, and checks of the board after each."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import zip_longest

from emulated import Emulated
from goods import ONLY_B, A, B
from hearing import Account, Hearing
from machine import BoardError, sh, wait_for
from msgspec import Struct
from msgspec.structs import replace
from results import Row
from settling import CAMERA, health, is_well
from snapshots import STATES, Shot

GROUP = "cuts"
SHARES = (
    ("received", 0.0, 1.0, 4),
    ("verified", 0.0, 1.0, 8),
    ("staged", 0.0, 1.0, 4),
    ("tested", 0.0, 1.0, 4),
    ("switching", 0.0, 1.0, 11),
    ("trial", 0.0, 0.95, 4),
    ("trial", 0.95, 1.0, 5),
    ("committed", 0.0, 1.0, 4),
)
"""States that cuts are planned in, from which share of their length to which, and how many. Where links and files
change, at the switch and as a trial ends, they are close together."""
ALL = sum(count for *_, count in SHARES)
_TWICE_EVERY, _FOLLOWED = 4, ("switching", "trial", "committed", "rolled_back")
_SECOND_S = (12.0, 70.0)
"""Range of the time from the boot to a second cut, s."""
_WELL_S, _OVER_S, _HEARD_S = 400.0, 1800.0, 120.0


class Cut(Struct, frozen=True):
    """A planned power cut.

    Attributes:
        state: that it is planned in.
        number: of it in that state.
        shot: to go on from.
        delay_s: from there.
        second_s: after which the power goes once more, since it came back; 0: it does not.
        follow: whether to wait for the update's end, wherever it was cut off.
    """

    state: str
    number: int
    shot: Shot
    delay_s: float
    second_s: float
    follow: bool

    @property
    def name(self) -> str:
        """Name of the cut, for the results."""
        return f"cut in {self.state} {self.number}"


class Witness(Struct, frozen=True):
    """State on disk at the boot, before it is repaired.

    Attributes:
        journal: state of the update; empty: there was none.
        trial: file of the rollback watchdog; empty: none.
        current, keeper: what they led to.
    """

    journal: str
    trial: str
    current: str
    keeper: str


def plan(taken: Sequence[Shot], count: int) -> list[Cut]:
    """Spread cuts over the states, and within each over its length; the states take turns.

    Those whose update is followed to its end, which takes minutes, come last.

    Args:
        taken: snapshots of a successful update.
        count: of all cuts.
    """
    each: dict[str, list[Cut]] = {}
    for (state, low, high, _), part in zip(SHARES, _parts(count), strict=True):
        cuts = each.setdefault(state, [])
        shots = [shot for shot in taken if shot.state == state]
        cuts += _within(shots, low, high, part, len(cuts))
    turns = [cut for turn in zip_longest(*each.values()) for cut in turn if cut is not None]
    return sorted(turns, key=lambda cut: cut.follow)


def _parts(count: int) -> list[int]:
    """So many cuts by `SHARES`, and no more or less: one each where there are enough, then whoever lacks most."""
    parts = [int(count >= len(SHARES))] * len(SHARES)
    for _ in range(count - sum(parts)):
        lacks = [share * count - part * ALL for (*_, share), part in zip(SHARES, parts, strict=True)]
        parts[lacks.index(max(lacks))] += 1
    return parts


def _within(shots: list[Shot], low: float, high: float, count: int, before: int) -> list[Cut]:
    """So many cuts between two shares of a state's length; `before`: that there are in it already."""
    length_s = shots[-1].at_s + shots[-1].length_s
    cuts = []
    for number in range(count):
        at_s = (low + (high - low) * (number + 0.3) / count) * length_s
        shot = next(shot for shot in reversed(shots) if shot.at_s <= at_s)
        twice = number % _TWICE_EVERY == _TWICE_EVERY - 2
        first_s, last_s = _SECOND_S
        second_s = first_s + (last_s - first_s) * (number + 0.5) / count if twice else 0.0
        delay_s, last = round(at_s - shot.at_s, 3), number + 1 == count
        cuts.append(Cut(shot.state, before + number + 1, shot, delay_s, round(second_s, 1), last))
    return cuts


class Cutter:
    """Cuts the power of one board, from its snapshots."""

    def __init__(self, board: Emulated, hearing: Hearing) -> None:
        self._board, self._hearing = board, hearing

    def play(self, cut: Cut) -> Row:
        """Restore a snapshot, cut the power, and check the board after its boot."""
        if self._board.pid:
            self._board.cut()
        mark = self._hearing.now
        self._board.start(cut.shot.name)
        self._board.go_on()
        time.sleep(cut.delay_s)
        self._board.cut()
        began = time.monotonic()
        row = Row(name=cut.name, group=GROUP, planned=_planned(cut))
        try:
            return self._seen(cut, row, mark, began)
        except BoardError as error:
            return replace(row, met=row.met or "?", outcome="?", why=str(error))
        finally:
            if self._board.pid:
                self._board.cut()

    def prove_disk(self, shot: Shot) -> Row:
        """Return True if a cut loses written data that was not flushed, as on a real board.

        Args:
            shot: to go on from.
        """
        began = time.monotonic()
        self._board.start(shot.name)
        self._board.go_on()
        self._board.wait_ssh()
        # Straight to the disk, over what lies there since before the snapshot, while nobody has anything flushed.
        probe = f"/root/{B}.vedette"
        sh(self._board, "systemctl stop vedette board-speaker; sync")
        sh(self._board, f"printf %65536s new | dd of={probe} bs=64k iflag=fullblock oflag=direct conv=notrunc")
        self._board.cut()
        self._board.up()
        found = sh(self._board, f"head -c 65536 {probe} | tail -c 3 | tr -d '\\0'")
        self._board.cut()
        return Row(
            name="the disk of this board",
            group="disk",
            planned="what is written and not flushed",
            met="asked",
            outcome="kept" if found == "new" else "lost",
            proved=found != "new",
            seconds=round(time.monotonic() - began, 1),
        )

    def _seen(self, cut: Cut, row: Row, mark: int, began: float) -> Row:
        if cut.second_s:
            self._board.start()
            time.sleep(cut.second_s)
            self._board.cut()
        booted = self._hearing.now
        self._board.up()
        witness = self._witness()
        wait_for("the board is well", lambda: is_well(self._board), _WELL_S, 3.0)
        row = replace(row, met=witness.journal or "none", seconds=round(time.monotonic() - began, 1))
        if cut.follow or witness.journal in _FOLLOWED:
            wait_for("the update's end", lambda: self._state() not in STATES[1:-1], _OVER_S, 3.0)
            wait_for("the board is well after the update", lambda: is_well(self._board), _WELL_S, 3.0)
        wait_for("an event after the cut", lambda: CAMERA in self._hearing.since(booted).streams, _HEARD_S)
        return self._concluded(row, self._hearing.since(mark, cut.shot.known))

    def _concluded(self, row: Row, account: Account) -> Row:
        """Describe the final state of a healthy board."""
        state, told = self._state(), health(self._board)
        version = told.version if told else "none"
        wrong = self._judge(state, version)
        if account.lost or account.forgotten:
            wrong = f"{account.lost} events lost, {account.forgotten} forgotten; {wrong}"
        return replace(
            row,
            outcome=f"{'A' if version == A else 'B' if version == B else version} runs, {state}",
            proved=not wrong,
            why=wrong,
            events=account.events,
            lost=account.lost + account.forgotten,
        )

    def _witness(self) -> Witness:
        said = sh(self._board, "cat /run/witness")
        journal, trial, links = [*said.split("---"), "", ""][:3]
        state = re.search(r'"state": *"([a-z_]+)"', journal)
        stage = re.search(r"^state=(.*)$", trial, re.MULTILINE)
        lead = [*links.split(), "", ""]
        return Witness(state[1] if state else "", stage[1] if stage else "", lead[0], lead[1])

    def _state(self) -> str:
        """Return the state of the update on disk."""
        said = self._board.run("cat /var/lib/vedette-update/journal.json", patience_s=10).stdout.decode()
        found = re.search(r'"state": *"([a-z_]+)"', said)
        return found[1] if found else "none"

    def _judge(self, state: str, version: str) -> str:
        """Return the fault of a board; empty: it is healthy."""
        said = sh(
            self._board,
            "readlink /opt/vedette/current /opt/vedette/keeper; "
            "test -e /var/lib/vedette-update/trial && echo trial; "
            f"grep -c '^{ONLY_B} = ' /etc/vedette/vedette.toml; true",
        )
        current, keeper, *rest = said.splitlines()
        wanted = B if state in ("trial", "committed") else A
        if version != wanted:
            return f"version {version} runs, though the update is {state}"
        if current != f"slots/{'b' if version == B else 'a'}":
            return f"current leads to {current}, and {version} runs"
        if state != "trial" and (keeper != current or "trial" in rest):
            return f"it is half done: current and keeper lead to {current} and {keeper}: {rest}"
        if rest[-1] != str(int(version == B)):
            return f"the configuration is not that of {version}"
        return ""


def _planned(cut: Cut) -> str:
    twice = f", and {cut.second_s:.0f} s after that twice" if cut.second_s else ""
    return f"{cut.state} at {cut.shot.at_s + cut.delay_s:.2f} s{twice}"
