"""What listening costs: the daemon's CPU share of one core with one microphone stream, in silence and in speech.

The microphone is real as far as the daemon can tell: a sound server's, into which the bench plays. Everything is
counted: PortAudio, the server's library, capture, gate, front end, model, spool, MQTT. At first another program
hears the microphone, too, and asks for its sound every 20 ms, so that the server sends everybody 50 pieces a
second; then the daemon is alone with it. A thread that a library began bears the name of one of ours.
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
SPOKEN = common.ROOT / "agent" / "zoo" / "spoken.flac"


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
    limits = {"silence_share": 0.01, "silence_alone_share": 0.01, "speech_share": 0.05}
    targets = {name: f"<= {limit} of a core" for name, limit in limits.items()}
    meets = all(figures[name] <= limit for name, limit in limits.items())
    common.conclude("listen_cost", figures, targets, meets)


def start(folder: Path, port: int, model: str) -> subprocess.Popen[bytes]:
    """The daemon with one microphone; returns when it hears."""
    config = folder / "vedette.toml"
    config.write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n[storage]\nfolder = "{folder / "state"}"\n'
        f'[streams.bench]\nsource = "mic:default"\nmodel = "{model}"\n',
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
    silence = share("silence", pid, seconds)
    sound = _sound.decoded(SPOKEN.read_bytes(), RATE)
    rounds = int(np.ceil((seconds + 3.0) * RATE / len(sound)))
    player = server.play(np.tile(sound, rounds), RATE)
    time.sleep(1.0)
    speech = share("speech", pid, seconds)
    player.kill()
    server.leave_alone()
    time.sleep(3.0)
    alone = share("silence, alone", pid, seconds)
    return {"silence_share": silence, "silence_alone_share": alone, "speech_share": speech, "seconds": seconds}


class Spent(NamedTuple):
    """What a thread has spent since it began.

    Attributes:
        name: as the system knows it.
        cpu_s: on a core.
        waits: how often it has gone to sleep, which is how often it was woken.
    """

    name: str
    cpu_s: float
    waits: int


def share(what: str, pid: int, seconds: float) -> float:
    """CPU seconds per second of the whole process; prints those of each thread."""
    before, cpu_s, began_s = threads(pid), process_s(pid), time.perf_counter()
    time.sleep(seconds)
    took_s, cpu_s, after = time.perf_counter() - began_s, process_s(pid) - cpu_s, threads(pid)
    print(f"{what}: {cpu_s / took_s:.2%} of a core\n  {'thread':23} {'CPU':>6} {'wake-ups/s':>11}")
    for tid, (name, spent_s, waits) in sorted(after.items()):
        _, spent_before_s, waits_before = before.get(tid, Spent(name, 0.0, 0))
        if waits > waits_before:
            cpu, rate = (spent_s - spent_before_s) / took_s, (waits - waits_before) / took_s
            print(f"  {tid:7} {name:15} {cpu:6.2%} {rate:11.1f}")
    return cpu_s / took_s


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
