"""A microphone and a camera side by side in one daemon: nothing overruns, every word is heard, nothing grows.

The packaged recording is played into a sound server's microphone again and again while the clip runs at its own
pace. The daemon's own health messages tell what was lost.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import _sound
import common
import msgspec
import numpy as np

sys.path.insert(0, str(common.ROOT))

from agent.comms.consumer import BrokerOptions, Subscriber
from agent.health import HealthMessage
from tests.support.soundserver import SoundServer

RATE = 16_000
SPOKEN = common.ROOT / "agent" / "models" / "zoo" / "spoken.flac"
_EAR = '[streams.ear]\nsource = "mic:default"\nmodel = "small-speech"'
_WARM_S = 5.0


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=0.0, help="default 10")
    args = parser.parse_args()
    seconds = 60.0 * (args.minutes or (0.5 if args.quick else 10.0))
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        server = SoundServer(Path(folder))
        os.environ |= server.environment
        with server:
            daemon = common.daemon(Path(folder), port, extra=_EAR)
            try:
                figures = watch(server, port, seconds)
            finally:
                daemon.terminate()
                daemon.wait()
    targets = {
        "samples_lost": "= 0",
        "microphone_reopened": "= 0",
        "frames_dropped_share": "<= 0.01",
        "words_per_round": "the same in each round, but for one",
        "growth_mb": "<= 4",
    }
    meets = figures["samples_lost"] == figures["microphone_reopened"] == 0
    meets = meets and figures["frames_dropped_share"] <= 0.01 and figures["growth_mb"] <= 4
    meets = meets and figures["words_per_round_least"] >= figures["words_per_round_most"] - 1 > 0
    common.conclude("soak", figures, targets, meets)


def watch(server: SoundServer, port: int, seconds: float) -> dict[str, float]:
    """Play, listen and read health for so long."""
    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    health: list[HealthMessage] = []
    words: list[int] = []
    over = threading.Event()

    def collect() -> None:
        for message in subscriber.messages():
            if over.is_set():
                return
            if message is None:
                continue
            if message.kind == "health":
                health.append(msgspec.json.decode(message.payload, type=HealthMessage))
            elif message.stream == "ear" and words and message.event() is not None:
                words[-1] += 1

    thread = threading.Thread(target=collect)
    thread.start()
    time.sleep(_WARM_S)
    sound = _sound.decoded(SPOKEN.read_bytes(), RATE)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        words.append(0)
        server.play(sound, RATE)
        time.sleep(len(sound) / RATE + 1.5)
        now = health[-1]
        lost = now.streams["ear"].dropped
        print(f"round {len(words)}: {words[-1]} words, {lost} samples lost, {now.rss_mb:.1f} MB", flush=True)
    over.set()
    thread.join()
    subscriber.stop()
    return judged(health, words)


def judged(health: list[HealthMessage], words: list[int]) -> dict[str, float]:
    """Evaluate the messages."""
    audio, video = health[-1].streams["ear"], health[-1].streams["bench"]
    steady = [message.rss_mb for message in health[len(health) // 10 :]]
    tenth = max(1, len(steady) // 10)
    return {
        "minutes": health[-1].uptime_s / 60.0,
        "samples_lost": float(audio.dropped),
        "microphone_reopened": float(audio.reopened),
        "words_per_round_least": float(min(words)),
        "words_per_round_most": float(max(words)),
        "camera_fps": float(np.median([message.streams["bench"].fps for message in health])),
        "frames_dropped_share": video.dropped / max(1, video.frames + video.dropped),
        "growth_mb": float(np.median(steady[-tenth:]) - np.median(steady[:tenth])),
        "rss_mb": steady[-1],
    }


if __name__ == "__main__":
    main()
