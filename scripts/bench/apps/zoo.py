"""MediaPipe's models as INT8 against the float models of their makers, on people in 64 pictures of COCO.

The bundled `face` was calibrated on other pictures, and is judged on all people that are at least 80 pixels high.
Others are pulled, quantised by `vedette optimise quantise` on the people of every other picture, and
judged on the rest. A crop shows a whole person, or what is as high as the person is wide. Agreement: of boxes F1
at IoU 0.5, with the mean distance of matched keypoints relative to the box; of masks IoU of all pixels; of poses
how many of both find a person (F1) and keypoints within a tenth of the person's size. Time is of one thread,
interleaved. Sizes are relative to the published file, whose weights are float16. With --quick `face` alone, with
fewer runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.append(str(common.ROOT / "scripts" / "build_models"))
from people import square, upper

from agent.compute.decode import build_decoder
from agent.compute.infer.image_input import ImageInput
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import Session, SessionOptions
from agent.compute.manifest import Model
from agent.config import DecodeConfig
from agent.models.library import open_manifest, open_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import time_ms
from agent.types import Box, Detection

COCO = "coco64_dev.tar"
LEAST, SIDE = 80, 256
AGREEMENT, FASTER, SMALLER = 0.97, 2.0, 0.3
MATCHED, NEAR = 0.5, 0.1
Picture = NDArray[Any]
Figures = dict[str, float]


class Runner:
    """A model on the CPU with one thread."""

    def __init__(self, model: Model) -> None:
        self._session: Session = CpuBackend().open(model, SessionOptions(threads=1))
        self._input = ImageInput(self._session.inputs[0], model.manifest.input)
        ends = self._session.inputs, self._session.outputs
        self._decode = build_decoder(model.manifest, *ends, DecodeConfig())

    def outputs(self, picture: Picture) -> list[Picture]:
        """The stored outputs for a BGR picture."""
        self._input.fill(self._session.input(0), picture, "bgr")
        self._session.invoke()
        return [self._session.output(index) for index in range(len(self._session.outputs))]

    def detections(self, picture: Picture) -> list[Detection]:
        """What is found in a BGR picture, placed in the model's picture."""
        return self._decode(self.outputs(picture))

    def mask(self, picture: Picture) -> Picture:
        """Where the only output is at least a half."""
        spec = self._session.outputs[0]
        return np.asarray(spec.real(self.outputs(picture)[0]) >= 0.5)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    given = parser.parse_args()
    examples = read_examples(common.needed(given.data / COCO), open_model("nanodet"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = 10 if given.quick else 40
        figures = judged("face", pulled("face-short-range", folder), open_model("face"), examples, rounds)
        if not given.quick:
            for model in ("selfie-segmentation", "pose-lite"):
                source = pulled(model, folder)
                figures |= judged(model, source, quantised(model, folder, examples), held(examples, 1), rounds)
    targets = {"*_agreement": f">= {AGREEMENT}", "*_faster": f">= {FASTER}", "*_size": f"<= {SMALLER}"}
    common.conclude("apps/zoo", figures, targets, all(reached(*one) for one in figures.items()))


def reached(name: str, value: float) -> bool:
    """True if a figure meets its target, or has none."""
    limits = {"agreement": value >= AGREEMENT, "faster": value >= FASTER, "size": value <= SMALLER}
    return limits.get(name.rpartition("_")[2], True)


def pulled(name: str, folder: Path) -> Model:
    """Pull a float model of the catalogue."""
    vedette("models", "pull", name, "--to", folder)
    path = folder / f"{name}.tflite"
    return Model(path.read_bytes(), "", open_manifest(str(path)), name)


def quantised(name: str, folder: Path, examples: Examples) -> Model:
    """Quantise a pulled model on the people of every other picture."""
    pictures, path = folder / f"{name}-pictures", folder / f"{name}-int8.tflite"
    pictures.mkdir()
    for number, crop in enumerate(crops(held(examples, 0), whole=name == "pose-lite")):
        cv2.imwrite(str(pictures / f"{number:03}.png"), crop)
    words = ("--data", pictures, "--method", "int8")
    vedette("optimise", "quantise", folder / f"{name}.tflite", path, *words)
    return Model(path.read_bytes(), "", open_manifest(str(path)), path.stem)


def vedette(*words: object) -> None:
    """Call `vedette`."""
    command = [sys.executable, "-m", "agent", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        raise SystemExit(f"vedette {' '.join(map(str, words))}: {done.stderr}")


def held(examples: Examples, half: int) -> Examples:
    """Every other picture."""
    return examples.take(np.arange(half, len(examples), 2))


def crops(examples: Examples, *, whole: bool) -> Iterator[Picture]:
    """Squares around people, BGR: around the whole person, or the upper part."""
    person = examples.names.index("person")
    for index in range(len(examples)):
        picture, truth = examples.picture(index), examples.truth(index)
        height, width = picture.shape[:2]
        for x0, y0, x1, y1 in truth.boxes[truth.classes == person].tolist():
            if (y1 - y0) * height >= LEAST:
                box = (x0, y0, x1, y1)
                crop = square(picture, box, 1.25) if whole else square(picture, upper(box, width, height), 1.2)
                yield cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def judged(name: str, source: Model, made: Model, examples: Examples, rounds: int) -> Figures:
    """Compare an INT8 model with its float one; return the figures, whose names begin with the model's."""
    before, after = Runner(source), Runner(made)
    pictures = list(crops(examples, whole=name == "pose-lite"))
    figures = {"crops": float(len(pictures))} | AGREE[name](before, after, pictures)
    slow, fast = time_ms([source.content, made.content], rounds)
    figures |= {"float_ms": slow, "int8_ms": fast, "faster": slow / fast}
    figures |= {"bytes": float(len(made.content)), "size": len(made.content) / len(source.content)}
    print(name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    return {f"{name}_{key}": value for key, value in figures.items()}


def boxes(before: Runner, after: Runner, pictures: Iterable[Picture]) -> Figures:
    """F1 of boxes, the float model's being right, and the mean distance of keypoints of matched ones."""
    wanted = found = matched = 0
    distances: list[float] = []
    for picture in pictures:
        right, left = before.detections(picture), after.detections(picture)
        wanted, found = wanted + len(right), found + len(left)
        for one in right:
            near = max(left, key=lambda other: overlap(one, other), default=None)
            if near is not None and overlap(one, near) >= MATCHED:
                matched += 1
                left.remove(near)
                distances += apart(one, near)
    f1 = 2 * matched / max(1, wanted + found)
    return {"float_found": float(wanted), "int8_found": float(found), "agreement": f1, "points": mean(distances)}


def poses(before: Runner, after: Runner, pictures: Iterable[Picture]) -> Figures:
    """F1 of finding a person, and the share of keypoints near those of the float model (PCK at a tenth)."""
    wanted = found = both = 0
    distances: list[float] = []
    for picture in pictures:
        right, left = before.detections(picture), after.detections(picture)
        wanted, found = wanted + len(right), found + len(left)
        if right and left:
            both += 1
            distances += apart(right[0], left[0])
    near = mean([float(one < NEAR) for one in distances])
    f1 = 2 * both / max(1, wanted + found)
    return {"agreement": f1, "near": near, "points": mean(distances)}


def masks(before: Runner, after: Runner, pictures: Iterable[Picture]) -> Figures:
    """IoU of the masks, all pixels of all pictures together."""
    shared = either = 0
    for picture in pictures:
        right, left = before.mask(picture), after.mask(picture)
        shared, either = shared + int((right & left).sum()), either + int((right | left).sum())
    return {"agreement": shared / max(1, either)}


AGREE: dict[str, Callable[[Runner, Runner, Iterable[Picture]], Figures]] = {
    "face": boxes,
    "selfie-segmentation": masks,
    "pose-lite": poses,
}


def apart(one: Detection, other: Detection) -> list[float]:
    """Distances of keypoints of one name, relative to the first one's box."""
    size = max(one.box[2] - one.box[0], one.box[3] - one.box[1]) if one.box else 1.0
    places = {point.name: point for point in other.keypoints or ()}
    pairs = [(point, places[point.name]) for point in one.keypoints or () if point.name in places]
    return [float(np.hypot(a.x - b.x, a.y - b.y)) / size for a, b in pairs]


def overlap(one: Detection, other: Detection) -> float:
    """Intersection over union of two boxes."""
    a, b = one.box, other.box
    if a is None or b is None:
        return 0.0
    sides = [max(0.0, min(a[at + 2], b[at + 2]) - max(a[at], b[at])) for at in (0, 1)]
    inner = sides[0] * sides[1]
    return inner / max(1e-12, area(a) + area(b) - inner)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


if __name__ == "__main__":
    main()
