"""A device that publishes, for tests of delivery: a spool, a publisher, and events that are real messages.

Run as a program (`python -m tests.support.publishing FOLDER PORT COUNT PAUSE_S UPDATES`) it is a process to be
killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent.comms import messages
from agent.comms.mqtt.connection import TIMINGS, ConnectionTimings
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import Durability, StorageConfig
from agent.config.servers import MqttConfig
from agent.storage.spool.spool import Spool
from agent.types import EventKind, Stored, Track

TOPICS = Topics("vedette", "porch")
EVENTS = TOPICS.events("front")
_decoder = msgspec.json.Decoder(messages.EventMessage)


def event(message_id: str = "", stream: str = "front", kind: EventKind = "new") -> bytes:
    """The body of an event, as a stream puts it."""
    now = datetime.now(UTC)
    track = Track("front-1", "person", 0.9, 0.9, 3, now, now, (0.1, 0.1, 0.5, 0.9))
    return messages.encode(
        messages.EventMessage(
            message_id or messages.new_id(),
            TOPICS.device,
            stream,
            kind,
            "appeared",
            track,
            now,
            messages.Latency(1.0, 0.5, 1.0, 20.0, 1.0, 0.1),
            messages.ModelId("nanodet", "0123456789ab"),
            "cpu",
            "full",
        )
    )


def events_of(payloads: Iterable[bytes]) -> list[messages.EventMessage]:
    """Decoded, in the order given."""
    return [_decoder.decode(body) for body in payloads]


def in_order(events: Iterable[messages.EventMessage]) -> list[messages.EventMessage]:
    """As a subscriber that drops repeated ids sees them."""
    first: dict[str, messages.EventMessage] = {}
    for event in events:
        first.setdefault(event.id, event)
    return list(first.values())


class Kept:
    """An `EventSource` in memory."""

    def __init__(self, rows: Iterable[Stored] = ()) -> None:
        self.rows = {row.seq: row for row in rows}
        self.settled: list[int] = []
        self.dropped: list[int] = []

    def peek(self, after_seq: int, limit: int) -> list[Stored]:
        return [row for seq, row in sorted(self.rows.items()) if seq > after_seq][:limit]

    def settle(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self.settled.append(seq)
            self.rows.pop(seq, None)

    def drop(self, seq: int) -> None:
        self.dropped.append(seq)
        self.rows.pop(seq, None)

    def on_stored(self, hook: object) -> None:
        self.hook = hook


def from_one(folder: Path) -> Path:
    """A folder for state whose spool counts from 1, where a new one does from the clock; a used one goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (mark := folder / "spool.seq").exists():
        mark.write_text("00000000000000000000 disk\n")
    return folder


@contextmanager
def device(
    folder: Path,
    config: MqttConfig,
    storage: StorageConfig | None = None,
    timings: ConnectionTimings = TIMINGS,
) -> Iterator[tuple[Spool, Publisher]]:
    """A running one; what it has not delivered stays in its folder."""
    spool = Spool(from_one(folder), storage or StorageConfig())
    publisher = Publisher(config, TOPICS, spool, timings=timings)
    publisher.start()
    try:
        yield spool, publisher
    finally:
        publisher.stop(2.0)
        spool.close()


def wait_for(what: object, timeout_s: float = 60.0) -> None:
    """Wait until a callable is true."""
    assert callable(what)
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


def main(folder: str, port: str, count: str, pause_s: str, durability: Durability) -> None:
    """Publish `count` events, one every `pause_s`, saying each id once it is on the disk.

    Args:
        folder, port: of the device, and of the broker.
        count, pause_s: how many, and how often.
        durability: of the spool; with `batch` nothing waits for the disk.
    """
    config = MqttConfig(host="127.0.0.1", port=int(port), reconnect_max_s=0.5)
    storage = StorageConfig(durability=durability)
    with device(Path(folder), config, storage) as (spool, _):
        print("ready", flush=True)
        for _ in range(int(count)):
            made = messages.new_id()
            spool.put(EVENTS, event(made))
            if durability == "event":
                spool.flush(10.0)
            print(made, flush=True)
            time.sleep(float(pause_s))
        time.sleep(60.0)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
