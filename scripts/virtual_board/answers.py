"""Write this processor's answers to a file: of each variant of the bundled models and of the audio front ends.

Runs on the board and on the machine beside it; `arm_check` compares the two files.

    answers FILE CASES

The file is numpy's, of arrays by name:

    MODEL/RUNG/nodes                  operations, and how many of them XNNPACK has taken
    MODEL/RUNG/CASE/input NAME        what the model was given
    MODEL/RUNG/CASE/output NAME       what it answered, through the daemon's own session
    MODEL/RUNG/operation/N/answer     what one operation answered to the first case
    MODEL/RUNG/operation/N/needs      numbers of the operations whose answers it was given
    MODEL/RUNG/operation/N/title      its name, and who ran it
    sound/…, front end/…              the packaged recording, as it lies there and resampled; rows made from it
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec.structs import replace

from agent.capture.audio_file import read_whole
from agent.compute.infer.audio_input import build_frontend
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.litert import CpuBackend, CpuSession, _delegated, load_runtime
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import AudioManifest, Model, Variant
from agent.compute.tflite.read import only_signature
from agent.models.files import ZOO, bundled
from agent.models.library import open_whole_model
from agent.types import Array

_OWN_HZ, _RESAMPLED_HZ = 16_000, 8000
"""Rates of the packaged recording. At its own nothing but the front end can round otherwise."""
_FRONT_ENDS = ("logmel", "mfcc")
Answers = dict[str, Array]


def main(path: str, cases: int) -> None:
    warnings.simplefilter("ignore", UserWarning)  # the interpreter's, of keeping every tensor
    answers: Answers = {}
    for name in bundled():
        model = open_whole_model(name)
        for variant in model.manifest.variants:
            began = time.monotonic()
            answers |= {
                f"{name}/{variant.name}/{key}": array for key, array in _of_variant(model, variant, cases)
            }
            print(f"  {name} {variant.name}: {time.monotonic() - began:.1f} s", flush=True)
    answers |= _of_sound()
    np.savez(path, **answers)  # type: ignore[arg-type]


def _of_variant(model: Model, variant: Variant, cases: int) -> Iterator[tuple[str, Array]]:
    """Yield a variant's answers, from a file of its own: delegation is known only for a file's first graph."""
    content = only_signature(model.content, variant.signature)
    alone = replace(model, content=content, manifest=replace(model.manifest, variants=(variant,)))
    session = CpuBackend().open(alone, SessionOptions(threads=1))
    yield "nodes", np.array(_delegated(session._interpreter))
    inputs = golden_inputs(session.inputs, cases)
    for number, case in enumerate(inputs):
        for name, array in _answered(session, case):
            yield f"{number}/{name}", array
    names = [spec.name for spec in session.inputs]
    session.close()
    yield from _of_operations(content, dict(zip(names, inputs[0], strict=True)))


def _answered(session: CpuSession, case: list[Array]) -> Iterator[tuple[str, Array]]:
    for index, (array, spec) in enumerate(zip(case, session.inputs, strict=True)):
        np.copyto(session.input(index), array)
        yield f"input {spec.name}", array
    session.invoke()
    for index, spec in enumerate(session.outputs):
        yield f"output {spec.name}", np.array(session.output(index))


def _of_operations(content: bytes, given: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield each operation's answers, with every tensor kept: XNNPACK then runs each of its operations alone."""
    interpreter = load_runtime()[1].Interpreter(
        model_content=content, num_threads=1, experimental_preserve_all_tensors=True
    )
    _run(interpreter, given)
    nodes = interpreter._get_ops_details()
    taken = {int(tensor) for node in nodes if node["op_name"] == "DELEGATE" for tensor in node["outputs"]}
    makers: dict[int, int] = {}
    for node in (node for node in nodes if node["op_name"] != "DELEGATE"):
        yield from _of_operation(interpreter, node, taken, makers)
        makers |= {int(tensor): node["index"] for tensor in node["outputs"]}


def _run(interpreter: Any, given: dict[str, Array]) -> None:
    """Run once; inputs are by their names in the signature, or in the order of a graph that has none."""
    if interpreter.get_signature_list():
        interpreter.get_signature_runner()(**given)
        return
    interpreter.allocate_tensors()
    for details, array in zip(interpreter.get_input_details(), given.values(), strict=True):
        interpreter.set_tensor(details["index"], array)
    interpreter.invoke()


def _of_operation(
    interpreter: Any, node: dict[str, Any], taken: set[int], makers: dict[int, int]
) -> Iterator[tuple[str, Array]]:
    outputs = [int(tensor) for tensor in node["outputs"]]
    place = f"operation/{node['index']}"
    who = "XNNPACK" if taken.issuperset(outputs) else "the runtime itself"
    yield f"{place}/answer", np.concatenate([interpreter.get_tensor(tensor).ravel() for tensor in outputs])
    yield f"{place}/needs", np.array([makers[int(t)] for t in node["inputs"] if int(t) in makers], int)
    yield f"{place}/title", np.array(f"{node['op_name']} by {who}")


def _of_sound() -> Answers:
    own, resampled = (read_whole(ZOO / "spoken.flac", hz) for hz in (_OWN_HZ, _RESAMPLED_HZ))
    answers: Answers = {"sound/as it lies there": own, "sound/resampled": resampled}
    for name in _FRONT_ENDS:
        answers[f"front end/{name}"] = build_frontend(AudioManifest(_OWN_HZ, name))(own)
    return answers


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
