"""The float NanoDet that the bundled one is compared with, and mirrored pictures.

Part of `accuracy` and `optimise/nanodet_int4`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from common import ROOT

from agent.optimise.data import Examples
from agent.optimise.data.annotations import ObjectBoxes
from agent.types import Image

FLOAT = ROOT / "build" / "models" / "nanodet_float.tflite"
_MAKER = ROOT / "scripts" / "build_models" / "nanodet"


def float_file() -> Path:
    """Return the float model, made again if it is older than what makes it; the first time fetches 280 MB."""
    newest = max(path.stat().st_mtime for path in _MAKER.parent.glob("*.py"))
    if not FLOAT.is_file() or FLOAT.stat().st_mtime < newest:
        made = subprocess.run([_MAKER, "--float", FLOAT], check=False, stdout=sys.stderr)
        if made.returncode != 0:
            raise SystemExit(f"{_MAKER} --float {FLOAT}: failed with status {made.returncode}")
    return FLOAT


class Mirrored(Examples):
    """Pictures and their boxes with left and right exchanged."""

    def __init__(self, examples: Examples) -> None:
        self.__dict__ = dict(examples.__dict__)

    def picture(self, index: int) -> Image:
        return np.ascontiguousarray(super().picture(index)[:, ::-1])

    def truth(self, index: int) -> ObjectBoxes:
        found = super().truth(index)
        boxes = found.boxes.copy()
        boxes[:, [0, 2]] = 1.0 - found.boxes[:, [2, 0]]
        return ObjectBoxes(found.classes, boxes)
