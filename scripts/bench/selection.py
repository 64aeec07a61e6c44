"""Choosing by measuring: is the right one chosen, is each refusal named, and how long does it take?

There are the CPU, a real GPU backend (Mesa's llvmpipe where there is no other), and a delegate that misbehaves in
every way. The delegate is a real one in C, compiled here; the model is one that it is right about, and much
faster than the CPU. What was measured is kept: a start that finds it there costs next to nothing more than one
that asks for the CPU by name.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT))

from agent.compute.infer.benchmark import Selection, choose
from agent.compute.infer.delegates import probe_delegates
from agent.compute.infer.session import SessionOptions
from agent.config import SelectionConfig
from agent.daemon.autoselect import AutoBackend
from agent.daemon.measurements import StoredMeasurements
from agent.models.library import open_model
from agent.storage.state import MeasurementFiles
from tests.support.delegates import compiled, identity_model

REASONS = {
    "refuse": "the device is busy",
    "nothing": "takes none",
    "crash-prepare": "SIGSEGV",
    "hang-prepare": "hangs",
    "crash": "SIGSEGV",
    "illegal": "SIGILL",
    "exit": "exit status 0",
    "hang": "hangs",
    "wrong": "answers wrongly",
    "nan": "answers wrongly",
    "slow": "slower than the CPU",
    "fail": "the device has gone",
}


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        model = open_model(str(identity_model(Path(folder))))
        names = {mode: f"external:{library}?mode={mode}" for mode in (*REASONS, "fast")}
        began = time.perf_counter()
        bad = choose(model, probe_delegates([names[mode] for mode in REASONS]), 2, patience_s=3.0)
        stub_s = time.perf_counter() - began
        good = choose(model, probe_delegates([names["refuse"], names["fast"]]), 2)
        named = sum(reason in refused(bad, names[mode]) for mode, reason in REASONS.items())
        for mode in REASONS:
            print(f"{mode:14} {refused(bad, names[mode])}")
        began = time.perf_counter()
        speech = choose(open_model("small-speech", "3" if args.quick else "12"), probe_delegates(["gpu"]), 2)
        real_s = time.perf_counter() - began
        print(f"gpu            {refused(speech, 'gpu') or 'chosen'}")
        cached_ms = cached_start(Path(folder))
        print(f"a start with what is known: {cached_ms:.1f} ms more than the CPU's")
    figures = {
        "ways_to_misbehave": float(len(REASONS)),
        "refusals_named": float(named),
        "cpu_chosen_among_bad_ones": float(bad.chosen.kind == "cpu"),
        "fast_delegate_chosen": float(good.chosen.settings == {"mode": "fast"}),
        "gpu_found": float(any(one.name == "gpu" and one.here for one in speech.measured)),
        "gpu_answered_or_named": float(bool(refused(speech, "gpu")) or speech.chosen.backend == "gpu"),
        "stubs_s": stub_s,
        "cpu_and_gpu_s": real_s,
        "cached_start_ms": cached_ms,
    }
    targets = {
        "refusals_named": f"= {len(REASONS)}",
        "cpu_chosen_among_bad_ones": "= 1",
        "fast_delegate_chosen": "= 1",
        "cached_start_ms": "< 20",
    }
    right = figures["cpu_chosen_among_bad_ones"] == figures["fast_delegate_chosen"] == 1.0
    meets = right and named == len(REASONS) and cached_ms < 20.0
    common.conclude("selection", figures, targets, meets)


def cached_start(folder: Path) -> float:
    """Return the extra time of opening by stored measurements over opening on the CPU, ms; the median of 20 each.

    All candidates of this machine are looked for, and their files are those that were measured.
    """
    model, selection = open_model("small-speech", "3"), SelectionConfig(threads_max=1, after_s=1e6)
    surveys = StoredMeasurements(MeasurementFiles(folder), selection)
    found = surveys.delegates()
    surveys.measure_and_store(model, found, lambda _: None)
    times: dict[str, list[float]] = {"auto": [], "cpu": []}
    for _ in range(20):
        for backend, spent in times.items():
            chooser = AutoBackend(selection, folder)
            began = time.perf_counter()
            session = chooser.open(model, backend, SessionOptions(threads=1))
            spent.append((time.perf_counter() - began) * 1e3)
            session.close()
            chooser.close()
    return statistics.median(times["auto"]) - statistics.median(times["cpu"])


def refused(verdict: Selection, name: str) -> str:
    """Why it was not taken."""
    return next(one.refused for one in verdict.measured if one.name == name)


if __name__ == "__main__":
    main()
