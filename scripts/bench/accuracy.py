"""Measure the cost of INT8: average precision (COCO's, IoU .50:.95) of each NanoDet variant and the float model.

64 pictures of COCO go through the agent's own modules: model file, input, inference, decoder. The float model is
made of the same graph by `scripts/build_models/nanodet --float` and kept in `build/models`; making it fetches
280 MB the first time. So few pictures leave a noise of 0.01 to 0.02 in the ratio of two APs: without --quick the
same pictures are measured mirrored too, as a second opinion beside the target.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import subprocess
import sys
from typing import Any

import common
import numpy as np
from _coco import ARCHIVE, Picture, mirrored, read
from msgspec.structs import replace
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from agent.compute.decode.decoder import build_decoder
from agent.compute.infer.backends import open_session
from agent.compute.infer.image_input import ImageInput
from agent.compute.infer.session import SessionOptions
from agent.compute.manifest import Model
from agent.config import DecodeConfig
from agent.models.library import open_whole_model
from agent.types import Detection

MAKER = common.ROOT / "scripts" / "build_models" / "nanodet"
BUILD = common.ROOT / "build" / "models"
FLOAT = BUILD / "nanodet_float.tflite"
ALL = DecodeConfig(score_threshold=0.02, iou_threshold=0.6, max_detections=100)
TARGET = 0.985


def main() -> None:
    args = arguments()
    pictures, model = list(read(args.data / ARCHIVE)), int8_model()
    figures = {"pictures": float(len(pictures))}
    reference = float_model(model, quick=args.quick)
    figures |= compare(model, reference, pictures)
    if not args.quick:
        print("mirrored:")
        twins = compare(model, reference, [mirrored(picture) for picture in pictures])
        figures |= {f"{name}_mirrored": value for name, value in twins.items() if "_of_" in name}
    if reference is None:
        print(f"no {FLOAT}, and making it takes too long for --quick: run this without once", file=sys.stderr)
        common.conclude("accuracy", figures, {"int8_416_of_float": f">= {TARGET}, not measured"}, False)
    meets = figures["int8_416_of_float"] >= TARGET
    common.conclude("accuracy", figures, {"int8_416_of_float": f">= {TARGET}"}, meets)


def int8_model() -> Model:
    """The bundled model with all of its variants."""
    return open_whole_model("nanodet")


def compare(model: Model, reference: Model | None, pictures: list[Picture]) -> dict[str, float]:
    """AP and AP50 of every variant of the model and of its float reference, and what share INT8 keeps."""
    truth = ground_truth(pictures)
    figures: dict[str, float] = {}
    for variant in model.manifest.variants:
        figures |= measure(f"int8_{variant.name}", model, variant.name, pictures, truth)
        if reference is not None:
            figures |= measure(f"float_{variant.name}", reference, variant.name, pictures, truth)
            share = figures[f"int8_{variant.name}_ap"] / figures[f"float_{variant.name}_ap"]
            figures[f"int8_{variant.name}_of_float"] = share
            print(f"           INT8 keeps {share:.1%} of the float AP at {variant.name}", flush=True)
    return figures


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    common.needed(args.data / ARCHIVE)
    return args


def ground_truth(pictures: list[Picture]) -> COCO:
    """The boxes in COCO's form; numbers of pictures and classes are indices."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, picture in enumerate(pictures):
        height, width = picture.image.shape[:2]
        images.append({"id": number, "width": width, "height": height})
        for kind, (x, y, w, h) in zip(picture.classes, picture.boxes, strict=True):
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            known = {"image_id": number, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **known})
    truth = COCO()
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(80)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def measure(name: str, model: Model, variant: str, pictures: list[Picture], truth: COCO) -> dict[str, float]:
    """AP and AP50 of one variant."""
    average, at_half = average_precision(truth, detect(model, variant, pictures))
    print(f"{name:10} AP {average:.4f}  AP50 {at_half:.4f}", flush=True)
    return {f"{name}_ap": average, f"{name}_ap50": at_half}


def average_precision(truth: COCO, found: list[dict[str, Any]]) -> tuple[float, float]:
    """AP and AP50 of detections in COCO's form."""
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(truth, truth.loadRes(found), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return float(scoring.stats[0]), float(scoring.stats[1])


def detect(model: Model, variant: str, pictures: list[Picture]) -> list[dict[str, Any]]:
    """Detections of all pictures in COCO's form."""
    session = open_session(model, "cpu", SessionOptions(variant=variant))
    image = ImageInput(session.inputs[0], model.manifest.input)
    decode = build_decoder(model.manifest, session.inputs, session.outputs, ALL)
    numbers = {label: number for number, label in enumerate(model.manifest.output.labels)}
    found = []
    for number, picture in enumerate(pictures):
        image.fill(session.input(0), picture.image, "bgr")
        session.invoke()
        detections = decode([session.output(index) for index in range(len(session.outputs))])
        found += [in_coco(number, numbers[d.label], d, picture.image.shape) for d in detections]
    session.close()
    return found


def in_coco(picture: int, kind: int, detection: Detection, shape: tuple[int, ...]) -> dict[str, Any]:
    """One detection in COCO's form: pixels, corner and size."""
    assert detection.box is not None
    x0, y0, x1, y1 = np.multiply(detection.box, (shape[1], shape[0], shape[1], shape[0])).tolist()
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": picture, "category_id": kind, "bbox": box, "score": detection.score}


def float_model(model: Model, *, quick: bool) -> Model | None:
    """The float model with the manifest of `model`, made anew when missing or older than its maker.

    None if there is none and a quick run would have to fetch for it.
    """
    sources = MAKER.parent.glob("*.py")
    stale = not FLOAT.exists() or any(FLOAT.stat().st_mtime < path.stat().st_mtime for path in sources)
    if stale and not (quick and not (BUILD / "inputs").is_dir()):
        subprocess.run([MAKER, "--float", FLOAT], check=True, stdout=sys.stderr)
    if not FLOAT.exists():
        return None
    data = FLOAT.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return Model(data, sha256, replace(model.manifest, sha256=sha256), str(FLOAT))


if __name__ == "__main__":
    main()
