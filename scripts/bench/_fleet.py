"""Some devices of a fleet in one process: Vedette's own publishers and spools (in memory), without cameras.

Everything before the spool is simulated: events are made at random moments, and the payloads of
discovery and health are of the size that a device with three cameras and some zones has.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import common
import msgspec

sys.path.insert(0, str(common.ROOT))

from agent.comms import messages
from agent.comms.mqtt.publisher import Publisher
from agent.comms.topics import Topics
from agent.config import StorageConfig
from agent.config.servers import MqttConfig
from agent.health import HealthMessage, SpoolHealth, StreamHealth
from agent.storage.spool.spool import Spool
from agent.types import Track

PREFIX = "fleet"
STREAMS = ("front", "back", "yard")


class Device:
    """One device."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.topics = Topics(PREFIX, name)
        self._spool = Spool(folder, StorageConfig(durability="batch"))
        config = MqttConfig(host="127.0.0.1", port=port, prefix=PREFIX, reconnect_max_s=10.0)
        self.publisher = Publisher(config, self.topics, self._spool)

    def announce(self) -> None:
        """Say all that is retained: a payload of discovery, health, a count per stream."""
        topics = self.topics
        self.publisher.retain(f"homeassistant/device/{topics.device}/config", discovery(topics))
        self.publisher.retain(topics.health, health())
        for stream in STREAMS:
            self.publisher.retain(topics.count(stream, "person"), b"0")

    def tell(self, stream: str) -> None:
        """Put an event into the spool, captured now."""
        now = datetime.now(UTC)
        track = Track(f"{stream}-1", "person", 0.9, 0.9, 3, now, now, (0.1, 0.1, 0.5, 0.9))
        latency = messages.Latency(1.0, 0.5, 1.0, 20.0, 1.0, 0.1)
        model = messages.ModelId("nanodet", "0123456789ab")
        told = messages.EventMessage(
            messages.new_id(),
            self.topics.device,
            stream,
            "update",
            "still here",
            track,
            now,
            latency,
            model,
            "cpu",
            "416",
        )
        self._spool.put(self.topics.events(stream), messages.encode(told))

    def stop(self) -> None:
        """Leave in order."""
        self.publisher.stop(5.0)
        self._spool.close()


def discovery(topics: Topics) -> bytes:
    """As large as what one device announces to Home Assistant: some thirty entities."""
    entity = {
        "platform": "binary_sensor",
        "device_class": "occupancy",
        "state_topic": topics.count("front", "person"),
        "value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}",
    }
    entities = {
        f"{stream}_{number}": {**entity, "unique_id": f"{topics.device}-{stream}-{number}", "name": f"{number}"}
        for stream in STREAMS
        for number in range(10)
    }
    device = {"identifiers": [topics.device], "name": topics.device, "manufacturer": "Vedette"}
    body = {"device": device, "availability_topic": topics.status, "components": entities}
    return msgspec.json.encode(body)


def health() -> bytes:
    """Return the health message of a device whose streams run."""
    stream = StreamHealth("running", "", 10.0, 8.0, 40.0, 1000, 0, 0, 1, "nanodet", "cpu", "416")
    spool = SpoolHealth(0, 0, 0, "memory")
    streams = dict.fromkeys(STREAMS, stream)
    return messages.encode(HealthMessage("0.1.0", datetime.now(UTC), 60.0, streams, spool, 90.0, 55.0))


def devices(names: list[str], port: int, orders: Connection) -> None:
    """Be these devices, and obey: `start`, `announce`, (`tell`, seconds, events per second of all), `stop`.

    Answers every order, when it is carried out, with the number of events that were put.
    """
    logging.getLogger("agent").setLevel(logging.ERROR)  # that the broker is gone, each of them would say
    with tempfile.TemporaryDirectory() as folder:
        fleet = [Device(name, port, Path(folder)) for name in names]
        while True:
            order, *values = orders.recv()
            put = 0
            if order == "tell":
                put = _tell(fleet, *values)
            for device in fleet if order in ("start", "announce", "stop") else ():
                {"start": device.publisher.start, "announce": device.announce, "stop": device.stop}[order]()
            orders.send(put)
            if order == "stop":
                return


def _tell(fleet: list[Device], seconds: float, per_s: float) -> int:
    """Put events at random moments, by random devices; gives how many."""
    chance, put = random.Random(len(fleet)), 0
    due = began = time.monotonic()
    while (due := due + chance.expovariate(per_s)) < began + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        chance.choice(fleet).tell(chance.choice(STREAMS))
        put += 1
    return put
