"""Startup: process start → first published result, and `vedette --help`. Medians over fresh processes.

The first start of a model on a board is measured separately: the model is then tried in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    runs = 3 if args.quick else 7
    helps = [help_s() for _ in range(runs)]
    with tempfile.TemporaryDirectory() as folder, common.mosquitto() as port:
        new = first_result_s(Path(folder), port)
        firsts = [first_result_s(Path(folder), port) for _ in range(runs)]
    figures = {
        "new_model_s": new,
        "first_result_s": statistics.median(firsts),
        "first_result_worst_s": max(firsts),
        "help_s": statistics.median(helps),
    }
    targets = {"first_result_s": "<= 1.0", "help_s": "<= 0.3"}
    common.conclude("startup", figures, targets, figures["first_result_s"] <= 1.0 and figures["help_s"] <= 0.3)


def help_s() -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "agent", "--help"], cwd=common.ROOT, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began


def first_result_s(folder: Path, port: int) -> float:
    """From starting the process to receiving the first detections at a subscriber, s."""
    from agent.comms.consumer import BrokerOptions, Subscriber

    subscriber = Subscriber(BrokerOptions("127.0.0.1", port))
    subscriber.start()
    began = time.monotonic()
    daemon = common.daemon(folder, port, extra="[streams.bench.publish]\ndetections = true")
    try:
        for message in subscriber.messages(began + 30):
            if message is not None and message.kind == "detections":
                return message.received_ns / 1e9 - began
    finally:
        daemon.terminate()
        daemon.wait()
        subscriber.stop()
    raise SystemExit("no result within 30 s")


if __name__ == "__main__":
    main()
