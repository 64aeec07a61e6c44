"""Measure the cost of MQTT 5 properties for an event, on one connection to a real broker."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime

import common

from agent.comms import messages
from agent.comms.mqtt import connection as module
from agent.comms.mqtt.connection import Connection, Protocol, WakeupPipe, publish_properties
from agent.config.servers import MqttConfig
from agent.types import Track

TOPIC = "vedette/porch/front/events"
VARIANTS: dict[str, tuple[Protocol, bool]] = {
    "mqtt_3": ("3.1.1", False),
    "bare": ("5", False),
    "properties": ("5", True),
}
"""Protocol, and True for one with properties."""


def main() -> None:
    quick = common.arguments(__doc__).parse_args().quick
    count, rounds = (5_000, 3) if quick else (20_000, 9)
    body = _event()
    spent: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with common.mosquitto() as port:
        for _ in range(rounds):  # they take turns: the machine has other work too
            for name, variant in VARIANTS.items():
                spent[name].append(_cpu_us(port, variant, body, count))
    best = {name: min(values) for name, values in spent.items()}
    figures = {
        **{f"cpu_us_{name}": value for name, value in best.items()},
        "cpu_ratio": best["properties"] / best["bare"],
        "cpu_ratio_median": statistics.median(spent["properties"]) / statistics.median(spent["bare"]),
        "cpu_ratio_mqtt_3": best["properties"] / best["mqtt_3"],
        "bytes_properties": float(_properties_bytes()),
        "bytes_body": float(len(body)),
    }
    common.conclude("properties", figures, {"cpu_ratio": "<= 1.1"}, figures["cpu_ratio"] <= 1.1)


def _event() -> bytes:
    now = datetime.now(UTC)
    track = Track("front-1", "person", 0.9, 0.9, 3, now, now, (0.1, 0.1, 0.5, 0.9))
    latency = messages.Latency(1.0, 0.5, 1.0, 20.0, 1.0, 0.1)
    model = messages.ModelId("nanodet", "0123456789ab")
    return messages.encode(
        messages.EventMessage(
            messages.new_id(), "porch", "front", "new", "appeared", track, now, latency, model, "cpu", "416"
        )
    )


def _cpu_us(port: int, variant: tuple[Protocol, bool], body: bytes, count: int) -> float:
    """CPU time from handing an event over to its acknowledgement, µs: the mean of many."""
    protocol, properties = variant
    config = MqttConfig(host="127.0.0.1", port=port)
    connection = Connection(config, "bench", protocol, ("bench/status", b"offline"))
    wake = WakeupPipe()
    connection.open(wake, lambda: 10.0, 10.0)
    if not properties:
        module.publish_properties = lambda *_: None  # type: ignore[assignment]
    began, sent, done = time.process_time(), 0, 0
    while done < count:
        while sent - done < connection.window and sent < count:
            connection.publish(TOPIC, body, qos=1, kind="event")
            sent += 1
        done += len(connection.turn(10.0))
        if connection.lost:
            raise SystemExit(f"the broker is lost: {connection.lost}")
    used = time.process_time() - began
    connection.farewell(1.0)
    wake.close()
    return used / count * 1e6


def _properties_bytes() -> int:
    """Return the size of an event's properties, bytes."""
    return len(publish_properties(b"{}", "event", MqttConfig().event_expiry_s).pack())


if __name__ == "__main__":
    main()
