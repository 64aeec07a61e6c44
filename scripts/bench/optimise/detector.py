"""Train `detector` on blood cells (BCCD) and on defects of steel (NEU-DET) from nothing, and quantise to INT8.

Cells: three parts; a detector learns from two of them and finds cells in the third, each in its turn. The
threshold for at most 0.3 false positives a picture comes from one half of the third part and is judged on the
other, then the halves change places; so all pictures are judged, by thresholds that others gave. White cells are
what counts: not every red cell of BCCD is labelled. Steel: each half once, AP as COCO has it, and at IoU 0.5.

With --quick, one detector learns discs and squares in seconds, and the recorded figures are checked.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _recorded
import cv2
import numpy as np
import torch
from common import ROOT, arguments, conclude, data_argument, needed

sys.path.append(str(ROOT / "scripts" / "build_models"))
from blood_cells import TrainedPart, train_part
from cell_parts import PARTS

from agent.optimise.data import Examples
from agent.optimise.evaluate import WEAK, detections, open_content, score, time_ms
from agent.optimise.evaluation.model import match_class
from agent.optimise.evaluation.operating import Found, box_point, froc

CELLS, STEEL = "bccd_dev.tar", "neu_det_dev.tar"
SENSITIVITY, FALSE_POSITIVES, LOST = 0.986, 0.3, 0.003
SHAPE = (64, 96, 3)


def cells(data: Path, keep: Path | None) -> dict[str, float]:
    """Sensitivity of the three detectors, pooled over all pictures."""
    judged: dict[str, list[tuple[int, int, int, int]]] = {}
    curves: dict[str, list[float]] = {}
    for number in range(PARTS):
        print(f"part {number + 1} of {PARTS}", flush=True)
        part = train_part(needed(data / CELLS), number)
        if keep:
            (keep / f"cells-{number}.tflite").write_bytes(part.int8_content)
        for kind, content in {"float": part.float_content, "int8": part.int8_content}.items():
            for name in ("WBC", "Platelets"):
                matched = found_of(part, content, part.held, name)
                judged.setdefault(f"{name}_{kind}", []).extend(judged_by_halves(part, content, name))
                curves.setdefault(f"{name}_{kind}", []).append(froc(matched, (FALSE_POSITIVES,))[0])
    figures = {}
    for name, rows in judged.items():
        found, total, false, pictures = np.sum(rows, axis=0)
        figures[f"{name}_sensitivity"] = float(found / total)
        figures[f"{name}_false_positives"] = float(false / pictures)
        figures[f"{name}_froc"] = float(np.mean(curves[name]))
        figures[f"{name}_count"] = float(total)
    return figures


def found_of(part: TrainedPart, content: bytes, examples: Examples, name: str) -> Found:
    """Detections of a class, matched with its objects."""
    with open_content(content, part.manifest) as session:
        found = list(detections(session, examples, part.manifest, WEAK))
    return match_class(examples, found, part.manifest.output.labels.index(name), name)


def judged_by_halves(part: TrainedPart, content: bytes, name: str) -> Iterator[tuple[int, int, int, int]]:
    """Objects found, objects, false positives and pictures of each half, by the threshold of the other."""
    halves = [part.held.take(np.arange(start, len(part.held), 2)) for start in (0, 1)]
    found = [found_of(part, content, half, name) for half in halves]
    for own, other in (found, found[::-1]):
        point = box_point(own, threshold_at(other, FALSE_POSITIVES))
        total, pictures = int(own.objects.sum()), len(own.objects)
        yield total - point.missed, total, round(point.false_alarms * pictures), pictures


def threshold_at(found: Found, false_positives: float) -> float:
    """Lowest score with at most so many false positives a picture."""
    wrong = np.sort(found.scores[~found.hits])[::-1]
    allowed = int(false_positives * len(found.objects))
    return (
        float(np.nextafter(wrong[allowed], 1.0)) if len(wrong) > allowed else float(found.scores.min(initial=1.0))
    )


def steel(data: Path, keep: Path | None) -> dict[str, float]:
    """AP of a detector for each half, in float and INT8."""
    rows = []
    for number in range(2):
        part = train_part(needed(data / STEEL), number, (256, 256, 3), RECIPE_STEEL, parts=2)
        if keep:
            (keep / f"steel-{number}.tflite").write_bytes(part.int8_content)
        rows.append(average(part))
    return {name: float(np.mean([one[name] for one in rows])) for name in rows[0]}


RECIPE_STEEL = "[train]\nepochs = 100.0\nturn = true\n"


def average(part: TrainedPart) -> dict[str, float]:
    """AP, AP50, bytes and time of both files."""
    figures: dict[str, float] = {}
    files = {"float": part.float_content, "int8": part.int8_content}
    for (name, content), ms in zip(files.items(), time_ms(list(files.values())), strict=True):
        found = score(content, part.held, part.manifest)
        figures |= {f"{name}_ap": found.value, f"{name}_ap50": found.details["AP50"], f"{name}_ms": ms}
        figures[f"{name}_kb"] = len(content) / 1e3
    return figures


def shapes(folder: Path) -> Path:
    """Discs and squares on noise, with labels as YOLO has them."""
    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "classes.txt").write_text("disc\nsquare\n")
    for number in range(64):
        picture = random.integers(0, 60, SHAPE, dtype=np.uint8)
        lines = []
        for kind in range(2):
            half = int(random.integers(8, 14))
            x, y = int(random.integers(half, SHAPE[1] - half)), int(random.integers(half, SHAPE[0] - half))
            if kind:
                cv2.rectangle(picture, (x - half, y - half), (x + half, y + half), (40, 220, 40), -1)
            else:
                cv2.circle(picture, (x, y), half, (40, 40, 220), -1)
            lines.append(f"{kind} {x / SHAPE[1]} {y / SHAPE[0]} {2 * half / SHAPE[1]} {2 * half / SHAPE[0]}")
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), picture)
        (folder / "labels" / f"{number:03}.txt").write_text("\n".join(lines))
    return folder


SETS = {"cells": cells, "steel": steel}


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--dataset", default="cells", choices=list(SETS))
    parser.add_argument("--keep", type=Path, help="folder for the INT8 files")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.quick:
        quick()
        return
    figures: dict[str, Any] = SETS[given.dataset](given.data, given.keep)
    if given.record:
        _recorded.record(f"detector/{given.dataset}", figures)
    judge(figures, given.dataset)


def judge(figures: dict[str, float], name: str) -> None:
    """End with the targets of the set."""
    if name == "steel":
        conclude("optimise/detector", figures, {}, True)
        return
    figures["lost"] = figures["WBC_float_froc"] - figures["WBC_int8_froc"]
    targets = {
        "WBC_int8_sensitivity": f">= {SENSITIVITY}",
        "WBC_int8_false_positives": f"<= {FALSE_POSITIVES}",
        "lost": f"<= {LOST}",
    }
    conclude("optimise/detector", figures, targets, met(figures))


def met(figures: dict[str, float]) -> bool:
    """True if the targets of the cells are met."""
    found = figures["WBC_int8_sensitivity"] >= SENSITIVITY
    return found and figures["WBC_int8_false_positives"] <= FALSE_POSITIVES and figures["lost"] <= LOST


def quick() -> None:
    """A small run, and what is recorded."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = "[train]\nepochs = 30.0\nbatch = 6\nlearning_rate = 3.0\nlight = 0.0\n"
        figures = average(train_part(shapes(Path(folder)), 0, SHAPE, recipe, parts=4))
    figures = {f"shapes_{name}": value for name, value in figures.items()}
    kept = _recorded.show("detector/")
    cells_figures = kept.get("detector/cells", {})
    figures |= {f"recorded_{name}": value for name, value in cells_figures.items() if name.startswith("WBC_int8")}
    targets = {"shapes_int8_ap50": ">= 0.8", "recorded_WBC_int8_sensitivity": f">= {SENSITIVITY}"}
    lost = {"lost": cells_figures["WBC_float_froc"] - cells_figures["WBC_int8_froc"]} if cells_figures else {}
    meets = figures["shapes_int8_ap50"] >= 0.8 and bool(cells_figures) and met({**cells_figures, **lost})
    conclude("optimise/detector", figures, targets, meets)


if __name__ == "__main__":
    main()
