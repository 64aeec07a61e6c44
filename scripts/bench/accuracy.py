"""Measure the cost of INT8: average precision (COCO's, IoU .50:.95) of each NanoDet variant and the float model.

64 pictures of COCO go through the agent's own modules: model file, input, inference, decoder. The float model is
made of the same graph, see `_nanodet.py`. So few pictures leave a noise of 0.01 to 0.02 in the ratio of two APs:
without --quick the same pictures are measured mirrored too, as a second opinion beside the target.
"""

from __future__ import annotations

import argparse
import hashlib

import _nanodet
import common
from msgspec.structs import replace

from agent.compute.manifest import Model
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import score

ARCHIVE = "coco64_dev.tar"
TARGET = 0.985


def main() -> None:
    args = arguments()
    model = int8_model()
    pictures = {one.name: read_examples(args.data / ARCHIVE, model, one.name) for one in model.manifest.variants}
    figures = {"pictures": float(len(pictures["416"]))}
    reference = float_model(model)
    figures |= compare(model, reference, pictures)
    if not args.quick:
        print("mirrored:")
        twins = compare(model, reference, {name: _nanodet.Mirrored(one) for name, one in pictures.items()})
        figures |= {f"{name}_mirrored": value for name, value in twins.items() if "_of_" in name}
    meets = figures["int8_416_of_float"] >= TARGET
    common.conclude("accuracy", figures, {"int8_416_of_float": f">= {TARGET}"}, meets)


def int8_model() -> Model:
    """The bundled model with all of its variants."""
    return open_whole_model("nanodet")


def compare(model: Model, reference: Model, pictures: dict[str, Examples]) -> dict[str, float]:
    """AP and AP50 of every variant of the model and of its float reference, and what share INT8 keeps."""
    figures: dict[str, float] = {}
    for variant, examples in pictures.items():
        figures |= measure(f"int8_{variant}", model, variant, examples)
        figures |= measure(f"float_{variant}", reference, variant, examples)
        share = figures[f"int8_{variant}_ap"] / figures[f"float_{variant}_ap"]
        figures[f"int8_{variant}_of_float"] = share
        print(f"           INT8 keeps {share:.1%} of the float AP at {variant}", flush=True)
    return figures


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    common.needed(args.data / ARCHIVE)
    return args


def measure(name: str, model: Model, variant: str, pictures: Examples) -> dict[str, float]:
    """AP and AP50 of one variant."""
    found = score(model.content, pictures, model.manifest, variant=variant)
    print(f"{name:10} AP {found.value:.4f}  AP50 {found.details['AP50']:.4f}", flush=True)
    return {f"{name}_ap": found.value, f"{name}_ap50": found.details["AP50"]}


def float_model(model: Model) -> Model:
    """The float model with the manifest of `model`."""
    path = _nanodet.float_file()
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return Model(data, sha256, replace(model.manifest, sha256=sha256), str(path))


if __name__ == "__main__":
    main()
