"""Train `tiny` on pictures from nothing, remove 70 % of its weights in whole channels, quantise.

Castings are split in five parts by looks, since rotated copies of one are in the data: the net learns from four
of them and is measured on the fifth, each in its turn. Six defects of steel (NEU),
64×64, are learned from every other picture of each. The steps are those of `vedette optimise train`, `prune` and
`quantise`. With --quick, small pictures of shapes go the same way, and the recorded figures are checked.

With --network efficientnet_lite0, a network that knows pictures learns these sets, and 300 pictures each of three
classes of CIFAR-10 (airplane, frog, truck), measured on 500 of each: its last layer alone, and four epochs of the
last blocks as well. Of the castings it is measured on one fifth. Processor time is that of `train`, with reading
and measuring.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _recorded
import cv2
import numpy as np
import torch
from _cifar import cifar
from common import arguments, conclude, data_argument, needed
from msgspec.structs import replace
from numpy.typing import NDArray
from shrink import CASTINGS, castings_of, folds_of

from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import score, time_ms
from agent.optimise.factory import load_factory
from agent.optimise.pruning.file import prune_model
from agent.optimise.quantise import quantise
from agent.optimise.recipe import Recipe, parse_recipe
from agent.optimise.train import TrainingStep
from agent.optimise.training.classifier import TrainRequest, read_pictures, train_classifier
from agent.optimise.training.data import PREPARATION
from agent.optimise.training.networks import LITE0

NEU = "neu_det_dev.tar"
GONE, LOSS, CASTINGS_RIGHT = 0.7, 0.01, 0.997
RECIPE = """
[data]
held_out = 0.1
[train]
turn = {turn}
[prune]
structured = true
target = 0.47
rounds = 8
round_steps = 12
anneal_epochs = {anneal}
"""


class Part(NamedTuple):
    """Pictures in RGB, uint8 [n, height, width, 3], and classes: to learn from, and to measure on."""

    pictures: NDArray[Any]
    labels: NDArray[Any]
    test_pictures: NDArray[Any]
    test_labels: NDArray[Any]


def castings(data: Path) -> Iterator[Part]:
    """Each fifth by looks to measure on."""
    found, broken = castings_of(needed(data / CASTINGS))
    pictures = np.stack([cv2.resize(one, (128, 128), interpolation=cv2.INTER_AREA)[..., ::-1] for one in found])
    fifths, classes = folds_of(found, broken) // 2, broken.astype(np.int64)
    for learned in (fifths != number for number in range(5)):
        yield Part(pictures[learned], classes[learned], pictures[~learned], classes[~learned])


def steel(data: Path) -> Iterator[Part]:
    """Every other picture of each class to learn from."""
    pictures, labels, names = [], [], list[str]()
    with tarfile.open(needed(data / NEU)) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            path = Path(member.name)
            if not member.isfile() or "images" not in path.parts:
                continue
            file = archive.extractfile(member)
            picture = cv2.imdecode(np.frombuffer(file.read() if file else b"", np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            name = path.stem.rpartition("_")[0]
            names += [name] * (name not in names)
            pictures.append(cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)[..., ::-1])
            labels.append(names.index(name))
    every, classes = np.stack(pictures), np.array(labels)
    yield Part(every[::2], classes[::2], every[1::2], classes[1::2])


def things(data: Path) -> Iterator[Part]:
    """300 pictures of each of three classes to learn from."""
    pictures, classes, random = cifar(data), (0, 6, 9), np.random.default_rng(0)
    seen = np.concatenate([random.permutation(np.flatnonzero(pictures.labels == one))[:300] for one in classes])
    held = np.flatnonzero(np.isin(pictures.test_labels, classes))
    learned, measured = (
        np.searchsorted(classes, one) for one in (pictures.labels[seen], pictures.test_labels[held])
    )
    yield Part(pictures.pictures[seen], learned, pictures.test_pictures[held], measured)


def shapes() -> Part:
    """Squares and crosses on noise, 32×32, that a run of seconds can tell apart."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 120, (240, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(240) % 2
    for picture, label in zip(pictures, labels, strict=True):
        y, x = random.integers(2, 18, 2)
        if label:
            picture[y + 5 : y + 7, x : x + 12] = picture[y : y + 12, x + 5 : x + 7] = 255
        else:
            picture[y : y + 12, x : x + 12] = 255
    return Part(pictures[:160], labels[:160], pictures[160:], labels[160:])


def examples(pictures: NDArray[Any], labels: NDArray[Any], model: Model) -> Examples:
    """Examples for a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        np.savez(path, x=pictures, y=labels)
        return read_examples(path, model)


def measure(part: Part, recipe: Recipe, epochs: float | None, folder: Path) -> dict[str, float]:
    """Accuracy, bytes and time of the trained net, the pruned one, and its INT8 file."""
    path = folder / "data.npz"
    np.savez(path, x=part.pictures, y=part.labels)
    request = TrainRequest("tiny", epochs=epochs, folder=folder)
    learned, names = read_pictures(path, request, recipe)
    trained = train_classifier(learned, names, request, recipe, progress=shown("train"), tell=print)
    (folder / "net.pt").write_bytes(trained.weights)
    manifest = Manifest("tiny", OutputManifest("classify", names, options={"logits": True}), PREPARATION)
    model = Model(trained.content, "", manifest, "tiny")
    module = load_factory("tiny", folder / "net.pt")
    pruned = prune_model(model, module, learned, recipe, folder=folder)
    int8 = quantise(pruned.content, [learned], recipe.quantise).content
    whole = quantise(trained.content, [learned], recipe.quantise).content
    test = examples(part.test_pictures, part.test_labels, model)
    files = {"float": trained.content, "pruned": pruned.content, "int8": int8, "whole_int8": whole}
    figures = {name: score(content, test, manifest).value for name, content in files.items()}
    times = time_ms(list(files.values()))
    figures |= {f"{name}_ms": one for name, one in zip(files, times, strict=True)}
    figures |= {f"{name}_kb": len(content) / 1e3 for name, content in files.items()}
    figures["gone"] = 1 - figures["pruned_kb"] / figures["float_kb"]
    print({name: round(value, 4) for name, value in figures.items()}, flush=True)
    return figures


def pretrained(data: Path) -> None:
    """Teach a network that knows pictures all sets, and end with the targets."""
    figures = dict[str, float]()
    for name, read in {"things": things, **SETS}.items():
        part = next(read(data))
        recipe = parse_recipe(f"[data]\nheld_out = 0.05\n[train]\nturn = {str(name == 'castings').lower()}\n", "")
        for epochs in (None, 4.0):
            with tempfile.TemporaryDirectory() as folder:
                path, begun = Path(folder, "data.npz"), time.process_time()
                np.savez(path, x=part.pictures, y=part.labels)
                request = TrainRequest(LITE0, epochs=epochs)
                learned, names = read_pictures(path, request, recipe.recipe)
                trained = train_classifier(learned, names, request, recipe.recipe)
                used = time.process_time() - begun
                output = OutputManifest("classify", names, options={"logits": True})
                model = Model(trained.content, "", Manifest(LITE0, output, PREPARATION), LITE0)
                test = examples(part.test_pictures, part.test_labels, model)
                by_integers = replace(recipe.recipe.quantise, method="int8")
                int8 = quantise(trained.content, [learned], by_integers).content
                right, also = (score(one, test, model.manifest).value for one in (trained.content, int8))
            key = f"{name}_blocks" if epochs else name
            figures |= {key: right, f"{key}_int8": also, f"{key}_cpu_s": used}
            print(f"{key}: {right:.2%}, INT8 {also:.2%}, {used:.0f} s of processor time", flush=True)
    conclude("optimise/tiny", figures, {"things_blocks": ">= 0.95", "things_blocks_cpu_s": "<= 60"})


def shown(what: str) -> Any:
    """Prints ten lines of a training."""
    told = [0]

    def show(step: TrainingStep) -> None:
        if step.epoch is not None and step.done * 10 // step.total > told[0]:
            told[0] = step.done * 10 // step.total
            print(f"{what} {step.done * 100 // step.total} %, loss {step.epoch.loss:.3f}", flush=True)

    return show


SETS = {"castings": castings, "steel": steel}


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--dataset", default="castings", choices=list(SETS))
    parser.add_argument("--network", default="tiny", choices=["tiny", LITE0])
    parser.add_argument("--epochs", type=float, help="of training; default: the command's")
    parser.add_argument("--anneal", type=float, default=30.0, help="epochs after pruning")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.network == LITE0:
        pretrained(given.data)
        return
    if given.quick:
        quick()
        return
    figures = mean(given)
    if given.record:
        _recorded.record(f"tiny/{given.dataset}", figures)
    judge(figures, given.dataset)


def mean(given: argparse.Namespace) -> dict[str, float]:
    """Mean figures of the parts, and the worst accuracy of the INT8 files."""
    recipe = recipe_of(turn=True, anneal=given.anneal)
    found = []
    for number, part in enumerate(SETS[given.dataset](given.data)):
        print(f"part {number + 1}: {len(part.labels)} to learn from, {len(part.test_labels)} to measure on")
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(part, recipe, given.epochs, Path(folder)))
    figures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return {**figures, "worst_int8": min(one["int8"] for one in found)}


def recipe_of(turn: bool, anneal: float) -> Recipe:
    """The recipe of all steps."""
    text = RECIPE.format(turn=str(turn).lower(), anneal=float(anneal))
    return parse_recipe(f'{text}\n[quantise]\nmethod = "int8"\n', "tiny").recipe


def judge(figures: dict[str, float], name: str) -> None:
    """End with the targets of the set."""
    figures["lost"] = figures["float"] - figures["int8"]
    targets = {"gone": f">= {GONE}", "lost": f"<= {LOSS}"}
    meets = figures["gone"] >= GONE and figures["lost"] <= LOSS
    if name == "castings":
        targets["int8"] = f">= {CASTINGS_RIGHT}"
        meets = meets and figures["int8"] >= CASTINGS_RIGHT
    conclude("optimise/tiny", figures, targets, meets)


def quick() -> None:
    """A tiny run, and what is recorded."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(shapes(), recipe_of(turn=False, anneal=4.0), 8.0, Path(folder))
    figures = {f"shapes_{name}": found[name] for name in ("float", "int8", "gone")}
    kept = _recorded.show("tiny/").get("tiny/castings", {})
    figures |= {f"recorded_{name}": kept[name] for name in ("float", "int8", "gone") if name in kept}
    meets = found["gone"] >= GONE and found["int8"] >= 0.9 and kept.get("int8", 0.0) >= CASTINGS_RIGHT
    targets = {"shapes_gone": f">= {GONE}", "shapes_int8": ">= 0.9", "recorded_int8": f">= {CASTINGS_RIGHT}"}
    conclude("optimise/tiny", figures, targets, meets)


if __name__ == "__main__":
    main()
