"""A script of the kind that users write, for the overhead bench to compare with. Not an example to follow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

CENTRES = [
    ((x + 0.5) * stride, (y + 0.5) * stride, stride)
    for stride in (8, 16, 32)
    for y in range(416 // stride)
    for x in range(416 // stride)
]
ANCHORS = [
    ((x + 0.5) / size, (y + 0.5) / size)
    for size, repeats in ((16, 2), (8, 6))
    for y in range(size)
    for x in range(size)
    for _ in range(repeats)
]


def make(interpreter: Any, port: int, nanodet: bool) -> Callable[[Any], None]:
    """A function that takes a picture through the model to the broker."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    details = interpreter.get_input_details()[0]
    outputs = [one for one in interpreter.get_output_details() if len(one["shape"]) == 3]  # no map of features
    decode = decode_nanodet if nanodet else decode_faces

    def handle(picture: Any) -> None:
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        resized = cv2.resize(rgb, (details["shape"][2], details["shape"][1]))
        if details["dtype"] == np.float32:
            resized = (resized.astype(np.float32) - 127.5) / 127.5
        interpreter.set_tensor(details["index"], np.expand_dims(resized, 0))
        interpreter.invoke()
        results = [dequantised(interpreter.get_tensor(o["index"]), o) for o in outputs]
        found = nms(decode(results))
        message = {
            "time": time.time(),
            "detections": [{"label": label, "score": score, "box": box} for label, score, box in found],
        }
        client.publish("naive/detections", json.dumps(message), qos=1)

    return handle


def dequantised(values: Any, details: dict[str, Any]) -> Any:
    scale, zero_point = details["quantization"]
    return (values.astype(np.float32) - zero_point) * scale if scale else values


def decode_nanodet(results: list[Any]) -> list[tuple[str, float, list[float]]]:
    scores, reg = sorted((r[0] for r in results), key=lambda r: -r.shape[1])
    found = []
    best, classes = scores.max(1), scores.argmax(1)
    distances = (reg.reshape(-1, 4, 11) * np.arange(11)).sum(2)
    for index in np.where(best > 0.5)[0]:
        x, y, stride = CENTRES[index]
        left, top, right, bottom = distances[index] * stride
        box = [float(v) / 416 for v in (x - left, y - top, x + right, y + bottom)]
        found.append((str(classes[index]), float(best[index]), box))
    return found


def decode_faces(results: list[Any]) -> list[tuple[str, float, list[float]]]:
    regressors, scores = sorted((r[0] for r in results), key=lambda r: -r.shape[1])
    probability = 1 / (1 + np.exp(-np.clip(scores[:, 0], -100, 100)))
    found = []
    for index in np.where(probability > 0.5)[0]:
        x, y, w, h = (regressors[index, :4] / 128).tolist()
        x, y = x + ANCHORS[index][0], y + ANCHORS[index][1]
        found.append(("face", float(probability[index]), [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    return found


def nms(found: list[tuple[str, float, list[float]]]) -> list[tuple[str, float, list[float]]]:
    kept: list[tuple[str, float, list[float]]] = []
    for candidate in sorted(found, key=lambda f: -f[1]):
        if all(candidate[0] != other[0] or iou(candidate[2], other[2]) < 0.6 for other in kept):
            kept.append(candidate)
    return kept


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0
