"""The example of a consumer: what becomes a row, what is refused, and how gaps are found."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.publishing import EVENTS, event

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts" / "consumer"))

from messages import MOST_BYTES, row
from numbering import parts, sifted, walk
from rows import EventRow, Gap, RejectedRow
from stores import Unavailable, check_store, open_store


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(event()) | {"seq": 7} | fields).encode()


def test_an_event_is_a_row() -> None:
    body = changed()
    made = row(EVENTS, body)
    assert isinstance(made, EventRow)
    assert made[1:7] == ("porch", "front", 7, "new", "person", "front-1")
    assert made.body == body.decode()


def test_news_of_a_clip_and_detections_out_of_the_spool_are_rows_too_for_their_numbers_sake() -> None:
    clip = {"id": "c", "device": "porch", "stream": "front", "label": "person", "track": "t", "seq": 8}
    made = row("vedette/porch/front/clips", json.dumps(clip | {"began_at": "2026-01-01T00:00:00Z"}).encode())
    assert made[:8] == ("c", "porch", "front", 8, "clip", "person", "t", "2026-01-01T00:00:00Z")
    looked = {"id": "d", "device": "porch", "stream": "front", "seq": 99, "spool_seq": 9, "captured_at": "now"}
    made = row("vedette/porch/front/detections", json.dumps(looked).encode())
    assert made[:8] == ("d", "porch", "front", 9, "detections", "", "", "now")


@pytest.mark.parametrize(
    ("topic", "body", "why"),
    [
        (EVENTS, b"", "Expecting value"),
        (EVENTS, b"\xff", "invalid start byte"),
        (EVENTS, b"[]", "TypeError"),
        (EVENTS, b"[" * 100_000, "RecursionError"),
        (EVENTS, b"{}", "KeyError"),
        (EVENTS, b'{"a":"' + b"x" * MOST_BYTES + b'"}', "bytes are too many"),
        (EVENTS, changed(seq="7"), "its seq is '7'"),
        (EVENTS, changed(seq=True), "its seq is True"),
        (EVENTS, changed(seq=0), "its seq is 0"),
        (EVENTS, changed(seq=2**70), "its seq is"),
        (EVENTS, changed(seq=2**63 - 1), "its seq is"),
        (EVENTS, changed(first_seq=8), "its first_seq is 8"),
        (EVENTS, changed(first_seq="1"), "its first_seq is '1'"),
        (EVENTS, changed(id=None), "no text"),
        (EVENTS, changed(id="\ud800"), "no text"),
        (EVENTS, changed(kind="x" * 2000), "too long"),
        (EVENTS, changed(reason="\0"), "it holds a zero"),
        (EVENTS, changed(device="shed"), "it says that it is of 'shed'"),
        ("vedette/shed/front/events", changed(), "it says that it is of 'porch'"),
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(topic: str, body: bytes, why: str) -> None:
    made = row(topic, body)
    assert isinstance(made, RejectedRow)
    assert why in made.why
    assert len(made.body) <= MOST_BYTES


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_nothing_that_comes_is_an_error(body: bytes) -> None:
    made = row(EVENTS, body)
    assert "\0" not in "".join(map(str, made))


def test_a_gap_is_told_once_its_end_is_old_enough() -> None:
    rows = [(1, 10.0), (2, 11.0), (5, 12.0), (6, 13.0), (9, 50.0)]
    assert walk("porch", 0, rows, 20.0) == (6, [Gap("porch", 3, 4)])
    assert walk("porch", 6, rows[4:], 20.0) == (6, [])
    assert walk("porch", 6, rows[4:], 60.0) == (9, [Gap("porch", 7, 8)])


@given(st.sets(st.integers(1, 60), min_size=1), st.integers(0, 60))
def test_gaps_are_what_is_missing_between_the_mark_and_the_newest(numbers: set[int], mark: int) -> None:
    rows = [(seq, 0.0) for seq in sorted(numbers) if seq > mark]
    reached, gaps = walk("porch", mark, rows, 1.0)
    missing = {seq for gap in gaps for seq in range(gap.first, gap.last + 1)}
    assert missing == set(range(mark + 1, reached + 1)) - numbers
    assert reached == max([mark, *numbers])


def test_a_gap_that_ends_where_a_run_begins_is_a_jump_and_what_is_missing_of_the_run_is_lost() -> None:
    assert parts(Gap("porch", 5, 9), []) == [Gap("porch", 5, 9)]
    assert parts(Gap("porch", 5, 9), [1, 5, 12]) == [Gap("porch", 5, 9)]
    assert parts(Gap("porch", 5, 9), [10]) == [Gap("porch", 5, 9, True)]
    assert parts(Gap("porch", 5, 9), [6, 8]) == [Gap("porch", 5, 7, True), Gap("porch", 8, 9)]


def test_jumps_are_kept_apart_from_gaps(tmp_path: Path) -> None:
    where = tmp_path / "events.db"
    store = open_store(f"sqlite:{where}")
    store.keep([stored(1), stored(2), stored(10_003)._replace(first_seq=10_001)], [])
    assert store.find_gaps("porch", 2.0, 3.0) == [
        Gap("porch", 3, 10_000, True),
        Gap("porch", 10_001, 10_002),
    ]
    store.close()
    with closing(sqlite3.connect(where)) as connection:
        assert connection.execute("SELECT first, last FROM gaps").fetchall() == [(10_001, 10_002)]
        assert connection.execute("SELECT first, last FROM jumps").fetchall() == [(3, 10_000)]


def test_a_device_whose_clock_was_wrong_on_its_new_card_is_counted_from_there(tmp_path: Path) -> None:
    where = tmp_path / "events.db"
    store = open_store(f"sqlite:{where}")
    store.keep([stored(seq)._replace(first_seq=1000) for seq in (1000, 1001, 1002)], [])
    assert store.find_gaps("porch", 2.0, 3.0) == []
    store.keep([stored(seq)._replace(first_seq=10) for seq in (10, 11, 13)], [])
    assert store.find_gaps("porch", 2.0, 3.0) == [Gap("porch", 12, 12)]
    store.keep([stored(1001)._replace(first_seq=1000), stored(15)._replace(first_seq=10)], [])
    assert store.find_gaps("porch", 2.0, 3.0) == [Gap("porch", 14, 14)]
    store.keep([stored(seq)._replace(first_seq=2000) for seq in (2000, 2002)], [])
    assert store.find_gaps("porch", 2.0, 3.0)[-1] == Gap("porch", 2001, 2001)
    store.close()
    with closing(sqlite3.connect(where)) as connection:
        gaps = connection.execute("SELECT first, last FROM gaps ORDER BY first").fetchall()
    assert gaps == [(12, 12), (14, 14), (2001, 2001)]


def stored(seq: int, message_id: str = "", at: float = 1.0) -> EventRow:
    return EventRow(message_id or f"id{seq}", "porch", "front", seq, "new", "person", "t", "2026-01-01", at, "{}")


def test_an_event_is_kept_once_whatever_happens(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path / 'events.db'}")
    assert store.keep([stored(1), stored(2)], []) == 2
    assert store.keep([stored(2), stored(3), stored(3)], []) == 1
    store.close()
    again = open_store(f"sqlite:{tmp_path / 'events.db'}")
    assert again.keep([stored(1), stored(4)], [RejectedRow("t", "w", 1.0, "b")]) == 1
    again.close()


def test_a_gap_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    where = f"sqlite:{tmp_path / 'events.db'}"
    store = open_store(where)
    store.keep([stored(5), stored(6), stored(9)], [])
    assert store.find_gaps("porch", 0.5, 1.0) == [], "it is too young"
    assert store.find_gaps("porch", 2.0, 3.0) == [Gap("porch", 7, 8)]
    store.close()
    again = open_store(where)
    assert again.find_gaps("porch", 2.0, 4.0) == []
    again.keep([stored(12)], [])
    assert again.find_gaps("porch", 2.0, 4.0) == [Gap("porch", 10, 11)]
    assert again.find_gaps("shed", 2.0, 4.0) == []


def test_a_number_that_no_device_can_have_reached_is_set_aside_and_gaps_are_found_on(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path / 'events.db'}")
    store.keep([stored(1), stored(2, at=10.0)], [])
    kept, refused = store.sift([stored(2**52, at=11.0), stored(3, at=11.0), stored(5, at=11.0)])
    assert [one.seq for one in kept] == [3, 5]
    assert [one.why for one in refused] == [
        f"its seq is {2**52}: too far ahead of 2, the highest so far, for any device"
    ]
    store.keep(kept, refused)
    assert store.find_gaps("porch", 20.0, 30.0) == [Gap("porch", 4, 4)]
    store.close()


def test_a_device_that_begins_by_its_clock_is_let_in_and_what_is_above_every_clock_is_not() -> None:
    now = 1.79e9
    clock, ahead = int(now * 1e6), int((now + 2 * 86400) * 1e6)
    assert sifted([stored(clock, at=now)], {"porch": 3000})[1] == [], "a new card"
    assert len(sifted([stored(ahead, at=now)], {"porch": 3000})[1]) == 1
    assert sifted([stored(ahead + 1, at=now)], {"porch": ahead})[1] == [], "its clock is fast, and it goes on"
    assert sifted([stored(ahead, at=now)], {})[1] == [], "the first of a device may be any"


@pytest.mark.parametrize("where", ["foo:/x", "events.db", "sqlite:", "mysql://x/y", ""])
def test_an_unknown_store_is_told(where: str) -> None:
    with pytest.raises(ValueError, match="unknown store"):
        check_store(where)


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open database file"):
        open_store(f"sqlite:{tmp_path / 'none' / 'events.db'}")
    with pytest.raises(Unavailable, match=r"postgresql:///x\?host=/nonexistent: |needs the package psycopg"):
        open_store("postgresql:///x?host=/nonexistent")
