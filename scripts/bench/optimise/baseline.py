"""The dense baseline: trains an airbench-like net on CIFAR-10 as JPEG and tells its accuracy.

The whole run takes 45 minutes of one core for `wide`. It can be interrupted: the same command goes on.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import _nets
import torch
from _cifar import BUILD, cifar
from common import arguments, conclude, data_argument

from agent.optimise.augment import Augmentation
from agent.optimise.train import TrainingSettings, TrainingStep, evaluate, fit

FOLDER = BUILD / "cifar"


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
        print(f"{now} epoch {one.number}  loss {one.loss:.3f}{accuracy}  {one.cpu_s:.0f} core-s", flush=True)


def train(name: str, epochs: float, seed: int, data: Path) -> dict[str, float]:
    """Train a net of `_nets`, write its weights and a record, and return the figures."""
    pictures = cifar(data)
    net = _nets.build(name, pictures.pictures, seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    history = fit(
        net,
        pictures.pictures,
        pictures.labels,
        settings(epochs, seed),
        checkpoint=FOLDER / f"{name}-{epochs:g}-{seed}.checkpoint",
        test=pictures.test,
        progress=show,
    )
    _nets.cool(net)
    kind = "baseline" if name == "wide" else name
    _nets.save(net, name, FOLDER / f"{kind}.pt")
    figures = {
        "accuracy": evaluate(net, *pictures.test, _nets.NORMALISATION),
        "epochs": epochs,
        "core_s": history.epochs[-1].cpu_s,
        "parameters": sum(one.numel() for one in net.parameters()),
        "multiply_adds": _nets.multiply_adds(net),
    }
    (FOLDER / f"{kind}.json").write_text(json.dumps(figures), encoding="utf-8")
    return figures


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="wide", choices=["wide", "small", "tiny"])
    parser.add_argument("--epochs", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures = train(given.net, given.epochs, given.seed, given.data)
    conclude("optimise/baseline", figures, {"accuracy": ">= 0.93"}, figures["accuracy"] >= 0.93)


if __name__ == "__main__":
    main()
