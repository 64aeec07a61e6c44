"""From a camera's picture to detections: NanoDet as a converter leaves it, and what each further step gives.

Pictures of 640 × 480, BGR, one thread, the variants in turns on each picture, medians. All but the last run in a
script as users write it: cv2.resize, conversion to float, normalisation in numpy, set_tensor, invoke, get_tensor,
decoding in numpy, NMS in Python.

    unfused          float; batch norms apart, channels first with transpositions, PADV2(-inf): see `_unfused.py`
    package          the same without batch norms, as the npm package has it
    fused            `unfused` after `vedette optimise rewrite`
    int8             the bundled INT8 model with float inputs and outputs, as quantisers leave them
    float_zero_copy  the float model with the normalisation in its first convolution, in Vedette's session
    zero_copy        the bundled INT8 model with uint8 input, in Vedette's session

Where other programs share the cores, the CPU time says more. Without instructions for INT8, x86-64 runs that as
slowly as float; what the inference alone gains on a Pi 4B is predicted from published times of other networks.

The float model is the bundled one in floats, with its INT8 weights: the graph of the one that was trained, and so
its times.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import cv2
import numpy as np
from _naive import decode_nanodet, nms
from _unfused import MEAN_BGR, STD_BGR, as_float, first_graph, packed, unfuse, with_float_ends
from ai_edge_litert.interpreter import Interpreter
from board_predictor import find_board, predict
from board_work import work_of
from common import CLIP, arguments, conclude

from agent.compute.infer.backends import open_session
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.read import read_modelfile
from agent.compute.vision import Detector
from agent.config import DecodeConfig
from agent.models.files import load_file
from agent.models.library import open_model
from agent.optimise.graph.rewrite import rewrite
from agent.types import WHOLE, Frame

SIZE, VARIANT, THRESHOLD, OVERLAP = 416, "416", 0.5, 0.6
TARGET, BOARD = 1.76, "pi4b"
Run = Callable[[Any], int]
"""Takes a picture [480, 640, 3], uint8, BGR, and returns the number of detections."""


class Measured(NamedTuple):
    """One run: wall and CPU time, ms, and the number of detections."""

    wall: float
    cpu: float
    found: int


def script(content: bytes, *, normalised: bool) -> Run:
    """Return what an ordinary script does with a float model.

    Args:
        content: of the model.
        normalised: it takes (pixel - mean) / std, channels first; False: pixels 0..255.
    """
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    entry, outputs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()

    def run(picture: Any) -> int:
        values = cv2.resize(picture, (SIZE, SIZE)).astype(np.float32)
        if normalised:
            values = ((values - MEAN_BGR) / STD_BGR).transpose(2, 0, 1)
        interpreter.set_tensor(entry, np.expand_dims(values, 0))
        interpreter.invoke()
        return len(nms(decode_nanodet([interpreter.get_tensor(one["index"]) for one in outputs])))

    return run


def session(model: Model) -> Run:
    """Return what Vedette does with a model."""
    opened = open_session(model, "cpu", SessionOptions(variant=VARIANT, threads=1))
    config = DecodeConfig(score_threshold=THRESHOLD, iou_threshold=OVERLAP)
    detector = Detector(opened, model, VARIANT, config)

    def run(picture: Any) -> int:
        now = time.monotonic_ns()
        frame = Frame(
            pixels=picture, order="bgr", captured_ns=now, captured_at=datetime.now(UTC), seq=0, stream="b"
        )
        return len(detector.run(frame, WHOLE).detections)

    return run


def pictures(count: int) -> list[Any]:
    """Return frames of the bundled clip, 640 × 480, BGR."""
    capture = cv2.VideoCapture(str(CLIP))
    found: list[Any] = []
    while len(found) < count:
        ok, picture = capture.read()
        if not ok:
            break
        found.append(cv2.resize(picture, (640, 480), interpolation=cv2.INTER_AREA))
    return found


def measure(variants: Mapping[str, Run], frames: Sequence[Any]) -> list[dict[str, Measured]]:
    """Run all variants on each picture, in turns, and return what was measured for each picture."""
    for run in variants.values():
        run(frames[0])
    return [{name: measured(run, picture) for name, run in variants.items()} for picture in frames]


def measured(run: Run, picture: Any) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(picture)
    return Measured((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3, found)


def summary(rows: Sequence[Mapping[str, Measured]]) -> dict[str, float]:
    """Medians of the times, ms, and of how much less each variant takes than `unfused` on the same picture."""
    figures: dict[str, float] = {}
    for name in rows[0]:
        wall, cpu = (statistics.median(row[name][part] for row in rows) for part in (0, 1))
        ratios = [statistics.median(row["unfused"][part] / row[name][part] for row in rows) for part in (0, 1)]
        found = sum(row[name].found for row in rows)
        print(f"{name:15} {wall:7.2f} ms {ratios[0]:6.2f} ×  CPU {cpu:7.2f} ms {ratios[1]:6.2f} ×  {found} found")
        figures |= {f"{name}_ms": wall, f"{name}_cpu_ms": cpu, f"{name}_detections": found}
        if name != "unfused":
            figures |= {f"speedup_{name}": ratios[0], f"cpu_speedup_{name}": ratios[1]}
    return figures


def kinds(content: bytes) -> str:
    names = [operation.name for _, operation in read_modelfile(content).steps()]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(sorted(names)))


def predicted_speedup() -> float:
    """Time of an inference of the unfused float graph as a multiple of that of the bundled one, on `BOARD`."""
    content = expand_int4(load_file("nanodet")[0], None)
    board, bundled = find_board(BOARD), packed(first_graph(content))
    graphs = (read_modelfile(one).graph() for one in (unfuse(as_float(content), batch_norm=True), bundled))
    before, after = (predict(work_of(graph), board, 1).ms for graph in graphs)
    return before / after


def variants() -> dict[str, Run]:
    """Return all variants."""
    bundled = expand_int4(load_file("nanodet")[0], None)
    source = as_float(bundled)
    unfused, package = (unfuse(source, batch_norm=batch_norm) for batch_norm in (True, False))
    (fused, counts), flat, model = rewrite(unfused), packed(first_graph(source)), open_model("nanodet")
    print(f"unfused: {kinds(unfused)}\nfused: {kinds(fused)}\nrewrites: {counts}")
    return {
        "unfused": script(unfused, normalised=True),
        "package": script(package, normalised=True),
        "fused": script(fused, normalised=True),
        "int8": script(with_float_ends(bundled), normalised=False),
        "float_zero_copy": session(Model(flat, hashlib.sha256(flat).hexdigest(), model.manifest, "float")),
        "zero_copy": session(model),
    }


def main() -> None:
    given = arguments(__doc__ or "").parse_args()
    cv2.setNumThreads(1)
    figures = summary(measure(variants(), pictures(40 if given.quick else 300)))
    figures[f"speedup_inference_{BOARD}_predicted"] = predicted_speedup()
    targets = {"speedup_zero_copy": f">= {TARGET} of the unfused float graph with copying"}
    conclude("optimise/operator_fusion", figures, targets, figures["speedup_zero_copy"] >= TARGET)


if __name__ == "__main__":
    main()
