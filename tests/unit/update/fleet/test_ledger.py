"""The ledger: whatever is cut off, what is replayed is what was done; and what is left is what is to be done."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.errors import FleetError
from agent.update.fleet.board import KINDS, BoardOutcome
from agent.update.fleet.rollout import Begun, Ledger, LedgerEntry, replay

AT = datetime(2026, 11, 25, tzinfo=UTC)
BATCHES = [("a",), ("b", "c"), ("d", "e", "f")]
NAMES = [name for batch in BATCHES for name in batch]
BEGUN = LedgerEntry(AT, Begun("12ab", "x.vedette", "1.2", 3, list(BATCHES)))
END = LedgerEntry(AT, outcome=BoardOutcome("a", "updated"))
OUTCOMES = some.builds(BoardOutcome, some.sampled_from(NAMES), some.sampled_from(KINDS), some.text(max_size=20))
LATER = OUTCOMES.map(lambda one: LedgerEntry(AT, outcome=one))
ENTRIES = some.lists(LATER, max_size=25).map(lambda later: [BEGUN, *later])


def test_nothing_is_the_start() -> None:
    assert replay([]) is None
    assert replay([END]) is None


@given(ENTRIES)
def test_the_newest_outcome_of_a_board_counts_and_those_without_are_left(entries: list[LedgerEntry]) -> None:
    found = replay(entries)
    assert found is not None
    newest = {entry.outcome.board: entry.outcome for entry in entries if entry.outcome}
    assert found.outcomes == newest
    left = [name for batch in found.left for name in batch]
    assert left == [name for name in NAMES if name not in newest or not newest[name].is_good]
    assert found.complete == (not left)
    assert len(found.left) == len(BATCHES)


@given(ENTRIES, ENTRIES)
def test_of_two_rollouts_the_newer_counts(one: list[LedgerEntry], other: list[LedgerEntry]) -> None:
    assert replay([*one, *other]) == replay(other)


@given(entries=ENTRIES, cut=some.integers(0, 200))
def test_a_line_that_is_cut_off_takes_nothing_else_with_it(
    tmp_path_factory: pytest.TempPathFactory, entries: list[LedgerEntry], cut: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "x.ledger"
    ledger = Ledger(path)
    for entry in entries:
        ledger.add(entry)
    whole = path.read_bytes()
    last = len(whole) - whole.rstrip(b"\n").rfind(b"\n") - 2
    path.write_bytes(whole[: len(whole) - min(cut + 2, last)] if len(entries) > 1 else whole)
    ledger.add(END)
    kept = entries[:-1] if len(entries) > 1 else entries
    assert ledger.read() == [*kept, END]


def test_no_file_is_an_empty_ledger_and_another_file_is_none(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "none").read() == []
    other = tmp_path / "notes"
    other.write_text("milk\neggs\n")
    with pytest.raises(FleetError, match="is not a ledger of a rollout"):
        Ledger(other).read()
    with pytest.raises(FleetError, match=r"cannot be read: .*; name another --ledger"):
        Ledger(tmp_path).read()


def test_lines_that_are_damaged_are_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x.ledger")
    ledger.add(BEGUN)
    with ledger.path.open("ab") as file:
        file.write(b"\xff\x00\n[[[[\n{}\n")
    ledger.add(END)
    assert ledger.read() == [BEGUN, END]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_ledger_whose_first_line_was_cut_off_begins_anew(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path / "x.ledger")
    ledger.add(BEGUN)
    ledger.path.write_bytes(ledger.path.read_bytes()[:cut])
    assert ledger.read() == []
    ledger.add(BEGUN)
    assert ledger.read() == [BEGUN]


@pytest.mark.parametrize("junk", [b"milk", b"\x00\n", b"{}\n", b"[1, 2]\nmilk\n"])
def test_a_file_without_a_line_of_a_ledger_is_none(tmp_path: Path, junk: bytes) -> None:
    ledger = Ledger(tmp_path / "notes")
    ledger.path.write_bytes(junk)
    with pytest.raises(FleetError, match="is not a ledger of a rollout: name another --ledger"):
        ledger.read()
