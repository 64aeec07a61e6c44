"""Memory: resident set of the real daemon with one stream and with four of the same model, and its growth.

The daemon runs as its own process on the clip in a loop, at real-time pace; the growth is watched at `pace=fast`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import common
import msgspec
import psutil

MB = 1024 * 1024
SETTLE_S = 6.0


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument(
        "--frames", type=int, default=0, help="frames over which growth is watched; default 20000"
    )
    args = parser.parse_args()
    frames = args.frames or (2000 if args.quick else 20000)
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        one = steady(Path(folder), port, streams=1, seconds=6 if args.quick else 20)
        four = steady(Path(folder), port, streams=4, seconds=6 if args.quick else 20)
        small = str(common.face_model(Path(folder)))
        growth = grown(Path(folder), port, small, frames)
    figures = {"one_stream_mb": one, "four_streams_mb": four, "frames_watched": frames, "growth_mb": growth}
    targets = {
        "one_stream_mb": "<= 120",
        "four_streams_mb": "<= 220",
        "growth_mb": "<= 2 between the first and the last tenth of the frames",
    }
    common.conclude("memory", figures, targets, one <= 120 and four <= 220 and growth <= 2)


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / MB


def steady(folder: Path, port: int, streams: int, seconds: float) -> float:
    """Median resident set once the streams run, MB."""
    daemon = common.daemon(folder, port, streams=streams)
    process = psutil.Process(daemon.pid)
    try:
        time.sleep(SETTLE_S)
        samples = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            samples.append(resident_mb(process))
            time.sleep(0.25)
    finally:
        daemon.terminate()
        daemon.wait()
    median = statistics.median(samples)
    print(f"{streams} stream(s): {median:.1f} MB median, {max(samples):.1f} MB peak")
    return median


def grown(folder: Path, port: int, model: str, frames: int) -> float:
    """How much more memory the last tenth of the frames takes than the first tenth after warming up, MB."""
    from agent.comms.payload import HealthMessage
    from agent.comms.subscriber import Access, Subscriber

    subscriber = Subscriber(Access("127.0.0.1", port))
    subscriber.start()
    daemon = common.daemon(folder, port, model=model, pace="fast")
    process = psutil.Process(daemon.pid)
    samples: list[tuple[int, float]] = []
    try:
        for message in subscriber.messages():
            if message is not None and message.kind == "health" and not message.retained:
                health = msgspec.json.decode(message.payload, type=HealthMessage)
                samples.append((health.streams["bench"].frames, resident_mb(process)))
                if samples[-1][0] >= frames:
                    break
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    first = [mb for n, mb in samples if frames * 0.1 <= n <= frames * 0.2]
    last = [mb for n, mb in samples if n >= frames * 0.9]
    growth = statistics.median(last) - statistics.median(first)
    print(f"over {samples[-1][0]} frames: {growth:+.2f} MB")
    return growth


if __name__ == "__main__":
    main()
