"""Blood cells: `detector`, trained on BCCD, as an INT8 `.tflite`.

The pictures are divided in three parts by a fixed rule; the model has learned from two of them, and the third is
for its operating point and for the figures of `scripts/bench/run apps/screening`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from cell_parts import PARTS, divided
from nanodet import compare, name_in_manifest, write

from agent.compute.manifest import InputManifest, Manifest, OutputManifest
from agent.optimise.data import Examples
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe, Recipe, parse_recipe
from agent.optimise.train import TrainingStep
from agent.optimise.training.classifier import TrainRequest
from agent.optimise.training.detector import read_boxes, train_detector
from agent.structs import convert

_MODEL = Path(__file__).resolve().parents[2] / "agent" / "models" / "zoo" / "blood-cells.tflite"
CELLS = (288, 384, 3)
RECIPE = "[train]\nepochs = 60.0\nturn = true\ndecay = 0.0003\n"


class TrainedPart(NamedTuple):
    """A detector, and the pictures that it has not learned from."""

    float_content: bytes
    int8_content: bytes
    manifest: Manifest
    held: Examples


def train_part(
    data: Path, number: int, shape: tuple[int, int, int] = CELLS, recipe: str = RECIPE, parts: int = PARTS
) -> TrainedPart:
    """Train on all parts but one, and quantise."""
    given: Recipe = parse_recipe(recipe, "").recipe
    request = TrainRequest("detector", shape=shape, epochs=given.train.epochs)
    examples, names = read_boxes(data, request, given)
    learned, held = divided(examples, number, parts)
    found = train_detector(learned, names, request, given, measured=held, progress=_show, tell=print)
    int8 = quantise(found.content, [learned], QuantiseRecipe(method="int8", examples=64)).content
    print("; ".join(found.report.steps[0].notes), flush=True)
    manifest = Manifest(
        "detector", convert(found.keys["output"], OutputManifest), convert(found.keys["input"], InputManifest)
    )
    return TrainedPart(found.content, int8, manifest, held)


def _show(step: TrainingStep) -> None:
    if step.epoch is not None and step.epoch.number % 10 == 0:
        print(f"epoch {step.epoch.number}, loss {step.epoch.loss:.3f}", flush=True)


def main() -> int:
    """Make the model, or with `--check` compare it; 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="bccd_dev.tar, or a folder of pictures and .xml")
    parser.add_argument("--output", type=Path, default=_MODEL)
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if the model differs from the one that is there"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = train_part(given.data, 0).int8_content
    print(f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    if given.check:
        return compare(given.output, content)
    write(given.output, content)
    name_in_manifest(given.output.with_suffix(".toml"), content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
