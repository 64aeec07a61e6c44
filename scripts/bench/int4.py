"""INT4 weights that run as INT8: the file's size, the time of an inference, and the time to open it.

The bundled NanoDet, most of whose weights are INT4. One thread, in turns:

- `int8`: the same weights stored as INT8;
- `int4`: the file as Vedette runs it, its weights expanded when it is opened;
- `raw`: the file as LiteRT runs it by itself, in reference kernels.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import common
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from agent.compute.tflite.expand import expand_int4
from agent.models.files import load_file
from agent.optimise.graph.objects import dump, load

TARGETS = {
    "size": (0.72, "of the INT8 file"),
    "time": (1.05, "of the INT8 file's inference"),
    "differences": (0.0, "values that differ from the INT8 file's answers"),
}


def opened(content: bytes) -> Any:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def run(interpreter: Any, image: np.ndarray) -> list[np.ndarray]:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    rounds = 10 if args.quick else 60
    content, _ = load_file("nanodet")
    began = time.perf_counter()
    int4 = expand_int4(content, "litert")
    expanding_ms = (time.perf_counter() - began) * 1e3
    int8 = dump(load(int4))
    models = {"int8": opened(int8), "int4": opened(int4), "raw": opened(content)}
    details = models["int8"].get_input_details()[0]
    random = np.random.default_rng(0)
    image = random.integers(0, 256, details["shape"]).astype(details["dtype"])
    answers = {name: run(model, image) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name, model in models.items():
            if name == "raw" and number >= rounds // 5:
                continue
            began = time.perf_counter()
            model.invoke()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) * 1e3 for name, found in times.items()}
    figures = {
        "size": len(content) / len(int8),
        "time": medians["int4"] / medians["int8"],
        "raw_time": medians["raw"] / medians["int8"],
        "differences": float(
            sum(int((a != b).sum()) for a, b in zip(answers["int4"], answers["int8"], strict=True))
        ),
        "expanding_ms": expanding_ms,
        "int8_ms": medians["int8"],
    }
    meets = all(figures[name] <= limit for name, (limit, _) in TARGETS.items())
    common.conclude(
        "int4", figures, {name: f"<= {limit:g} {what}" for name, (limit, what) in TARGETS.items()}, meets
    )


if __name__ == "__main__":
    main()
