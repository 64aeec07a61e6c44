"""NanoDet for the zoo: from a TensorFlow.js model to one `.tflite` with a signature per input size."""

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from network import NanoDet, nanodet
from pictures import read_pictures
from tfjs import read_convolutions

from agent.compute.manifest import Model
from agent.models.library import open_manifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.graph.additions import add_features
from agent.optimise.graph.writer import ModelWriter
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from agent.optimise.recipe.budget import parse_budget

_HERE = Path(__file__).resolve().parent
_MODEL = _HERE.parents[1] / "agent" / "models" / "zoo" / "nanodet.tflite"
_SIZES = (416, 320, 256)
_OUTPUTS = ("scores", "reg")
_RECIPE = QuantiseRecipe(method="mixed", examples=64)
_BUDGET = parse_budget("size<2.79MB")


def main() -> int:
    """Make what the arguments ask for; 1 if `--check` finds a difference."""
    arguments = read_arguments("nanodet", __doc__, _MODEL)
    convolutions = read_convolutions(arguments.inputs / "package" / "models" / "nanodet.json")
    networks = [nanodet(convolutions, size) for size in _SIZES]
    if arguments.float:
        write(arguments.float, _float(networks))
        return 0
    content = _mixed(_float(networks), arguments.inputs)
    return keep(arguments, content)


def _float(networks: Sequence[NanoDet]) -> bytes:
    """The float file."""
    file = ModelWriter("NanoDet-g")
    for network in networks:
        file.add(f"s{network.size}", network, _OUTPUTS)
    return file.pack()


def _mixed(content: bytes, inputs: Path) -> bytes:
    """The file with INT4 and INT8 weights, and features. One thread: sums are then added up in one order."""
    torch.set_num_threads(1)
    examples = _examples(content, inputs)
    quantised = quantise(content, examples, _RECIPE, budget=_BUDGET, progress=_progress)
    return add_features(quantised.content).content


def _examples(content: bytes, inputs: Path) -> list[Examples]:
    """The calibration pictures for each size, read as `vedette optimise quantise --data` reads them."""
    folder = write_pictures(inputs)
    model = Model(content, hashlib.sha256(content).hexdigest(), open_manifest("nanodet"), "NanoDet")
    return [read_examples(folder, model, str(size)) for size in _SIZES]


def write_pictures(inputs: Path) -> Path:
    """Write the calibration pictures as files, and return their folder."""
    folder = inputs.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(read_pictures(_HERE / "pictures.sha256", inputs)):
        cv2.imwrite(str(folder / f"{number:03}.png"), picture)
    return folder


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def read_arguments(name: str, doc: str | None, model: Path) -> argparse.Namespace:
    """Read the arguments that every script of a bundled model has: inputs, output, check, float."""
    parser = argparse.ArgumentParser(prog=f"scripts/build_models/{name}", description=doc)
    parser.add_argument("--inputs", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=model, help="where to write the quantised model")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if --output differs")
    parser.add_argument("--float", type=Path, metavar="FILE", help="write only the float model, there")
    return parser.parse_args()


def keep(arguments: argparse.Namespace, content: bytes) -> int:
    """Write a model and its sha256, or compare it, as the arguments ask; 1 if it differs."""
    if arguments.check:
        return compare(arguments.output, content)
    write(arguments.output, content)
    name_in_manifest(arguments.output.with_suffix(".toml"), content)
    return 0


def write(path: Path, content: bytes) -> None:
    """Write a model, and print its size and sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def name_in_manifest(path: Path, content: bytes) -> None:
    """Write the model's sha256 into the manifest, if there is one."""
    if path.exists():
        digest = hashlib.sha256(content).hexdigest()
        path.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', path.read_text()))


def compare(path: Path, content: bytes) -> int:
    """0 if the file at `path` holds `content`, else 1."""
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
    made = hashlib.sha256(content).hexdigest()
    if found == made:
        print(f"{path}: reproduced, sha256 {made}")
        return 0
    print(f"{path}: not reproduced: expected sha256 {made}, found {found}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
