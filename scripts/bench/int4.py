"""INT4 weights that run as INT8: the file's size, the time of an inference, and the time to open it.

The weights of NanoDet's convolutions are rounded to INT4, as a stand-in for a model that was quantised with care:
sizes and times do not depend on their values. One thread, in turns:

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
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from agent.compute.tflite.expand import expand_int4
from agent.models.files import load_file

CONVOLUTIONS = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
TARGETS = {
    "size": (0.55, "of the INT8 file"),
    "time": (1.05, "of the INT8 file's inference"),
    "differences": (0.0, "values that differ from the INT8 file's answers"),
}


def stored(content: bytes, bits: int) -> bytes:
    """Return a model whose convolutions have weights of 4 bits, stored as INT4 or as INT8."""
    import flatbuffers

    model, done = schema.ModelT.InitFromPackedBuf(content, 0), set[int]()
    for graph in model.subgraphs:  # one for each size, and all share their weights
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode not in CONVOLUTIONS:
                continue
            weights, bias = (graph.tensors[index] for index in operator.inputs[1:3])
            for tensor in (weights, bias):
                scales = np.asarray(tensor.quantization.scale, np.float32) * np.float32(16.0)
                tensor.quantization.scale = scales
            weights.type = schema.TensorType.INT4 if bits == 4 else schema.TensorType.INT8
            if weights.buffer not in done:
                done.add(weights.buffer)
                buffer = model.buffers[weights.buffer]
                buffer.data = rounded(np.array(buffer.data, np.uint8).view(np.int8), bits)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Round INT8 values to 4 bits, and store them in 4 or 8."""
    small = np.clip(np.round(values / 16.0), -8, 7).astype(np.int8)
    if bits == 8:
        return small.view(np.uint8)
    small = np.append(small, np.zeros(small.size % 2, np.int8))
    return ((small[0::2] & 15) | ((small[1::2] & 15) << 4)).astype(np.uint8)


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
    int8, raw = stored(content, 8), stored(content, 4)
    began = time.perf_counter()
    int4 = expand_int4(raw, "litert")
    expanding_ms = (time.perf_counter() - began) * 1e3
    models = {"int8": opened(int8), "int4": opened(int4), "raw": opened(raw)}
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
        "size": len(raw) / len(int8),
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
