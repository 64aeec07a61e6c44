"""Measure the cost of listening: the daemon's share of a core with one microphone, in silence and in speech.

The microphone is real as far as the daemon can tell: a sound server's, into which the bench plays. Everything is
counted: PortAudio, the server's library, capture, gate, front end, model, spool, MQTT. At first another program
hears the microphone, too, and asks for its sound every 20 ms, so that the server sends everybody 50 pieces a
second; then the daemon is alone with it. A thread that a library began has the name of a thread of the agent.

In silence nearly all of it is the price of being woken, which differs between machines. Hence the targets: how
often the daemon is woken when it is alone with the microphone, and what a wake-up costs it against one of a
program that does nothing else (`sleeper`), which runs at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import _sound
import common
import numpy as np

sys.path.insert(0, str(common.ROOT))

from tests.support.soundserver import SoundServer

RATE = 16_000
SPOKEN = common.ROOT / "agent" / "models" / "zoo" / "spoken.flac"
SLEEPER = "import time\nwhile True:\n    time.sleep(0.05)"
"""A program whose wake-ups cost the least that Python allows, as often as one of the daemon's busier threads."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--model", default="small-speech", help="name or path of a model of sound")
    args = parser.parse_args()
    seconds = 10.0 if args.quick else 60.0
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        server = SoundServer(Path(folder))
        os.environ |= server.environment
        with server:
            daemon = start(Path(folder), port, args.model)
            try:
                figures = measure(daemon.pid, server, seconds)
            finally:
                daemon.terminate()
                daemon.wait()
    limits = {"alone_wakeups_per_s": 60.0, "alone_wakeup_ratio": 3.0, "speech_share": 0.05}
    targets = {
        "alone_wakeups_per_s": "<= 60",
        "alone_wakeup_ratio": "<= 3 times the CPU of a wake-up of a program that only sleeps",
        "speech_share": "<= 0.05 of a core",
    }
    meets = all(figures[name] <= limit for name, limit in limits.items())
    common.conclude("listen_cost", figures, targets, meets)


def start(folder: Path, port: int, model: str) -> subprocess.Popen[bytes]:
    """The daemon with one microphone; returns when it hears."""
    config = folder / "vedette.toml"
    config.write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[storage]\nstate_dir = "{folder / "state"}"\n'
        f'[streams.bench]\nsource = "mic:default"\nmodel = "{model}"\n'
        "[selection]\nafter_s = 100000\n",  # measuring the model's backends is done once, and would be counted
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "agent", "run", "-c", str(config)]
    daemon = subprocess.Popen(command, cwd=common.ROOT, stderr=subprocess.DEVNULL)
    time.sleep(4.0)
    if daemon.poll() is not None:
        raise SystemExit(f"the daemon ended: try {' '.join(command)}")
    return daemon


def measure(pid: int, server: SoundServer, seconds: float) -> dict[str, float]:
    """Shares of a core."""
    silence = share("silence", pid, seconds)[0]
    sound = _sound.decoded(SPOKEN.read_bytes(), RATE)
    rounds = int(np.ceil((seconds + 3.0) * RATE / len(sound)))
    player = server.play(np.tile(sound, rounds), RATE)
    time.sleep(1.0)
    speech = share("speech", pid, seconds)[0]
    player.kill()
    server.leave_alone()
    time.sleep(3.0)
    bare = subprocess.Popen([sys.executable, "-c", SLEEPER])
    before, began_s = total(bare.pid), time.perf_counter()
    alone, wakeups_per_s = share("silence, alone", pid, seconds)
    cpu_s, waits = (now - then for now, then in zip(total(bare.pid), before, strict=True))
    print(f"sleeper: {waits / (time.perf_counter() - began_s):.1f} wake-ups/s, {cpu_s / waits * 1e6:.0f} us each")
    bare.kill()
    return {
        "silence_share": silence,
        "silence_alone_share": alone,
        "speech_share": speech,
        "alone_wakeups_per_s": wakeups_per_s,
        "alone_us_per_wakeup": alone / wakeups_per_s * 1e6,
        "bare_us_per_wakeup": cpu_s / waits * 1e6,
        "alone_wakeup_ratio": (alone / wakeups_per_s) / (cpu_s / waits),
        "seconds": seconds,
    }


def total(pid: int) -> tuple[float, int]:
    """CPU seconds and wake-ups of all threads of a process that live now."""
    lives = threads(pid).values()
    return sum(one.cpu_s for one in lives), sum(one.waits for one in lives)


class Spent(NamedTuple):
    """CPU time and waits of a thread since it began.

    Attributes:
        name: as the system knows it.
        cpu_s: on a core.
        waits: how often it has gone to sleep, which is how often it was woken.
    """

    name: str
    cpu_s: float
    waits: int


def share(what: str, pid: int, seconds: float) -> tuple[float, float]:
    """CPU seconds and wake-ups per second of the whole process; prints those of each thread."""
    before, cpu_s, began_s = threads(pid), process_s(pid), time.perf_counter()
    time.sleep(seconds)
    took_s, cpu_s, after = time.perf_counter() - began_s, process_s(pid) - cpu_s, threads(pid)
    print(f"{what}: {cpu_s / took_s:.2%} of a core\n  {'thread':23} {'CPU':>6} {'wake-ups/s':>11}")
    woken = 0.0
    for tid, (name, spent_s, waits) in sorted(after.items()):
        _, spent_before_s, waits_before = before.get(tid, Spent(name, 0.0, 0))
        if waits > waits_before:
            cpu, rate = (spent_s - spent_before_s) / took_s, (waits - waits_before) / took_s
            print(f"  {tid:7} {name:15} {cpu:6.2%} {rate:11.1f}")
            woken += rate
    return cpu_s / took_s, woken


def process_s(pid: int) -> float:
    """CPU time of another process, to the ns: its clock has the number that clock_getcpuclockid(3) gives."""
    return time.clock_gettime((~pid << 3) | 2)


def threads(pid: int) -> dict[int, Spent]:
    """Every thread that lives now, by its number."""
    return {int(folder.name): spent(folder) for folder in Path(f"/proc/{pid}/task").iterdir()}


def spent(thread: Path) -> Spent:
    """From /proc/PID/task/TID."""
    status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
    on_core_ns = int((thread / "schedstat").read_text().split()[0])
    return Spent(status["Name"], on_core_ns / 1e9, int(status["voluntary_ctxt_switches"]))


if __name__ == "__main__":
    main()
