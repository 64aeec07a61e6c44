"""Half of the channels of the baseline removed: accuracy, and speed as float and INT8 files.

Starts from the net of `optimise/baseline`, and takes some 900 s of one core; it can be interrupted, and the same
command goes on. What is left learns from the whole net, or with --labels from the labels alone. With --quick, the
files of untrained nets are timed, since the time does not depend on the weights, and the recorded accuracy is
checked.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import _nets
import _recorded
import numpy as np
import torch
from _cifar import BUILD, Dataset
from _pruning import Verdict, open_net, run, switches, training
from baseline import show
from common import conclude
from msgspec.structs import replace
from torch.nn import functional

from agent.compute.manifest import InputManifest, Manifest, Model
from agent.optimise.data import read_examples
from agent.optimise.evaluate import time_ms
from agent.optimise.graph.channels import without_channels
from agent.optimise.graph.from_torch import float_tflite
from agent.optimise.pruning.channels import ROUND_FACTOR, chosen_groups, prune_channels
from agent.optimise.pruning.connections import PruneSettings
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from agent.optimise.train import Objective, TrainingSettings, evaluate

FOLDER = BUILD / "channels"
HALF = PruneSettings(
    target=0.5, rounds=8, round_steps=12, anneal_epochs=8.0, round_factor=ROUND_FACTOR, anneal_factor=0.15
)
LOSS, FASTER = 0.005, 1.6
_SHARPER = 3.0
"""Factor of the teacher's outputs."""
PREPARATION = InputManifest(mean=(121.0, 121.0, 121.0), std=(64.0, 64.0, 64.0))


def taught(teacher: Any, hot: TrainingSettings) -> Objective:
    """Loss that follows a teacher's outputs and the labels."""

    def loss(outputs: Any, inputs: Any, labels: Any) -> Any:
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16):
            wanted = functional.softmax(teacher(inputs).float() / hot.temperature * _SHARPER, 1)
        own = outputs.float() / hot.temperature
        follow = functional.kl_div(functional.log_softmax(own * _SHARPER, 1), wanted, reduction="batchmean")
        return follow + 0.3 * functional.cross_entropy(own, labels, label_smoothing=hot.label_smoothing)

    return loss


def tflite(net: Any) -> bytes:
    """The float file of a net."""
    mean, std = _nets.NORMALISATION.mean, _nets.NORMALISATION.std
    return float_tflite(net.eval(), (32, 32, 3), mean=mean, std=std)


def int8(content: bytes, pictures: Dataset) -> bytes:
    """The INT8 file, calibrated on 256 training pictures."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.npz")
        np.savez(data, x=pictures.pictures[::195], y=pictures.labels[::195])
        examples = read_examples(data, Model(content, "", Manifest(input=PREPARATION), "net"))
    return quantise(content, [examples], QuantiseRecipe(method="int8")).content


def pruned(given: argparse.Namespace, pictures: Dataset) -> dict[str, float]:
    """Remove half of the channels of the baseline, and return accuracies and times."""
    told = f"{'-labels' * given.labels}-anneal-{given.anneal:g}"
    folder = FOLDER / f"{given.net}-{given.seed}{told}"
    folder.mkdir(parents=True, exist_ok=True)
    net, hot = open_net(given.net), training(given.seed)
    dense = evaluate(net, pictures.test_pictures, pictures.test_labels, _nets.NORMALISATION)
    teacher, loss = copy.deepcopy(net).eval(), None
    if not given.labels:
        hot = replace(hot, label_smoothing=0.1)
        loss = taught(teacher, hot)
    data, settings = (pictures.pictures, pictures.labels), replace(HALF, anneal_epochs=given.anneal)
    options: dict[str, Any] = {"folder": folder, "test": pictures.test, "objective": loss, "progress": show}
    smaller, history = prune_channels(net, *data, settings, hot, **options)
    for point in history.points:
        print(f"{point.stage} {point.number}: {point.sparsity:.2f} gone, {point.accuracy:.4f}", flush=True)
    for one in (teacher, smaller):
        _nets.cool(one)
    (folder / "smaller.tflite").write_bytes(tflite(smaller))
    half = evaluate(smaller, pictures.test_pictures, pictures.test_labels, _nets.NORMALISATION)
    return {"dense": dense, "half": half, "loss": dense - half, **speed(teacher, smaller, pictures)}


def speed(dense: Any, half: Any, pictures: Dataset) -> dict[str, float]:
    """Times of both as float and INT8, one thread, in turns."""
    files = [tflite(one) for one in (dense, half)]
    files += [int8(one, pictures) for one in files]
    times = time_ms(files, 60)
    names = ("dense_ms", "half_ms", "dense_int8_ms", "half_int8_ms")
    faster = {"faster_float": times[0] / times[1], "faster_int8": times[2] / times[3]}
    return dict(zip(names, times, strict=True)) | faster


def halved(name: str) -> tuple[Any, Any]:
    """An untrained net, and the same with half of the channels, for their times."""
    net = _nets.FACTORIES[name]()
    groups = chosen_groups(net, (3, 32, 32), ("*",))
    return net, without_channels(net, {group: torch.arange(group.channels // 2) for group in groups})


def quick(pictures: Dataset) -> None:
    """Time the files, and read the recorded accuracy."""
    torch.manual_seed(0)
    figures = speed(*halved("wide"), pictures)
    kept = _recorded.show("channels").get("channels/wide", {})
    figures |= {f"recorded_{name}": kept[name] for name in ("dense", "half", "loss") if name in kept}
    meets = figures["faster_int8"] >= FASTER and kept.get("loss", 1.0) <= LOSS
    targets = {"faster_int8": f">= {FASTER}", "recorded_loss": f"<= {LOSS}"}
    conclude("optimise/channels", figures, targets, meets)


def judge(figures: dict[str, float]) -> Verdict:
    """Both targets."""
    meets = figures["faster_int8"] >= FASTER and figures["loss"] <= LOSS
    return Verdict({}, {"faster_int8": f">= {FASTER}", "loss": f"<= {LOSS}"}, meets)


def main() -> None:
    parser = switches(__doc__, "wide")
    parser.add_argument("--anneal", type=float, default=HALF.anneal_epochs, help="epochs")
    parser.add_argument("--labels", action="store_true", help="learn from the labels alone")
    run("channels", parser.parse_args(), quick, pruned, judge)


if __name__ == "__main__":
    main()
