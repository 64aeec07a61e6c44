"""Latency at real-time pace: capture → received by a subscriber of a real mosquitto, split by stage.

Every processed frame's detections are published, so that every frame counts. The daemon runs as its own process;
the message carries `captured_at` and the stages, and the subscriber stamps its arrival on the same clock.

The time of an inference belongs to the model and the machine. The target is what comes on top of it, frame by
frame: waiting, gate, resizing, decoding, tracking, spool, MQTT and the broker.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import common
import msgspec

STAGES = ("queue", "gate", "prepare", "infer", "decode", "track")


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        stages, totals = collect(Path(folder), port, seconds=25 if args.quick else 90)
    beyond = [total - infer for total, infer in zip(totals, stages["infer"], strict=True)]
    figures = {f"{name}_p50_ms": statistics.median(values) for name, values in stages.items()}
    figures |= {f"{name}_p99_ms": percentile(values, 99) for name, values in stages.items()}
    share = 95 if args.quick else 99  # quick, 99 of 100 frames are all but the two slowest
    figures |= {
        "total_p50_ms": statistics.median(totals),
        "total_p99_ms": percentile(totals, 99),
        "beyond_infer_p50_ms": statistics.median(beyond),
        f"beyond_infer_p{share}_ms": percentile(beyond, share),
        "frames": len(totals),
    }
    print(f"{'stage':10} {'p50 ms':>8} {'p99 ms':>8}")
    for name in (*stages, "total"):
        print(f"{name:10} {figures[f'{name}_p50_ms']:8.2f} {figures[f'{name}_p99_ms']:8.2f}")
    target = {f"beyond_infer_p{share}_ms": "<= 5 beyond the inference of the frame"}
    common.conclude("latency", figures, target)


def collect(folder: Path, port: int, seconds: float) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds by stage and in all, of every frame but those of the first two seconds."""
    from agent.comms.consumer import BrokerOptions, Subscriber
    from agent.comms.messages import DetectionsMessage

    decoder = msgspec.json.Decoder(DetectionsMessage)
    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    # The subscriber's stamps are monotonic and the messages' are UTC: one offset joins them.
    offset_s = time.time() - time.monotonic()
    daemon = common.daemon(
        folder, port, extra="[streams.bench.gate]\nmotion = false\n[streams.bench.publish]\ndetections = true"
    )
    stages: dict[str, list[float]] = {name: [] for name in (*STAGES, "deliver")}
    totals: list[float] = []
    began = time.monotonic()
    try:
        for message in subscriber.messages(began + seconds):
            if message is None or message.kind != "detections" or time.monotonic() < began + 4:
                continue
            seen = decoder.decode(message.payload)
            total = (message.received_ns / 1e9 + offset_s - seen.captured_at.timestamp()) * 1e3
            for name in STAGES:
                stages[name].append(getattr(seen.latency_ms, name))
            stages["deliver"].append(total - seen.latency_ms.total)
            totals.append(total)
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    return stages, totals


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


if __name__ == "__main__":
    main()
