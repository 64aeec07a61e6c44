"""Store golden answers: evenly spaced values of each output, and those far from the middle."""

from __future__ import annotations

import msgspec
import numpy as np

from agent.cli.checks.models import RECORD, Golden, golden_input, open_alone
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import Session, SessionOptions
from agent.types import Array

_RUNGS = (("small-speech", "3"), ("small-speech", "12"), ("nanodet", "256"))
_EACH = 96
"""Values of an output that are kept for either reason."""


def main() -> None:
    goldens = [_recorded(model, variant) for model, variant in _RUNGS]
    RECORD.write_bytes(b"[\n" + b",\n".join(map(msgspec.json.encode, goldens)) + b"\n]\n")
    print(f"{RECORD}: {RECORD.stat().st_size} bytes")


def _recorded(name: str, variant: str) -> Golden:
    model = open_alone(name, variant)
    session: Session = CpuBackend().open(model, SessionOptions(threads=1))
    for index, spec in enumerate(session.inputs):
        np.copyto(session.input(index), golden_input(spec))
    session.invoke()
    answers = {spec.name: session.output(index).ravel().copy() for index, spec in enumerate(session.outputs)}
    at = {output: _places(answer) for output, answer in answers.items()}
    values = {output: answer[at[output]].tolist() for output, answer in answers.items()}
    session.close()
    return Golden(name, variant, model.sha256, at, values)


def _places(answer: Array) -> list[int]:
    spaced = np.linspace(0, answer.size - 1, min(_EACH, answer.size)).astype(int)
    far = np.argsort(-np.abs(answer - np.median(answer)), kind="stable")[:_EACH]
    return sorted({*spaced.tolist(), *far.tolist()})


if __name__ == "__main__":
    main()
