"""What gives way to a CPU hog, a slow disk and a slow network, each alone and all at once, in a real daemon.

Two cameras, `door` with priority 80 and `yard` with 20, both on the bundled clip, with clips, snapshots, samples,
and a microphone in which words are spoken. Each disturbance has a daemon of its own: first nothing disturbs it,
then the disturbance comes and stays. `swapped` is all at once with the priorities exchanged.

    cpu   as many processes as processors, which compute for ever, at the daemon's own priority
    disk  a flush takes 300 ms and the disk writes 400 kB/s; delayed in the daemon's own calls by a preloaded
          library (`_slow_disk.c`), because few kernels that a bench runs on have device-mapper's `delay`
    link  100 kbit/s to the broker: a TCP proxy that holds no more than some kB itself

Latencies are those of the events, by layer: `compute` from capture to result, `storage` from there until the
event is on the disk and handed to the network, `network` from there to a subscriber beside the broker. A layer is
not hit by a disturbance that is not its own (a hog hits all of them: there it is what `door` is promised that
counts). Differences below 2 ms are not told.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import _sound
import common

sys.path.insert(0, str(common.ROOT))

from agent.comms.consumer import BrokerOptions, Subscriber
from agent.health import HealthMessage
from agent.storage.spool.recovery import History
from tests.support.publishing import from_one
from tests.support.slow_link import SlowLink
from tests.support.soundserver import SoundServer

RATE = 16_000
SPOKEN = common.ROOT / "agent" / "models" / "zoo" / "spoken.flac"
SLOW_DISK = Path(__file__).with_name("_slow_disk.c")
FAST, SLOW = 1e8, 100_000 / 8
DISK = "300 400000"
HOGS = os.cpu_count() or 1
WARM_S, REST_S = 8.0, 10.0
SETTLE_S = 30.0
"""The governor decides on one step every two or three seconds."""
LAYERS = ("compute", "storage", "network")
HITS = {"cpu": {"compute"}, "disk": {"storage"}, "link": {"network"}}
PROMISED_FPS, PROMISED_MS = 4.0, 200.0
FACTOR, SLACK_MS = 1.2, 2.0
_STREAM = """
[streams.{name}]
source = "file:{clip}?pace=realtime&loop=1"
model = "nanodet"
[streams.{name}.service]
priority = {priority}
min_fps = {fps}
max_latency_ms = {ms}
[streams.{name}.publish]
detections = true
snapshot_every_s = 2.0
[streams.{name}.clips]
fps = 10.0
before_s = 2.0
after_s = 2.0
max_s = 10.0
"""
_CONFIG = """
[device]
name = "bench"
[mqtt]
host = "127.0.0.1"
port = {port}
[storage]
state_dir = "{state}"
[health]
every_s = 1.0
[selection]
after_s = 100000
[streams.ear]
source = "mic:default"
model = "small-speech"
"""
_CHANGE = re.compile(
    r"stream (?P<stream>\w+): (?P<what>.*?): (?P<why>the disk|an event|pictures of clips|the broker|"
    r"\d+ kB|door |yard )|(?P<queue>events wait up to)"
)


class Heard(NamedTuple):
    """An event as the subscriber got it.

    Attributes:
        seq: its number.
        at_s: of its arrival, CLOCK_MONOTONIC.
        stream: that it is of.
        layers: latencies, ms.
    """

    seq: int
    at_s: float
    stream: str
    layers: dict[str, float]


class Listener:
    """Keeps the events and health messages that arrive at the broker."""

    def __init__(self, port: int) -> None:
        self.events: list[Heard] = []
        self.numbers: list[int] = []
        self.health: list[tuple[float, HealthMessage]] = []
        self._offset_s = time.time() - time.monotonic()
        self._subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
        self._subscriber.start()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for message in self._subscriber.messages():
            if message is None:
                if self._over.is_set():
                    return
                continue
            at_s = message.received_ns / 1e9
            if (health := message.health()) is not None:
                self.health.append((at_s, health))
            if message.kind in ("events", "clips") and (numbers := message.numbers()) is not None:
                self.numbers.append(numbers[0])
            if (event := message.event()) is not None:
                stages = event.latency_ms
                sent_s = event.captured_at.timestamp() + stages.total / 1e3
                layers = stages.total - stages.publish, stages.publish, (at_s + self._offset_s - sent_s) * 1e3
                self.events.append(Heard(event.seq, at_s, event.stream, dict(zip(LAYERS, layers, strict=True))))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._subscriber.stop()


class Run(NamedTuple):
    """What one daemon did before a disturbance and under it.

    Attributes:
        before, under, settled: latencies of events of all streams by layer, ms: before the disturbance, under it,
            and under it when the governor has had `SETTLE_S`.
        order: what gave way, in order, as `stream layer`.
        lost, repeated: numbers that did not arrive, or more than once.
        microphone_lost, reopened: samples that were dropped, and how often it was opened again.
        words: that were heard.
        unmet: share of health messages, when settled, that tell of a broken promise of the first stream.
        log: of the daemon.
    """

    before: dict[str, list[float]]
    under: dict[str, list[float]]
    settled: dict[str, list[float]]
    order: list[str]
    lost: int
    repeated: int
    microphone_lost: int
    reopened: int
    words: int
    unmet: float
    log: str


def hog() -> None:
    """Compute for ever."""
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    while True:
        pass


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """So many processes that compute while the context lasts."""
    made = [multiprocessing.get_context("fork").Process(target=hog, daemon=True) for _ in range(count)]
    for one in made:
        one.start()
    try:
        yield
    finally:
        for one in made:
            one.kill()
            one.join()


class Rig:
    """A broker, a line, a disk, a microphone and a daemon, of which each can be disturbed."""

    def __init__(
        self, folder: Path, broker: int, server: SoundServer, library: Path, *, door: int, yard: int
    ) -> None:
        self.folder, self.state = folder, from_one(folder / "state")
        self.link = SlowLink(broker, FAST)
        self._server, self._library, self._priorities = server, library, {"door": door, "yard": yard}
        self._sound = _sound.decoded(SPOKEN.read_bytes(), RATE)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon; its log goes to a file."""
        promises = {"door": (PROMISED_FPS, PROMISED_MS), "yard": (0.0, 0.0)}
        if self._priorities["yard"] > self._priorities["door"]:
            promises = {"yard": promises["door"], "door": promises["yard"]}
        config = _CONFIG.format(port=self.link.port, state=self.state)
        for name, priority in self._priorities.items():
            fps, ms = promises[name]
            config += _STREAM.format(name=name, clip=common.CLIP, priority=priority, fps=fps, ms=ms)
        (self.folder / "vedette.toml").write_text(config, encoding="utf-8")
        env = os.environ | self._server.environment
        env |= {"SLOW_DISK": str(self.state), "LD_PRELOAD": str(self._library)}
        command = [sys.executable, "-m", "agent", "run", "-c", str(self.folder / "vedette.toml")]
        with (self.folder / "log").open("wb") as log:
            daemon = subprocess.Popen(command, cwd=common.ROOT, stderr=log, env=env)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, daemon.pid, 0)
        return daemon

    def play(self, until_s: float) -> None:
        """Speak words into the microphone until then."""
        while time.monotonic() < until_s:
            playing = self._server.play(self._sound, RATE)
            while playing.poll() is None and time.monotonic() < until_s:
                time.sleep(0.1)

    @contextmanager
    def disturbed(self, kinds: Sequence[str]) -> Iterator[None]:
        """Disturb while the context lasts."""
        speed = self.state / ".speed"
        with hogs(HOGS if "cpu" in kinds else 0):
            if "disk" in kinds:
                speed.write_text(DISK, encoding="ascii")
            self.link.bytes_per_s = SLOW if "link" in kinds else FAST
            try:
                yield
            finally:
                speed.unlink(missing_ok=True)
                self.link.bytes_per_s = FAST


def measure(kinds: Sequence[str], library: Path, calm_s: float, under_s: float, **priorities: int) -> Run:
    """Run a daemon, disturb it, and return what it did."""
    with tempfile.TemporaryDirectory(dir=common.ON_DISK) as base, common.mosquitto() as broker:
        folder = Path(base)
        with SoundServer(folder) as server:
            rig, listener = Rig(folder, broker, server, library, **priorities), Listener(broker)
            with rig.link:
                daemon = rig.start()
                try:
                    rig.play(time.monotonic() + WARM_S)
                    calm = time.monotonic(), time.monotonic() + calm_s
                    rig.play(calm[1])
                    with rig.disturbed(kinds):
                        under = time.monotonic(), time.monotonic() + under_s
                        rig.play(under[1])
                    time.sleep(REST_S)
                finally:
                    daemon.send_signal(signal.SIGTERM)
                    daemon.wait()
                time.sleep(1.0)
            listener.stop()
            return judged(rig, listener, calm, under)


def judged(rig: Rig, listener: Listener, calm: tuple[float, float], under: tuple[float, float]) -> Run:
    """Evaluate what arrived, the queue's history and the log."""
    entries = list(History(rig.state).after(0))
    put, got = {one.stored.seq for one in entries}, Counter(listener.numbers)
    waiting = {one.stored.seq for one in entries if not one.acknowledged}
    log = (rig.folder / "log").read_text(encoding="utf-8", errors="replace")
    health = listener.health
    # The sound that is there when the daemon stops counts as dropped.
    ear = [one for at, one in health if at <= under[1] + REST_S / 2][-1].streams["ear"]
    first = max(rig._priorities, key=lambda one: rig._priorities[one])
    settled_s = under[0] + min(SETTLE_S, (under[1] - under[0]) / 2)
    settled = [one for at, one in health if settled_s <= at <= under[1]]
    return Run(
        layers_of(listener.events, *calm),
        layers_of(listener.events, *under),
        layers_of(listener.events, settled_s, under[1]),
        gave_way(log),
        len(put - got.keys() - waiting),
        sum(count - 1 for count in got.values()),
        ear.dropped,
        ear.reopened,
        sum(one.stream == "ear" for one in listener.events),
        sum(bool(one.streams[first].unmet) for one in settled) / max(1, len(settled)),
        log,
    )


def layers_of(events: Sequence[Heard], from_s: float, until_s: float) -> dict[str, list[float]]:
    """Latencies of the events that arrived in a time, by layer."""
    return {
        layer: sorted(one.layers[layer] for one in events if from_s <= one.at_s <= until_s) for layer in LAYERS
    }


def gave_way(log: str) -> list[str]:
    """What the daemon's log tells to have been reduced, in order."""
    found, known = list[str](), dict[str, set[str]]()
    for line in log.splitlines():
        match = _CHANGE.search(line)
        if match is None or "there is room" in line:
            continue
        if match["queue"]:
            found.append("queue syncs")
            continue
        words = {word for part in match["what"].split(", ") if (word := layer_of(part))}
        found += [f"{match['stream']} {word}" for word in sorted(words - known.get(match["stream"], set()))]
        known[match["stream"]] = known.get(match["stream"], set()) | words
    return found


def layer_of(words: str) -> str:
    """What a part of a change is about."""
    table = {"detections": "samples", "snapshots": "snapshots", "clips": "clips", "one picture": "inference"}
    return next(
        (layer for begin, layer in (table | {"size": "inference"}).items() if words.startswith(begin)), ""
    )


def build(folder: Path) -> Path:
    """Compile the slow disk."""
    library = folder / "slow_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SLOW_DISK), "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    return library


def percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def ratio(run: Run, layer: str) -> float:
    """Median latency of a layer under the disturbance against before; 1 where the difference is small."""
    before, under = (statistics.median(one[layer] or [0.0]) for one in (run.before, run.under))
    return 1.0 if under - before < SLACK_MS else under / max(0.1, before)


def figures_of(name: str, run: Run) -> dict[str, float]:
    """The figures of one disturbance."""
    found = {
        f"{name}_lost": run.lost,
        f"{name}_repeated": run.repeated,
        f"{name}_microphone_lost": run.microphone_lost + run.reopened,
        f"{name}_events": len(run.under["compute"]),
        f"{name}_unmet_share": run.unmet,
    }
    for layer in LAYERS:
        found[f"{name}_{layer}_ratio"] = ratio(run, layer)
        found[f"{name}_{layer}_ms"] = statistics.median(run.under[layer] or [0.0])
        found[f"{name}_{layer}_settled_p95_ms"] = percentile(run.settled[layer] or [0.0], 95)
        found[f"{name}_{layer}_before_ms"] = statistics.median(run.before[layer] or [0.0])
    return {key: float(value) for key, value in found.items()}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--only", default="", help="one disturbance: cpu, disk, link, all or swapped")
    parser.add_argument("--keep-log", type=Path, help="write the daemons' logs into this folder")
    args = parser.parse_args()
    with suppress(OSError):  # the hog is to hit the daemon, not the broker and the subscriber
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    every = ("cpu", "disk", "link")
    plan = {one: ([one], (80, 20)) for one in every} | {"all": (every, (80, 20)), "swapped": (every, (20, 80))}
    names = [args.only] if args.only else ["all"] if args.quick else list(plan)
    calm_s, under_s = (7.0, 16.0) if args.quick else (20.0, 60.0)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for name in names:
            kinds, (door, yard) = plan[name]
            runs[name] = measure(kinds, library, calm_s, under_s, door=door, yard=yard)
            if args.keep_log:
                (args.keep_log / f"{name}.log").write_text(runs[name].log, encoding="utf-8")
            show(name, runs[name])
    figures = {key: value for name, run in runs.items() for key, value in figures_of(name, run).items()}
    common.conclude("allocation", figures, *verdict(runs))


def show(name: str, run: Run) -> None:
    print(f"{name}: gives way: {', '.join(run.order) or 'nothing'}")
    for layer in LAYERS:
        some = [one[layer] or [0.0] for one in (run.before, run.under, run.settled)]
        told = " → ".join(f"{percentile(one, 50):.1f} / {percentile(one, 95):.1f}" for one in some)
        print(f"   {layer:8} p50 / p95 {told} ms, {len(run.under[layer])} events")
    print(
        f"   lost {run.lost}, repeated {run.repeated}, of the microphone {run.microphone_lost}, {run.words} words"
    )
    print(f"   the first stream's promises broken in {run.unmet:.0%} of the windows", flush=True)


def verdict(runs: dict[str, Run]) -> tuple[dict[str, str], bool]:
    """The targets, and whether they are met."""
    targets = {
        "*_lost": "= 0",
        "*_microphone_lost": "= 0",
        "disk_compute_ratio": "<= 1.2",
        "disk_network_ratio": "<= 1.2",
        "link_compute_ratio": "<= 1.2",
        "link_storage_ratio": "<= 1.2",
        "order": "the stream of lower priority first, in each run",
    }
    meets = all(run.lost == run.microphone_lost == run.reopened == 0 for run in runs.values())
    for name in ("disk", "link"):
        if name in runs:
            meets &= all(ratio(runs[name], layer) <= FACTOR for layer in LAYERS if layer not in HITS[name])
    for name, run in runs.items():
        streams = [one.split()[0] for one in run.order if not one.startswith("queue")]
        meets &= not streams or streams[0] == ("door" if name == "swapped" else "yard")
    return targets, meets


if __name__ == "__main__":
    main()
