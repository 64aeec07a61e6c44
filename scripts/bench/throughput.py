"""Events per second from a track to its acknowledgement at QoS 1, each synced to the disk before it is sent.

One thread reports events of tracks as fast as it can, and waits when a few thousand are under way; the spool
and the publisher are those of the daemon, in their default configuration, and a real mosquitto on loopback
answers. The variants take turns, each in a process of its own, with payloads of one size and as many messages
unacknowledged at most; the figures are medians over the rounds.

    agent          Reporter → spool (durability "event", with its history) → publisher → acknowledged
    batch          the same with durability "batch"; shown, without a target
    paho           a bare loop that users write: publish at QoS 1, wait for a free place; nothing is kept on disk
    mosquitto_pub  `mosquitto_pub -l -q 1`, in C, from a file of lines: nothing is kept either
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from agent.comms.mqtt.publisher import Publisher
    from agent.comms.reporter import Reporter

INFLIGHT = 20
AHEAD = 2000
"""Events that wait in the spool at most: more would measure memory and not the flow."""
TARGET = 3000.0


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    rounds, count = (2, 12_000) if args.quick else (5, 40_000)
    names = ("agent", "batch", "paho", "mosquitto_pub")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        lines = Path(folder, "lines")
        lines.write_text((payload().decode() + "\n") * count, encoding="utf-8")
        for turn in range(rounds):
            for name in names:
                results[name].append(measure(name, port, count, lines))
            print(f"round {turn + 1}/{rounds}", file=sys.stderr)
    conclude(results, len(payload()))


def conclude(results: dict[str, list[dict[str, float]]], size: int) -> None:
    middle = statistics.median
    for name, rows in results.items():
        rate, cpu = middle(row["rate"] for row in rows), middle(row["cpu_us"] for row in rows)
        print(f"{name:14} {rate:8.0f} events/s {cpu:6.1f} CPU µs/event")
    figures = {f"{name}_per_s": middle(row["rate"] for row in rows) for name, rows in results.items()}
    figures |= {
        "agent_least_per_s": min(row["rate"] for row in results["agent"]),
        "agent_cpu_us": middle(row["cpu_us"] for row in results["agent"]),
        "paho_cpu_us": middle(row["cpu_us"] for row in results["paho"]),
        "payload_bytes": size,
    }
    for other in ("paho", "mosquitto_pub"):
        pairs = zip(results["agent"], results[other], strict=True)
        figures[f"ratio_to_{other}"] = middle(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
    common.conclude("throughput", figures, {"agent_per_s": f">= {TARGET:.0f}"}, figures["agent_per_s"] >= TARGET)


def measure(name: str, port: int, count: int, lines: Path) -> dict[str, float]:
    if name == "mosquitto_pub":
        return mosquitto_pub(port, count, lines)
    function = "paho" if name == "paho" else "agent"
    return common.child(f"throughput:{function}", str(port), str(count), "event" if name == "agent" else name)


def payload() -> bytes:
    """Return an event's payload as the agent sends it."""
    from agent.comms import messages
    from agent.types import Stored

    kept: list[bytes] = []

    class Sink:
        def put(self, topic: str, body: bytes, *_: Any) -> None:
            kept.append(messages.complete_spooled(Stored(123_456, topic, body, time.time() - 0.005)))

    report(reporter(Sink(), None), 1)
    return kept[0]


def reporter(sink: Any, board: Any) -> Reporter:
    from agent.comms.messages import ModelId
    from agent.comms.reporter import Reporter
    from agent.comms.topics import Topics
    from agent.config import PublishConfig

    model = ModelId("nanodet", "0123456789ab")
    return Reporter(Topics("vedette", "bench"), "front", PublishConfig(), model, sink, board)


def report(to: Reporter, number: int) -> None:
    """One event: of four in turn a track has `new`, two of `update`, and `end`."""
    from agent.types import Event, StageTimes, Track

    at = datetime.now(UTC)
    track = Track(
        f"front-{(number - 1) // 4}", "person", 0.9123, 0.9512, number, at, at, (0.1234, 0.1, 0.5, 0.9877)
    )
    kind, reason = (("new", "appeared"), ("update", "moved"), ("update", "moved"), ("end", "lost"))[
        (number - 1) % 4
    ]
    stages = StageTimes(1_000_000, 200_000, 1_000_000, 20_000_000, 300_000, 100_000)
    to.events([Event(kind, track, reason)], at, stages, "cpu", "416")  # type: ignore[arg-type]


def agent(port: str, count: str, durability: str) -> None:
    """A device without cameras, in this process."""
    from agent.comms.mqtt.publisher import Publisher
    from agent.comms.topics import Topics
    from agent.config import StorageConfig
    from agent.config.servers import MqttConfig
    from agent.storage.spool.spool import Spool

    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as folder:
        spool = Spool(Path(folder), StorageConfig(durability=durability))  # type: ignore[arg-type]
        config = MqttConfig(host="127.0.0.1", port=int(port))
        publisher = Publisher(config, Topics("vedette", "bench"), spool)
        publisher.start()
        while not publisher.state.connected:
            time.sleep(0.01)
        to, began, cpu = reporter(spool, publisher), time.perf_counter(), time.process_time()
        for number in range(1, int(count) + 1):
            report(to, number)
            if number % 100 == 0:
                wait_for(publisher, number - AHEAD)
        wait_for(publisher, int(count))
        tell(int(count), time.perf_counter() - began, time.process_time() - cpu)
        publisher.stop(2.0)
        spool.close()


def wait_for(publisher: Publisher, acknowledged: int) -> None:
    """Until so many events are acknowledged."""
    deadline = time.monotonic() + 60.0
    while publisher.state.acknowledged < acknowledged:
        time.sleep(0.001)
        if time.monotonic() > deadline:
            raise SystemExit(f"no {acknowledged} events acknowledged within 60 s: {publisher.state}")


def paho(port: str, count: str, _: str) -> None:
    """Publish as users do, with the network in a thread of paho's."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client, body = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5), payload()
    free = threading.Semaphore(INFLIGHT)
    client.on_publish = lambda *_: free.release()
    client.connect("127.0.0.1", int(port))
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    began, cpu = time.perf_counter(), time.process_time()
    for _number in range(int(count)):
        free.acquire()
        client.publish("vedette/bench/front/events", body, qos=1)
    for _number in range(INFLIGHT):
        free.acquire()
    tell(int(count), time.perf_counter() - began, time.process_time() - cpu)
    client.disconnect()
    client.loop_stop()


def mosquitto_pub(port: int, count: int, lines: Path) -> dict[str, float]:
    """Start and end of the process are in its time: some milliseconds."""
    import resource

    command = ["mosquitto_pub", "-p", str(port), "-V", "5", "-q", "1", "-l", "-t", "vedette/bench/front/events"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with lines.open("rb") as file:
        subprocess.run(command, stdin=file, check=True)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rate": count / wall_s, "cpu_us": cpu_s / count * 1e6}


def tell(count: int, wall_s: float, cpu_s: float) -> None:
    print(json.dumps({"rate": count / wall_s, "cpu_us": cpu_s / count * 1e6}))


if __name__ == "__main__":
    main()
