"""Process the packaged recording on a board whose clocks count instructions; see `count_instructions`.

A Raspberry Pi 4B has 1.5e9 cycles a second. How many instructions its Cortex-A72 ends in a cycle depends on what
it waits for; it can begin three. So the answer is given for one instruction in two cycles, and beside it how slow
it might be and still answer within 100 ms.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from agent.capture.audio_file import read_whole
from agent.compute.hearing import AudioPerception
from agent.config import StreamConfig
from agent.models.library import open_model
from agent.types import AudioChunk, Samples

_HZ = 1.5e9
_WITHIN_S = 0.1
_PER_CYCLE = 0.5
_CHUNK_S = 0.06
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_LOOP = struct.pack("<III", 0xF1000400, 0x54FFFFE1, 0xD65F03C0)
"""`subs x0, x0, #1`; `b.ne` back to it; `ret`."""


def main() -> None:
    print(f"clock check: 20,000,000 instructions count as {counted(10_000_000):,}")
    sound = read_whole(Path("/app/agent/models/zoo/spoken.flac"), 8000)
    figures: dict[str, float] = {}
    for variant in ("3", "4", "6", "12", ""):
        figures |= heard(sound, variant)
    most = figures["depth12_p99"]
    figures["pi4b_ms_at_half_an_instruction_per_cycle"] = most / _PER_CYCLE / _HZ * 1e3
    figures["least_instructions_per_cycle"] = most / _WITHIN_S / _HZ
    targets = {"pi4b_ms_at_half_an_instruction_per_cycle": "< 100 ms"}
    meets = figures["pi4b_ms_at_half_an_instruction_per_cycle"] < 100.0
    print(f"at {_PER_CYCLE} instructions per cycle of a Raspberry Pi 4B: {most / _PER_CYCLE / _HZ * 1e3:.1f} ms")
    print(f"within 100 ms as long as it ends one in {1 / figures['least_instructions_per_cycle']:.0f} cycles")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"bench": "count_instructions", "figures": rounded, "targets": targets, "meets": meets}))


def counted(rounds: int) -> int:
    """Return the count of a loop of two instructions."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_LOOP)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    loop(1)
    began = time.perf_counter_ns()
    loop(rounds)
    return time.perf_counter_ns() - began


def heard(sound: Samples, variant: str) -> dict[str, float]:
    """Instructions by stage of the pieces of sound that gave one answer; of the gate, of every piece."""
    hearing = AudioPerception(
        "count",
        StreamConfig("wav:", "small-speech", variant=variant, threads=1),
        open_model("small-speech", variant),
    )
    gates, answers = [], []
    size = round(_CHUNK_S * hearing.rate_hz)
    for first in range(0, len(sound) - size, size):
        at_s = (first + size) / hearing.rate_hz
        at = _BEGIN + timedelta(seconds=at_s)
        chunk = AudioChunk(sound[first : first + size], hearing.rate_hz, "count", first, round(at_s * 1e9), at, 0)
        seen = hearing.process(chunk)
        gates.append(seen.stages.gate)
        if seen.detections is not None and hearing.inferences == 1:
            answers.append((seen.stages.gate, seen.stages.prepare, seen.stages.infer, seen.stages.track))
    parts = np.array(answers[5:], float)
    whole = parts.sum(axis=1)
    name = f"depth{variant}" if variant else "cascade"
    means = ", ".join(
        f"{stage} {n / 1e6:.2f}"
        for stage, n in zip(("gate", "front end", "model", "words"), parts.mean(axis=0), strict=True)
    )
    most = float(np.percentile(whole, 99))
    print(f"{name:8} {whole.mean() / 1e6:6.2f} million instructions per answer ({means}); p99 {most / 1e6:.2f}")
    return {
        f"{name}_mean": float(whole.mean()),
        f"{name}_p99": most,
        f"{name}_gate": float(np.mean(gates)),
    }


if __name__ == "__main__":
    main()
