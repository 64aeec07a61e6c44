"""The bundled NanoDet, INT4 and INT8 weights: average precision against float, size of the file, and time.

Average precision is COCO's (IoU .50:.95) of the variant 416 on 64 pictures, as they are and mirrored: the model
was calibrated on pictures of other origin. So few pictures leave a noise of 0.01 to 0.02. Time: against the same
weights stored as INT8, one thread, in turns.

The float model is made of the same graph, see `_nanodet.py`. With --quick, 16 pictures and no mirror.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _nanodet import Mirrored, float_file
from common import arguments, conclude, data_argument, needed

from agent.compute.tflite.expand import expand_int4
from agent.models.files import load_file
from agent.models.library import open_whole_model
from agent.optimise.data import read_examples
from agent.optimise.evaluate import score, time_ms
from agent.optimise.graph.objects import dump, load

KEPT, SIZE, SLOWER = 0.97, 2.8e6, 1.05
VARIANT = "416"


def precision(content: bytes, given: Any) -> float:
    """Mean of the average precision on the pictures and on their mirror images."""
    model = open_whole_model("nanodet")
    examples = read_examples(needed(given.data / "coco64_dev.tar"), model, VARIANT)
    halves = [examples.take(np.arange(0, 64, 4))] if given.quick else [examples, Mirrored(examples)]
    return float(np.mean([score(content, half, model.manifest, variant=VARIANT).value for half in halves]))


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--float", type=Path, help="another float model")
    parser.add_argument("--model", type=Path, help="another file instead of the bundled one")
    given = parser.parse_args()
    content = given.model.read_bytes() if given.model else load_file("nanodet")[0]
    expanded = expand_int4(content, "litert")
    before, after = time_ms([dump(load(expanded)), expanded], 10 if given.quick else 40)
    figures = {"bytes": float(len(content)), "time_of_int8": after / before}
    reference = (given.float or float_file()).read_bytes()
    exact, kept = precision(reference, given), precision(content, given)
    figures |= {"float": exact, "ap": kept, "ap_of_float": kept / exact}
    meets = figures["bytes"] <= SIZE and figures["time_of_int8"] <= SLOWER and kept / exact >= KEPT
    targets = {"ap_of_float": f">= {KEPT}", "bytes": f"<= {SIZE:.0f}", "time_of_int8": f"<= {SLOWER}"}
    conclude("optimise/nanodet_int4", figures, targets, meets)


if __name__ == "__main__":
    main()
