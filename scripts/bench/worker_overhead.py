"""A session in a worker process against the same session in this process, on the CPU: what the distance costs.

Both take turns on the same pictures in one run. What is measured is what a stream does: write the input in place,
run, read the outputs.
"""

from __future__ import annotations

import time

import common
import numpy as np

from agent.compute.infer.backend import Options, Plan, Session, open_session
from agent.compute.infer.worker import WorkerSession
from agent.library import open_model

MODELS = (("small-speech", "3"), ("nanodet", "256"), ("nanodet", "416"))


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    figures: dict[str, float] = {}
    meets = True
    for name, rung in MODELS:
        model = open_model(name, rung)
        here, there = (
            open_session(model, "cpu", Options(threads=1)),
            WorkerSession(model, Plan(threads=1), Options()),
        )
        near, far = compared(here, there, 3.0 if args.quick else 12.0)
        here.close()
        there.close()
        added, allowed = far - near, 0.3 + 0.02 * near
        meets = meets and added <= allowed
        key = f"{name}_{rung}"
        figures |= {f"{key}_here_ms": near, f"{key}_worker_ms": far, f"{key}_added_ms": added}
        print(f"{name} {rung}: {near:.3f} ms here, {far:.3f} ms there: {added:+.3f} ms (at most {allowed:.3f})")
    common.conclude("worker_overhead", figures, {"added_ms": "<= 0.3 + 2 % of the inference"}, meets)


def compared(here: Session, there: Session, seconds: float) -> tuple[float, float]:
    """Median of each, ms."""
    random = np.random.default_rng(1)
    given = [random.integers(0, 127, spec.shape).astype(spec.dtype) for spec in here.inputs]
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for session, spent in zip((here, there), times, strict=True):
            for turn in range(8):
                began = time.perf_counter()
                for index, array in enumerate(given):
                    np.copyto(session.input(index), array)
                session.invoke()
                for index in range(len(session.outputs)):
                    session.output(index).ravel()[0]
                if turn > 1:  # the other one's turn has left the caches cold
                    spent.append(time.perf_counter() - began)
    return float(np.median(times[0])) * 1e3, float(np.median(times[1])) * 1e3


if __name__ == "__main__":
    main()
