"""A subscriber's ledger detects each fault of a delivery, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.messages import EventMessage
from tests.support.ledger import Ledger, Verdict
from tests.support.publishing import event

_pattern = msgspec.json.decode(event(), type=EventMessage)


def told(
    seq: int, kind: str = "new", track: str = "a", stream: str = "front", message_id: str = ""
) -> EventMessage:
    changed = msgspec.structs.replace(_pattern.track, id=track)
    return msgspec.convert(
        msgspec.to_builtins(_pattern)
        | {"id": message_id or f"{seq}", "seq": seq, "kind": kind, "stream": stream}
        | {"track": msgspec.to_builtins(changed)},
        EventMessage,
    )


def verdict(*events: EventMessage) -> Verdict:
    ledger = Ledger()
    for one in events:
        ledger.add(one)
    return ledger.verdict()


WHOLE = (told(1), told(2, "update"), told(3, "keyword", "word"), told(4, "end"))


def test_a_whole_story_is_faultless() -> None:
    assert verdict(*WHOLE) == Verdict(4, 0, 0, 0, 0, 0, 0)
    assert verdict(*WHOLE).is_faultless


@given(st.lists(st.integers(0, 3), max_size=20))
def test_deliveries_that_are_repeated_change_nothing_else(again: list[int]) -> None:
    assert verdict(*WHOLE, *(WHOLE[n] for n in again)) == Verdict(4, len(again), 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ((WHOLE[0], WHOLE[1], WHOLE[3]), "lost"),
        ((told(2), told(3, "end")), "lost"),
        ((*WHOLE, told(4, "keyword", message_id="other")), "duplicates"),
        ((*WHOLE, told(5, "end")), "duplicates"),
        ((*WHOLE, told(5, "new"), told(6, "end")), "duplicates"),
        ((WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3]), "disordered"),
        ((*WHOLE, told(5, "update")), "orphans"),
        ((told(1, "end"),), "orphans"),
        ((*WHOLE, told(5, track="b")), "unended"),
    ],
)
def test_each_fault_is_told_by_its_name(events: tuple[EventMessage, ...], fault: str) -> None:
    found = verdict(*events)
    assert getattr(found, fault) >= 1
    assert not found.is_faultless


def test_streams_have_their_own_order() -> None:
    found = verdict(told(2, track="b", stream="back"), told(1), told(3, "end"), told(4, "end", "b", "back"))
    assert found.is_faultless
