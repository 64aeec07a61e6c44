"""Whoever has waited longest goes first, and an item is in one pair of hands at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.compute.infer.turns import Turns


class Member:
    """Compared by identity, as streams are."""


class Queue(RuleBasedStateMachine):
    """Members ask for turns and end them in any order; items are added, taken out and revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[Member, object] = Turns()
        self.now_s = 0.0
        self.asked: list[Member] = []
        self.held: dict[Member, tuple[object, float]] = {}
        self.free = 0
        self.lost: set[Member] = set()

    def serve(self) -> None:
        self.now_s += 1.0
        for member, item in self.turns.grants(self.now_s):
            assert member is self.asked.pop(0), "somebody else has waited longer"
            assert item not in [other for other, _ in self.held.values()], "two members have one item"
            self.held[member] = item, self.now_s
            self.free -= 1

    @rule()
    def add(self) -> None:
        self.turns.add(object())
        self.free += 1
        self.serve()

    @rule()
    def ask(self) -> None:
        member = Member()
        self.asked.append(member)
        self.turns.ask(member, self.now_s)
        self.serve()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(list(self.held)))
        item, _ = self.held.pop(member)
        assert self.turns.end(member, self.now_s) is item
        self.turns.add(item)
        self.free += 1
        self.serve()

    @rule(longer_than_s=st.floats(0.0, 20.0))
    def revoke(self, longer_than_s: float) -> None:
        hanging = {one for one, (_, since_s) in self.held.items() if self.now_s - since_s > longer_than_s}
        assert self.turns.revoke(longer_than_s, self.now_s) == len(hanging)
        self.lost |= hanging
        for member in hanging:
            del self.held[member]

    @precondition(lambda self: self.lost)
    @rule()
    def end_late(self) -> None:
        assert self.turns.end(self.lost.pop(), self.now_s) is None

    @rule()
    def remove_free(self) -> None:
        removed = self.turns.remove_free()
        assert (removed is not None) is (self.free > 0)
        self.free -= removed is not None

    @invariant()
    def nobody_waits_beside_a_free_item(self) -> None:
        assert not (self.free and self.asked)
        assert self.turns.is_awaited is bool(self.asked)
        assert self.turns.items == self.free + len(self.held)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 30))
def test_members_who_always_want_more_get_equal_shares(members: int, items: int, rounds: int) -> None:
    turns: Turns[Member, object] = Turns()
    everyone = [Member() for _ in range(members)]
    count = dict.fromkeys(everyone, 0)
    for _ in range(items):
        turns.add(object())
    for member in everyone:
        turns.ask(member, 0.0)
    holding = list(turns.grants(0.0))
    for now_s in range(rounds * members):
        member, item = holding.pop(0)
        count[member] += 1
        turns.end(member, now_s)
        turns.ask(member, now_s)
        turns.add(item)
        holding += turns.grants(now_s)
    assert max(count.values()) - min(count.values()) <= 1


def test_waiting_counts_while_it_lasts_and_afterwards() -> None:
    turns: Turns[Member, object] = Turns()
    first, second = Member(), Member()
    turns.add(object())
    turns.ask(first, 0.0)
    turns.ask(second, 1.0)
    ((_, item),) = turns.grants(1.0)
    assert turns.waited_s(3.0) == pytest.approx(1.0 + 2.0)
    turns.end(first, 4.0)
    turns.add(item)
    assert [member for member, _ in turns.grants(4.0)] == [second]
    assert turns.waited_s(9.0) == pytest.approx(1.0 + 3.0)
    assert turns.mean_turn_s == pytest.approx(3.0)
