"""Five hundred devices at one mosquitto: what a storm of connections, one of discovery and every day cost it.

Devices are Vedette's own publishers and spools without cameras, in two processes on this machine, see
`_fleet.py`.
So devices, broker and subscriber share its cores: times are worse than those of a broker that has a machine
alone.
"""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _fleet
import common
import msgspec
import numpy as np
import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion

sys.path.insert(0, str(common.ROOT))

from agent.comms.messages import EventMessage

PROCESSES = 2
EVERY_DAY = 6.0
"""Events a minute of a device: a busy street. The bench tells `TIMES` as many."""
TIMES = 6.0
_OPEN_FILES = 8192
_PATIENCE_S = 60.0
_QUEUE = 100_000
"""Mosquitto's queue for each subscriber. The default is 1000, and the rest is dropped silently: with that, a
storm of 500 devices leaves a subscriber in Python without some of what it has subscribed to at QoS 1."""


class Broker:
    """A mosquitto that can be killed, started again and measured."""

    def __init__(self, folder: Path) -> None:
        self.port = common.free_port()
        self._config = folder / "mosquitto.conf"
        lines = (f"listener {self.port} 127.0.0.1", "allow_anonymous true", f"max_queued_messages {_QUEUE}", "")
        self._config.write_text("\n".join(lines), encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Start; returns when it listens."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(["mosquitto", "-c", str(self._config)], stdout=quiet, stderr=quiet)
        self._measured = psutil.Process(self._process.pid)
        common.wait_for(self.port)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        """Return the CPU time of this process, s."""
        times = self._measured.cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        """Resident memory, MB."""
        return float(self._measured.memory_info().rss / 1e6)


class Ears:
    """A subscriber of everything: what came, by kind, and how long events took."""

    def __init__(self, port: int) -> None:
        self.lock = threading.Condition()
        self.online: set[str] = set()
        self.announced: set[str] = set()
        self.numbers: dict[str, set[int]] = {}
        self.took_ms: list[float] = []
        self._decoder = msgspec.json.Decoder(EventMessage)
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe([("fleet/#", 1), ("homeassistant/#", 1)])
        self._client.on_message = self._message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        levels = message.topic.split("/")
        with self.lock:
            if levels[-1] == "events":
                event = self._decoder.decode(message.payload)
                self.took_ms.append((datetime.now(UTC) - event.captured_at).total_seconds() * 1e3)
                self.numbers.setdefault(event.device, set()).add(event.seq)
            elif levels[-1] == "status":
                (self.online.add if message.payload == b"online" else self.online.discard)(levels[1])
            elif levels[-1] == "config":
                self.announced.add(levels[2])
            self.lock.notify_all()

    def heard(self) -> int:
        """Events so far, each once."""
        return sum(map(len, self.numbers.values()))

    def lost(self) -> int:
        """Gaps in the numbers of each device."""
        return sum(max(numbers) - min(numbers) + 1 - len(numbers) for numbers in self.numbers.values())

    def wait(self, what: Callable[[], bool], why: str) -> None:
        """Wait until something has come."""
        with self.lock:
            if not self.lock.wait_for(what, _PATIENCE_S):
                raise SystemExit(f"{why}: not within {_PATIENCE_S:.0f} s")

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()


class Fleet:
    """The processes of the devices."""

    def __init__(self, count: int, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        names = [f"device{number:04}" for number in range(count)]
        self._orders: list[Connection] = []
        for part in range(PROCESSES):
            ours, theirs = context.Pipe()
            context.Process(
                target=_fleet.devices, args=(names[part::PROCESSES], port, theirs), daemon=True
            ).start()
            self._orders.append(ours)

    def order(self, *order: object) -> int:
        """Have all obey at once; gives the number of events that they put."""
        for orders in self._orders:
            orders.send(order)
        return sum(int(orders.recv()) for orders in self._orders)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--devices", type=int, default=500)
    args = parser.parse_args()
    _allow_files()
    with tempfile.TemporaryDirectory() as folder:
        course = Course(args.devices, Broker(Path(folder)))
        course.run(10.0 if args.quick else 120.0)
    figures = course.figures
    targets = {
        "lost": "= 0",
        "connect_s": "<= 10",
        "discovery_s": "<= 10",
        "late_subscriber_s": "<= 5",
        "reconnect_s": "<= 30",
        "steady_cpu_share": "<= 0.2",
        "rss_peak_mb": "<= 50",
        "delivery_p99_ms": "<= 100",
    }
    meets = all(figures[name] <= float(bound.split()[-1]) for name, bound in targets.items())
    common.conclude("fleet", figures, targets, meets)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(_OPEN_FILES, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Course:
    """The phases, one after the other, and their figures."""

    def __init__(self, count: int, broker: Broker) -> None:
        self._count, self._broker = count, broker
        self._ears, self._fleet = Ears(broker.port), Fleet(count, broker.port)
        self._fleet.order("ready")  # their processes have started
        self._put = 0
        self.figures = {"devices": float(count), "rss_before_mb": broker.rss_mb(), "rss_peak_mb": 0.0}

    def run(self, seconds: float) -> None:
        """All phases; every day for so long, s."""
        self._phase("connect", lambda: self._fleet.order("start"), self._all_online)
        self._phase("discovery", lambda: self._fleet.order("announce"), self._all_announced)
        self._late()
        self._phase("steady", lambda: self._tell(seconds, self._count * EVERY_DAY * TIMES / 60.0), self._has_come)
        self._delivery()
        self._broker.kill()
        self._ears.online.clear()
        self._phase("reconnect", self._broker.start, self._all_online)
        self._tell(2.0, self._count / 10)
        self._ears.wait(self._has_come, "events after the restart")
        self._fleet.order("stop")
        self._ears.close()
        self._broker.kill()
        lost = self._ears.lost() + self._put - self._ears.heard()
        self.figures |= {"events": float(self._put), "lost": float(lost)}

    def _tell(self, seconds: float, per_s: float) -> None:
        self._put += self._fleet.order("tell", seconds, per_s / PROCESSES)

    def _all_online(self) -> bool:
        return len(self._ears.online) == self._count

    def _all_announced(self) -> bool:
        return len(self._ears.announced) == self._count

    def _has_come(self) -> bool:
        return self._ears.heard() >= self._put

    def _phase(self, name: str, act: Callable[[], object], done: Callable[[], bool]) -> None:
        """Act, and wait until it is done: how long that took, and the broker's CPU time."""
        restarts = name == "reconnect"
        began, cpu_s = time.monotonic(), 0.0 if restarts else self._broker.cpu_s()
        act()
        self._ears.wait(done, name)
        took_s, cpu_s = time.monotonic() - began, self._broker.cpu_s() - cpu_s
        self.figures |= {f"{name}_s": took_s, f"{name}_cpu_s": cpu_s}
        self.figures["rss_peak_mb"] = max(self._broker.rss_mb(), self.figures["rss_peak_mb"])
        memory = f"{self._broker.rss_mb():.1f} MB"
        print(f"{name}: {took_s:.2f} s, {cpu_s:.2f} s of the broker's CPU, {memory}", flush=True)

    def _late(self) -> None:
        """A subscriber that comes when all is there: the broker sends it everything that it retains."""
        late: list[Ears] = []

        def come() -> None:
            late.append(Ears(self._broker.port))
            late[0].wait(lambda: len(late[0].online) == len(late[0].announced) == self._count, "what is retained")

        self._phase("late_subscriber", come, lambda: True)
        late[0].close()

    def _delivery(self) -> None:
        took_ms = self._ears.took_ms
        self.figures["steady_events_per_s"] = len(took_ms) / self.figures["steady_s"]
        self.figures["steady_cpu_share"] = self.figures["steady_cpu_s"] / self.figures["steady_s"]
        for share in (50, 99):
            self.figures[f"delivery_p{share}_ms"] = float(np.percentile(took_ms, share))


if __name__ == "__main__":
    main()
