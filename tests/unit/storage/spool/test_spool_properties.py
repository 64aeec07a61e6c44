"""Whatever is put, settled, dropped, reopened and cut off, of whatever durability: rows stay in order, no number
is used twice, what was safe is not lost, and what the broker has is told as the history."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import structs

from agent.config import Durability, StorageConfig
from agent.storage.spool.pending import size
from agent.storage.spool.recovery import History
from agent.storage.spool.spool import Spool
from tests.support.publishing import from_one

LIMIT, ALL = 65536, 10**9
TOPIC = "v/d/s/events"
DURABILITIES: tuple[Durability, ...] = ("event", "batch")

durabilities = st.sampled_from(DURABILITIES)


class SpoolMachine(RuleBasedStateMachine):
    """A spool beside dictionaries.

    Attributes:
        rows: body and durability by number, of what waits.
        done: of what was settled and may be found in the history.
        gone: of what was dropped.
        seen: what a subscriber may have got, by number.
        unwritten: numbers that were settled in batches, and may not be on the disk yet.
        cut_off: of these, those at a power cut: the history may lack them.
    """

    @initialize(durability=durabilities, history=st.sampled_from([0, 30_000, ALL]))
    def begin(self, durability: Durability, history: int) -> None:
        self.folder = from_one(Path(tempfile.mkdtemp()))
        self.config = StorageConfig(spool_max_bytes=LIMIT, durability=durability, history_max_bytes=history)
        self.spool = Spool(self.folder, self.config)
        self.rows: dict[int, tuple[bytes, Durability]] = {}
        self.done: dict[int, bytes] = {}
        self.gone: dict[int, bytes] = {}
        self.seen: dict[int, bytes] = {}
        self.unwritten: set[int] = set()
        self.cut_off: set[int] = set()
        self.dropped = self.puts = 0
        self.lossless = history == ALL
        self.last: int | None = 0 if durability == "event" else None

    @rule(bodies=st.lists(st.binary(max_size=9000), max_size=12))
    def put(self, bodies: list[bytes]) -> None:
        for body in bodies:
            self.add(body)
        self.flush()
        self.trim()

    def flush(self) -> None:
        assert self.spool.flush(20.0)
        self.unwritten.clear()

    def add(self, body: bytes) -> None:
        self.puts += 1
        body += b" %d" % self.puts
        self.spool.put(TOPIC, body)
        given = self.spool._pending.given
        assert self.last is None or given == self.last + 1, "no gap"
        self.last, self.rows[given] = given, (body, self.config.durability)

    def trim(self) -> None:
        while sum(len(body) + len(TOPIC) for body, _ in self.rows.values()) > LIMIT:
            del self.rows[min(self.rows)]
            self.dropped += 1

    @rule(body=st.binary(max_size=100))
    def put_and_go_on(self, body: bytes) -> None:
        """It is settled or cut off before or after it is written."""
        has_room = sum(len(b) + len(TOPIC) for b, _ in self.rows.values()) + 200 < LIMIT
        if has_room:
            self.add(body)

    @rule(durability=durabilities, history=st.sampled_from([0, 30_000, ALL]))
    def configure(self, durability: Durability, history: int) -> None:
        self.config = structs.replace(self.config, durability=durability, history_max_bytes=history)
        self.lossless &= history == ALL
        self.reopen()
        self.put([b""])

    @rule(picks=st.lists(st.integers(0, 1000)))
    def settle(self, picks: list[int]) -> None:
        seen = [row.seq for row in self.spool.peek(0, 10_000)]
        self.settled(sorted({seen[pick % len(seen)] for pick in picks}) if seen else [])

    @rule()
    def settle_all(self) -> None:
        self.settled([row.seq for row in self.spool.peek(0, 10_000)])

    def settled(self, seqs: list[int]) -> None:
        self.spool.settle(seqs)
        for seq in seqs:
            self.done[seq], durability = self.rows.pop(seq)
            self.unwritten |= {seq} if durability == "batch" else set()

    @rule(pick=st.integers(0, 1000))
    def drop(self, pick: int) -> None:
        if seen := [row.seq for row in self.spool.peek(0, 10_000)]:
            seq = seen[pick % len(seen)]
            self.spool.drop(seq)
            self.gone[seq] = self.rows.pop(seq)[0]
            self.dropped += 1

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.unwritten.clear()
        self.spool = Spool(self.folder, self.config)

    @rule()
    def power_cut(self) -> None:
        """Cut the power: synced rows survive, and only settled rows that were not yet recorded may come again."""
        copy = Path(tempfile.mkdtemp())
        safe = self.stop_the_clock(copy)
        self.spool.close()
        shutil.rmtree(self.folder)
        self.folder, self.spool = copy, Spool(copy, self.config)
        found = {row.seq: row.body for row in self.spool.peek(0, 10_000)}
        assert {seq: self.rows[seq][0] for seq in safe}.items() <= found.items()
        known = {**self.done, **self.gone, **{seq: body for seq, (body, _) in self.rows.items()}}
        assert found.items() <= known.items()
        self.rows = {seq: (body, "event") for seq, body in found.items()}
        self.done = {seq: body for seq, body in self.done.items() if seq not in found}
        self.cut_off |= self.unwritten
        self.unwritten.clear()
        self.dropped = self.spool.stats().dropped
        self.last = self.spool._pending.given if self.config.durability == "event" else None

    def stop_the_clock(self, copy: Path) -> set[int]:
        """Copy the files between two commits; gives what may be peeked then and has to survive."""
        while True:
            with self.spool._lock:
                if not self.spool._pending._writing:
                    ready, held = self.spool._ready, set(self.spool._pending.rows)
                    if self.folder.exists():
                        shutil.copytree(self.folder, copy, dirs_exist_ok=True)
                    break
            time.sleep(0.001)
        return {
            seq
            for seq, (_, durability) in self.rows.items()
            if durability == "event" and seq <= ready and seq not in held
        }

    @rule(after=st.integers(0, 60), limit=st.integers(1, 10))
    def peek(self, after: int, limit: int) -> None:
        self.flush()
        expected = [seq for seq in sorted(self.rows) if seq > after][:limit]
        assert [row.seq for row in self.spool.peek(after, limit)] == expected

    @rule()
    def tell_the_history(self) -> None:
        self.flush()
        self.spool.settle([])
        if not self.spool._disk.counts.rows:
            return
        found = {past.stored.seq: past for past in History(self.folder).after(0)}
        noted = {seq for seq, past in found.items() if past.acknowledged}
        assert self.rows.keys() <= found.keys() - noted
        assert {seq: found[seq].stored.body for seq in noted}.items() <= self.done.items()
        assert sum(size(found[seq].stored) for seq in noted) <= self.config.history_max_bytes
        if self.lossless:
            assert self.done.keys() - self.cut_off <= found.keys() | self.rows.keys()

    @invariant()
    def agrees(self) -> None:
        """Check that the visible rows are the first waiting ones: none overtakes a row that is not synced yet."""
        rows = self.spool.peek(0, 10_000)
        assert [(row.seq, row.body) for row in rows] == [
            (seq, self.rows[seq][0]) for seq in sorted(self.rows)[: len(rows)]
        ]
        assert all(self.seen.setdefault(row.seq, row.body) == row.body for row in rows), "a number twice"
        stats = self.spool.stats()
        assert (stats.waiting, stats.dropped) == (len(self.rows), self.dropped)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.folder)


# A thousand syncs take minutes on a disk that others use.
TestSpool = pytest.mark.timeout(400)(SpoolMachine.TestCase)
TestSpool.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_what_was_settled_in_batches_may_be_missing_in_the_history_after_a_power_cut() -> None:
    for durability in DURABILITIES:
        for _ in range(5):  # whether it is written already is a matter of time
            machine = SpoolMachine()
            machine.begin(durability, ALL)
            machine.put([b""])
            machine.put_and_go_on(b"")
            machine.settle_all()
            machine.agrees()
            machine.power_cut()
            machine.agrees()
            machine.tell_the_history()
            machine.teardown()
