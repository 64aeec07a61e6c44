"""Whatever is put, settled, reopened and cut off in whatever order: rows stay in order, numbers without gaps."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.config import Durability, StorageConfig
from agent.storage.spool import Spool
from agent.storage.table import size

LIMIT = 65536
TOPIC = "v/d/s/events"


class SpoolMachine(RuleBasedStateMachine):
    """A spool beside a dictionary."""

    @initialize(durability=st.sampled_from(["event", "batch"]))
    def begin(self, durability: Durability) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.config = StorageConfig(spool_max_bytes=LIMIT, durability=durability)
        self.spool = Spool(self.folder, self.config)
        self.rows: dict[int, bytes] = {}
        self.last = self.dropped = 0

    @rule(bodies=st.lists(st.binary(max_size=9000), max_size=12))
    def put(self, bodies: list[bytes]) -> None:
        for body in bodies:
            self.spool.put(TOPIC, body)
            self.last += 1
            self.rows[self.last] = body
        assert self.spool.flush(20.0)
        while sum(len(body) + len(TOPIC) for body in self.rows.values()) > LIMIT:
            del self.rows[min(self.rows)]
            self.dropped += 1

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.rows)), unique=True)) if self.rows else []
        self.spool.settle(chosen)
        for seq in chosen:
            self.rows.pop(seq, None)

    @rule()
    def settle_all(self) -> None:
        self.spool.settle([row.seq for row in self.spool.peek(0, 10_000)])
        self.rows.clear()

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.spool = Spool(self.folder, self.config)

    @rule()
    def power_cut(self) -> None:
        """What was committed is there; what was settled but not yet deleted may come again."""
        copy = Path(tempfile.mkdtemp())
        for file in self.folder.iterdir():
            shutil.copy(file, copy / file.name)
        self.spool.close()
        shutil.rmtree(self.folder)
        self.folder, self.spool = copy, Spool(copy, self.config)
        found = {row.seq: row.body for row in self.spool.peek(0, 10_000)}
        assert self.rows.items() <= found.items()
        self.rows = found

    @rule(after=st.integers(0, 60), limit=st.integers(1, 10))
    def peek(self, after: int, limit: int) -> None:
        expected = [seq for seq in sorted(self.rows) if seq > after][:limit]
        assert [row.seq for row in self.spool.peek(after, limit)] == expected

    @invariant()
    def agrees(self) -> None:
        rows = self.spool.peek(0, 10_000)
        assert {row.seq: row.body for row in rows} == self.rows
        assert [row.seq for row in rows] == sorted(self.rows)
        assert sum(map(size, rows)) <= LIMIT
        stats = self.spool.stats()
        assert (stats.waiting, stats.dropped, stats.on) == (len(rows), self.dropped, "disk")

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.folder)


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
