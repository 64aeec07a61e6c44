"""The dense baseline: trains an airbench-like net on CIFAR-10 as JPEG, and tells its accuracy.

`wide` takes 175 s of one core an epoch, 580 s of one without instructions for bfloat16. A run can be
interrupted: the same command goes on. With --quick, a small part of the pictures shows that training works, and
the recorded figures are printed.
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import _nets
import _recorded
import torch
from _cifar import BUILD, Dataset, cifar
from common import arguments, conclude, data_argument
from msgspec.structs import replace

from agent.optimise.augment import Augmentation
from agent.optimise.train import TrainingSettings, TrainingStep, evaluate, fit

FOLDER = BUILD / "cifar"
GOOD = 0.93
BRIEF_EPOCHS = 10.0
"""Those of a net that another bench starts from and does not find."""
LEARNS = 0.3
"""Accuracy of the quick run: a net that learns nothing has 0.1."""


def settings(epochs: float, seed: int) -> TrainingSettings:
    """Those of airbench94, for the mean loss."""
    return TrainingSettings(
        epochs=epochs,
        batch=1024,
        learning_rate=1.5,
        norm_factor=64.0,
        decay=0.002,
        norm_decay=0.002,
        momentum=0.85,
        label_smoothing=0.2,
        temperature=_nets.TEMPERATURE,
        start_factor=0.2,
        end_factor=0.07,
        peak_at=0.23,
        look_ahead=0.95,
        augmentation=Augmentation(shift=2, flip=True),
        normalisation=_nets.NORMALISATION,
        seed=seed,
    )


def show(step: TrainingStep) -> None:
    """Print a line for each epoch."""
    if step.epoch is not None:
        one = step.epoch
        accuracy = "" if one.accuracy is None else f"  test {one.accuracy:.4f}"
        now = time.strftime("%H:%M:%S")
        print(
            f"{now} epoch {one.number}  loss {one.loss:.3f}{accuracy}  {time.process_time():.0f} core-s",
            flush=True,
        )


def path_of(name: str, seed: int = 0) -> Path:
    """Where the trained net of a name in `_nets` is kept."""
    stem = "baseline" if name == "wide" else name
    return FOLDER / f"{stem}{f'-{seed}' if seed else ''}.pt"


def train(given: Namespace, pictures: Dataset) -> dict[str, float]:
    """Train a net of `_nets`, write its weights, and return the figures."""
    name, epochs, seed = given.net, given.epochs, given.seed
    net, path = _nets.build(name, pictures.pictures, seed), path_of(name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    fit(
        net,
        pictures.pictures,
        pictures.labels,
        settings(epochs, seed),
        checkpoint=path.parent / f"{name}-{epochs:g}-{seed}.checkpoint",
        test=pictures.test,
        progress=show,
    )
    _nets.cool(net)
    _nets.save(net, name, path)
    return {
        "accuracy": evaluate(net, *pictures.test, normalisation=_nets.NORMALISATION),
        "epochs": epochs,
        "core_s": time.process_time(),
        "parameters": sum(one.numel() for one in net.parameters()),
        "multiply_adds": _nets.multiply_adds(net),
    }


def trained(name: str, pictures: Dataset, seed: int = 0) -> Any:
    """The trained net of a name in `_nets`, trained first if this clone has none."""
    path = path_of(name, seed)
    if not path.is_file():
        train(Namespace(net=name, epochs=BRIEF_EPOCHS, seed=seed), pictures)
    _recorded.begins_with(name, path.read_bytes())
    return _nets.load(path)


def quick(pictures: Dataset) -> None:
    """Train the smallest net for seconds."""
    net = _nets.build("tiny", pictures.pictures)
    brief = replace(settings(1.0, 0), batch=256)
    fit(net, pictures.pictures[::4], pictures.labels[::4], brief, progress=show)
    accuracy = evaluate(net, pictures.test_pictures, pictures.test_labels, _nets.NORMALISATION)
    kept = _recorded.show("baseline/wide")
    figures = {"accuracy_of_a_quarter": accuracy}
    figures |= {f"recorded_{name}": float(value) for name, value in kept.get("baseline/wide", {}).items()}
    meets = accuracy >= LEARNS and figures.get("recorded_accuracy", 0.0) >= GOOD
    targets = {"accuracy_of_a_quarter": f">= {LEARNS}", "recorded_accuracy": f">= {GOOD}"}
    conclude("optimise/baseline", figures, targets, meets)


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="wide", choices=list(_nets.FACTORIES))
    parser.add_argument("--epochs", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pictures = cifar(given.data)
    if given.quick:
        quick(pictures)
    figures = train(given, pictures)
    if given.record:
        _recorded.record(
            f"{_recorded.name_of('baseline', given)}{f'-{given.seed}' if given.seed else ''}", figures
        )
    conclude("optimise/baseline", figures, {"accuracy": f">= {GOOD}"}, figures["accuracy"] >= GOOD)


if __name__ == "__main__":
    main()
