"""Half of the channels of the baseline removed: accuracy, and speed as float and INT8 files.

Starts from the net of `optimise/baseline --epochs 10`, and takes some 2,100 s of one core; it can be
interrupted, and the same command goes on. What is left learns from the labels and the whole net's answers, and
with --teacher 0 from the labels alone. With --quick, the smallest net, trained for seconds, loses half of its
channels by importance and at random; the files of untrained nets with half of each layer are timed, since the
time does not depend on the weights; and what was recorded is checked.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import _nets
import _recorded
import torch
from _cifar import BUILD, Dataset
from _pruning import Verdict, open_net, run, switches, training
from _quantised import packed
from baseline import settings as baseline_settings
from baseline import show
from common import conclude
from msgspec.structs import replace

from agent.optimise.evaluate import time_ms
from agent.optimise.graph.channels import without_channels
from agent.optimise.pruning.channels import ChannelPruning, trained_groups
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import evaluate, fit

FOLDER = BUILD / "channels"
HALF = PruneRecipe(
    target=0.5,
    structured=True,
    rounds=8,
    round_steps=12,
    anneal_epochs=20.0,
    anneal_factor=0.3,
    over_layers=True,
    teacher=0.5,
)
LOSS, FASTER = 0.005, 1.6
RECORDED = ("dense", "half", "loss", "half_int8", "faster_int8")


def pruned(given: argparse.Namespace, pictures: Dataset) -> dict[str, float]:
    """Remove half of the channels of the baseline, and return accuracies and times."""
    told = f"-teacher-{given.teacher:g}-anneal-{given.anneal:g}{'-even' * given.even}"
    folder = FOLDER / f"{given.net}-{given.seed}{told}"
    folder.mkdir(parents=True, exist_ok=True)
    net, hot = open_net(given.net, pictures), training(given.seed)
    dense = evaluate(net, pictures.test_pictures, pictures.test_labels, _nets.NORMALISATION)
    whole = copy.deepcopy(net).eval()
    settings = replace(HALF, anneal_epochs=given.anneal, teacher=given.teacher, over_layers=not given.even)
    run = ChannelPruning(net, pictures.pictures, pictures.labels, settings, hot, show)
    run.run(folder)
    smaller = run.module
    print(f"{run.gone:.2f} gone: {run.layers}", flush=True)
    for one in (whole, smaller):
        _nets.cool(one)
    half = evaluate(smaller, pictures.test_pictures, pictures.test_labels, _nets.NORMALISATION)
    return {"dense": dense, "half": half, "loss": dense - half, **as_files((whole, smaller), pictures)}


def as_files(nets: Sequence[Any], pictures: Dataset) -> dict[str, float]:
    """Times of both nets as float and INT8 files, one thread, in turns, and accuracies of the INT8 files."""
    packs = [packed(one, pictures) for one in nets]
    int8 = [one.quantised("int8").content for one in packs]
    times = time_ms([*(one.content for one in packs), *int8], 60)
    names = ("dense_ms", "half_ms", "dense_int8_ms", "half_int8_ms")
    right = [one.accuracy(content) for one, content in zip(packs, int8, strict=True)]
    faster = {"faster_float": times[0] / times[1], "faster_int8": times[2] / times[3]}
    return dict(zip(names, times, strict=True)) | faster | {"dense_int8": right[0], "half_int8": right[1]}


def halved(name: str) -> tuple[Any, Any]:
    """An untrained net, and the same with half of the channels, for their times."""
    net = _nets.FACTORIES[name]()
    groups = trained_groups(net, (3, 32, 32))
    return net, without_channels(net, {group: torch.arange(group.channels // 2) for group in groups})


def briefly(pictures: Dataset) -> dict[str, float]:
    """Accuracy of the smallest net, and of what is left of it without an anneal."""
    few, hot = (pictures.pictures[::5], pictures.labels[::5]), replace(training(0), batch=256)
    net = _nets.build("tiny", pictures.pictures)
    fit(net, *few, replace(baseline_settings(1.0, 0), batch=256))
    figures = {"short_dense": evaluate(net, *pictures.test, _nets.NORMALISATION)}
    for name, importance in (("short_half", ""), ("short_random", "random")):
        brief = replace(HALF, importance=importance, rounds=4, round_steps=3, anneal_epochs=0.0)
        run = ChannelPruning(copy.deepcopy(net), *few, brief, hot)
        run.run()
        figures[name] = evaluate(run.module, *pictures.test, _nets.NORMALISATION)
    return figures


def quick(pictures: Dataset) -> None:
    """Prune a small net, time the files, and read the recorded accuracy."""
    torch.manual_seed(0)
    figures = briefly(pictures) | as_files(halved("wide"), pictures)
    kept = _recorded.show("channels").get("channels/wide", {})
    figures |= {f"recorded_{name}": kept[name] for name in RECORDED if name in kept}
    short = figures["short_half"] > figures["short_random"]
    meets = short and figures["faster_int8"] >= FASTER and kept.get("loss", 1.0) <= LOSS
    targets = {"short_half": "> short_random", "faster_int8": f">= {FASTER}", "recorded_loss": f"<= {LOSS}"}
    conclude("optimise/channels", figures, targets, meets)


def judge(figures: dict[str, float]) -> Verdict:
    """Both targets."""
    meets = figures["faster_int8"] >= FASTER and figures["loss"] <= LOSS
    return Verdict({}, {"faster_int8": f">= {FASTER}", "loss": f"<= {LOSS}"}, meets)


def main() -> None:
    parser = switches(__doc__, "wide")
    parser.add_argument("--anneal", type=float, default=HALF.anneal_epochs, help="epochs")
    parser.add_argument("--teacher", type=float, default=HALF.teacher, help="weight of the whole net's answers")
    parser.add_argument("--even", action="store_true", help="remove half of each layer's channels")
    run("channels", parser.parse_args(), quick, pruned, judge)


if __name__ == "__main__":
    main()
