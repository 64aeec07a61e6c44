"""What listening costs: the daemon's CPU share of one core with one microphone stream, in silence and in speech.

The microphone is real as far as the daemon can tell: a sound server's, into which the bench plays. Everything is
counted: PortAudio, capture, gate, front end, model, spool, MQTT.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _sound
import common
import numpy as np
import psutil

sys.path.insert(0, str(common.ROOT))

from tests.support.soundserver import SoundServer

RATE = 16_000
SPOKEN = common.ROOT / "agent" / "zoo" / "spoken.flac"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--model", default="small-speech", help="name or path of a model of sound")
    args = parser.parse_args()
    seconds = 12.0 if args.quick else 60.0
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
    targets = {"silence_share": "<= 0.01 of a core", "speech_share": "<= 0.05 of a core"}
    meets = figures["silence_share"] <= 0.01 and figures["speech_share"] <= 0.05
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
    process = psutil.Process(pid)
    silence = share(process, seconds)
    sound = _sound.decoded(SPOKEN.read_bytes(), RATE)
    rounds = int(np.ceil((seconds + 3.0) * RATE / len(sound)))
    player = server.play(np.tile(sound, rounds), RATE)
    time.sleep(1.0)
    speech = share(process, seconds)
    player.kill()
    return {"silence_share": silence, "speech_share": speech, "seconds": seconds}


def share(process: psutil.Process, seconds: float) -> float:
    """CPU seconds per second."""
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    time.sleep(seconds)
    return float((sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
