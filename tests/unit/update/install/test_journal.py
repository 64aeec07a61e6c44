"""How far an update has come is on the disk, and what became of each stays."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.errors import StorageError, UpdateError
from agent.update.install.journal import Journal, Update
from agent.update.install.slots import Paths


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    places = Paths(tmp_path)
    places.state.mkdir(parents=True)
    return places


def begun(journal: Journal) -> Update:
    return journal.begin(Update(state="received", file="two.vedette", began_at=datetime.now(UTC)))


def test_each_state_is_on_the_disk_with_the_time_that_was_spent_in_it(where: Paths) -> None:
    seconds = iter([0.0, 10.0, 12.5, 20.0])
    journal = Journal(where, lambda: next(seconds))
    update = journal.step(begun(journal), "verified", version="2.0", counter=4)
    assert Journal(where).read() == update
    done = journal.step(update, "refused", reason="no room")
    assert done.seconds == {"received": 2.5, "verified": 7.5}
    assert done.ended_at is not None
    assert journal.history() == [done]
    assert journal.read() == done


def test_without_an_update_there_is_none(where: Paths) -> None:
    assert Journal(where).read() is None
    assert Journal(where).history() == []
    assert Journal(where).committed_counter() == 0


def test_a_second_update_waits_for_the_end_of_the_first(where: Paths) -> None:
    journal = Journal(where)
    update = begun(journal)
    with pytest.raises(UpdateError, match=r"two.vedette is not over \(received\)"):
        begun(journal)
    journal.step(update, "refused")
    begun(journal)


def test_only_what_was_committed_counts(where: Paths) -> None:
    journal = Journal(where)
    for counter, ends in ((3, "committed"), (9, "rolled_back"), (2, "committed")):
        update = journal.update_fields(begun(journal), state="trial", counter=counter)
        journal.step(update, ends)  # type: ignore[arg-type]  # of the states, two that end
    assert journal.committed_counter() == 3


def test_a_damaged_journal_is_told_and_a_damaged_line_of_the_history_is_left_out(where: Paths) -> None:
    journal = Journal(where)
    done = journal.step(begun(journal), "refused")
    where.history.write_bytes(b'{"half": \n' + where.history.read_bytes() + b'{"cut off')
    assert journal.history() == [done]
    second = journal.step(begun(journal), "refused")
    assert journal.history() == [done, second], "what a power cut left is ended first"
    where.journal.write_bytes(b"{")
    with pytest.raises(UpdateError, match=r"journal\.json: is damaged"):
        journal.read()


def test_an_end_that_is_told_twice_is_there_once(where: Paths) -> None:
    """The power goes after the history is written and before the journal is."""
    journal = Journal(where)
    update = begun(journal)
    journal.step(update, "refused", reason="first")
    again = journal.step(update, "refused", reason="again")
    assert journal.history() == [again]


def test_a_flood_of_refusals_washes_no_counter_away(where: Paths) -> None:
    journal = Journal(where)
    journal.step(journal.update_fields(begun(journal), state="trial", counter=7), "committed")
    line = (
        where.history.read_bytes().replace(b'"committed"', b'"refused"').replace(b'"counter":7', b'"counter":9')
    )
    with where.history.open("ab") as file:
        for number in range(4000):
            file.write(line.replace(b'"file":"', f'"file":"{number}/'.encode()))
    last = journal.step(begun(journal), "refused")
    assert where.history.stat().st_size < 1024**2
    assert journal.history()[-1] == last
    assert not [one for one in journal.history() if one.state == "committed"]
    assert journal.committed_counter() == 7
    assert Journal(where).committed_counter() == 7


@pytest.mark.parametrize("content", [b"", b"many", b"9" * 40])
def test_a_counter_that_cannot_be_read_is_that_of_the_history(where: Paths, content: bytes) -> None:
    journal = Journal(where)
    journal.step(journal.update_fields(begun(journal), state="trial", counter=7), "committed")
    where.counter.write_bytes(content)
    assert journal.committed_counter() == 7


def test_a_reason_of_any_length_leaves_a_journal_that_can_be_read(where: Paths) -> None:
    journal = Journal(where)
    update = journal.update_fields(begun(journal), reason="x" * 3_000_000)
    done = journal.step(update, "refused", reason="y" * 3_000_000)
    assert len(done.reason) < 1100
    assert journal.read() == done
    assert journal.history() == [done]


@pytest.mark.parametrize("what", ["too large", "a folder"])
def test_a_journal_that_is_none_is_set_aside(where: Paths, what: str) -> None:
    if what == "too large":
        where.journal.write_bytes(b"{" * 2_000_000)
    else:
        where.journal.mkdir()
    journal = Journal(where)
    with pytest.raises(StorageError):
        journal.read()
    assert journal.mend()
    assert journal.read() is None
    assert not journal.mend()
    assert list(where.state.glob("*.damaged"))
