"""Measure cost and gain of shrinking a frame: the agent's way beside OpenCV's linear and area interpolation.

Time: the median and the least of rounds in which the three take turns, one thread. Gain: AP of NanoDet on mosaics
of 2×2 COCO pictures, 1280×960, which have the detail of a camera's frame; and whether castings are told from
broken ones by the energy of their fine structure, by a linear classifier that was fitted on pictures shrunk by
area, in 10 folds by looks.
"""

from __future__ import annotations

import statistics
import tarfile
import time
from collections.abc import Callable
from typing import Any

import common
import cv2
import numpy as np
from accuracy import ARCHIVE, int8_model, measure
from numpy.typing import NDArray

from agent.compute.infer import image_input
from agent.optimise.data import Examples, read_examples
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.data.layouts import FoundData
from agent.types import Array, Image

Floats = NDArray[np.float64]
Way = Callable[[Image, Array], None]
SIZES = ((1920, 1080, 416), (768, 576, 128), (640, 480, 96), (640, 480, 320))
CASTINGS = "casting_dev.tar"
SIDES = (75, 50)


def linear(picture: Image, target: Array) -> None:
    """OpenCV's interpolation, which looks at two pixels by two."""
    cv2.resize(picture, target.shape[1::-1], dst=target)


def area(picture: Image, target: Array) -> None:
    """OpenCV's exact mean of all pixels."""
    cv2.resize(picture, target.shape[1::-1], dst=target, interpolation=cv2.INTER_AREA)


WAYS: dict[str, Way] = {"linear": linear, "ours": image_input.Shrink(), "area": area}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    figures = times(30 if args.quick else 200)
    pictures = read_examples(common.needed(args.data / ARCHIVE), int8_model())
    figures |= detection(mosaics(pictures, 1 if args.quick else 6))
    figures |= classification(args.data)
    gains = {
        "castings_50_gain": figures["castings_50_ours"] - figures["castings_50_linear"],
        "ap_256_ratio": figures["ours_256_ap"] / figures["linear_256_ap"],
    }
    meets = gains["castings_50_gain"] >= 0.05 and gains["ap_256_ratio"] >= 1.0
    common.conclude("shrink", figures | gains, {"castings_50_gain": ">= 0.05", "ap_256_ratio": ">= 1"}, meets)


def times(rounds: int) -> dict[str, float]:
    """Microseconds of each way at each size."""
    random, figures = np.random.default_rng(0), dict[str, float]()
    for width, height, side in SIZES:
        coarse = random.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
        frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        target, took = np.empty((side, side, 3), np.uint8), {name: list[float]() for name in WAYS}
        for _ in range(rounds):
            for name, way in WAYS.items():
                began = time.perf_counter()
                way(frame, target)
                took[name].append(time.perf_counter() - began)
        found = {name: statistics.median(one) * 1e6 for name, one in took.items()}
        told = ", ".join(f"{name} {one:.0f} ({min(took[name]) * 1e6:.0f})" for name, one in found.items())
        print(f"{width}×{height} → {side}×{side}: median (least) in µs: {told}", flush=True)
        figures |= {f"{name}_{width}_{side}_us": one for name, one in found.items()}
    return figures


def mosaics(pictures: Examples, rounds: int) -> FoundData:
    """Four pictures beside each other, each cut to 640×480 or less, in several orders."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(rounds):
        order = random.permutation(len(pictures)).tolist()
        found += [mosaic(pictures, order[first : first + 4]) for first in range(0, len(order) - 3, 4)]
    frames, objects = zip(*found, strict=True)
    return FoundData(np.array(frames), "mosaics", objects=objects)


def mosaic(pictures: Examples, four: list[int]) -> tuple[Image, ObjectBoxes]:
    """One frame of 1280×960 in RGB with the objects of four pictures."""
    frame, classes, boxes = np.full((960, 1280, 3), 114, np.uint8), list[int](), []
    for place, number in enumerate(four):
        image, objects = pictures.picture(number), pictures.truth(number)
        height, width = image.shape[:2]
        rows, columns = min(height, 480), min(width, 640)
        top, left = (height - rows) // 2, (width - columns) // 2
        y, x = place // 2 * 480, place % 2 * 640
        frame[y : y + rows, x : x + columns] = image[top : top + rows, left : left + columns, ::-1]
        for kind, box in zip(objects.classes.tolist(), objects.boxes, strict=True):
            x0, x1 = np.clip(box[[0, 2]] * width - left, 0, columns)
            y0, y1 = np.clip(box[[1, 3]] * height - top, 0, rows)
            if min(x1 - x0, y1 - y0) >= 2:
                classes.append(kind)
                boxes.append([(x + x0) / 1280, (y + y0) / 960, (x + x1) / 1280, (y + y1) / 960])
    return frame, ObjectBoxes(np.array(classes, np.int64), np.array(boxes, np.float64).reshape(-1, 4))


def detection(frames: FoundData) -> dict[str, float]:
    """AP of every variant of NanoDet by each way."""
    model, figures = int8_model(), dict[str, float]()
    for name, way in WAYS.items():
        image_input.ImageInput._resize = by(way)  # type: ignore[assignment,method-assign]
        for variant in model.manifest.variants:
            side = int(variant.name)
            examples = Examples(frames, (side, side, 3), model.manifest.input, ARCHIVE)
            figures |= measure(f"{name}_{variant.name}", model, variant.name, examples)
    return figures


def by(
    way: Way,
) -> Callable[[image_input.ImageInput, Image, Array, image_input.Placement], image_input.Placement]:
    """A method that resizes to the whole input by this way."""

    def resize(
        _: image_input.ImageInput, part: Image, canvas: Array, placement: image_input.Placement
    ) -> image_input.Placement:
        way(part, canvas)
        return placement

    return resize


def classification(data: Any) -> dict[str, float]:
    """Share of castings that are told rightly by each way, for each side of the small picture."""
    castings, broken = castings_of(common.needed(data / CASTINGS))
    folds, figures = folds_of(castings, broken), dict[str, float]()
    for side in SIDES:
        features = {name: np.array([energies(one, way, side) for one in castings]) for name, way in WAYS.items()}
        right = dict.fromkeys(WAYS, 0)
        for fold in range(10):
            there = folds == fold
            mean, spread = features["area"][~there].mean(axis=0), features["area"][~there].std(axis=0) + 1e-6
            known = np.c_[(features["area"][~there] - mean) / spread, np.ones(np.count_nonzero(~there))]
            weights = np.linalg.solve(
                known.T @ known + 30 * np.eye(known.shape[1]), known.T @ (2 * broken[~there] - 1)
            )
            for name, one in features.items():
                asked = np.c_[(one[there] - mean) / spread, np.ones(np.count_nonzero(there))]
                right[name] += int(np.count_nonzero((asked @ weights > 0) == (broken[there] == 1)))
        shares = {name: count / len(castings) for name, count in right.items()}
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"castings 300×300 → {side}×{side}: {told}", flush=True)
        figures |= {f"castings_{side}_{name}": share for name, share in shares.items()}
    return figures


def castings_of(archive: Any) -> tuple[list[Image], Floats]:
    """The pictures, and 1 for each that is broken."""
    pictures, broken = [], []
    with tarfile.open(archive) as tar:
        for member in sorted((one for one in tar if one.isfile()), key=lambda one: one.name):
            if member.name.endswith((".jpeg", ".jpg")) and (file := tar.extractfile(member)) is not None:
                read_ = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
                assert read_ is not None, member.name
                pictures.append(read_.astype(np.uint8))
                broken.append(float("def_front" in member.name))
    return pictures, np.array(broken)


def folds_of(castings: list[Image], broken: Floats) -> NDArray[np.intp]:
    """A fold for each, such that those that look alike (rotated copies) are in one."""
    greys = [cv2.cvtColor(one, cv2.COLOR_BGR2GRAY).astype(np.float32) for one in castings]
    profiles = np.array([cv2.warpPolar(one, (40, 90), (150, 150), 150, 0).mean(axis=0) for one in greys])
    looks = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)[0][:, 0]
    folds = np.empty(len(castings), np.intp)
    for kind in (0.0, 1.0):
        there = np.flatnonzero(broken == kind)
        folds[there[np.argsort(looks[there])]] = np.arange(there.size) * 10 // there.size
    return folds


def energies(picture: Image, way: Way, side: int) -> Floats:
    """Mean, maximum and upper mean of fine structure at each distance from the middle."""
    small = np.empty((side, side, 3), np.uint8)
    way(picture, small)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.5))
    middle = side / 2 - 0.5
    rings = cv2.warpPolar(fine, (side // 2, side * 2), (middle, middle), side / 2, cv2.INTER_LINEAR)
    return np.concatenate(
        [rings.mean(axis=0), rings.max(axis=0), np.sort(rings, axis=0)[-side // 4 :].mean(axis=0)]
    )


if __name__ == "__main__":
    main()
