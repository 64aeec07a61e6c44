"""The baseline as a cascade of four exits: accuracy against multiply-adds and time, INT8, on CIFAR-10.

Starts from the net of `optimise/baseline`. Heads are fitted on the training pictures, which takes some 140 s of
one core; `--epochs` trains all exits together after that. The thresholds are learned on one half of the test
pictures, and the figures are of the other. With --quick, a net that is trained for seconds shows that it works,
and the recorded figures are checked.
"""

from __future__ import annotations

import time
from typing import Any

import _recorded
import numpy as np
import torch
from _cifar import BUILD, cifar
from _quantised import FloatNet, brief_net, open_net
from common import arguments, conclude, data_argument
from msgspec.structs import replace

from agent.compute.manifest import ONLY_VARIANT, Variant
from agent.optimise.calibrate import CalibrationResult, evaluate
from agent.optimise.depth.calibration import (
    ExitScores,
    costs_of,
    exit_scores,
    learn,
    on_others,
    time_exits_ms,
)
from agent.optimise.depth.file import CascadeFile, CascadeParts, make_cascade, with_thresholds
from agent.optimise.depth.stages import chain_of, deepest, join, split
from agent.optimise.quantise import quantise
from agent.optimise.recipe import DepthRecipe, QuantiseRecipe, Recipe, TrainRecipe

FOLDER = BUILD / "exits"
LOST, SHARE, BRIEFLY_LOST = 0.005, 0.7, 0.02
_SPLITS = 12
LEAST = 0.002
"""Accuracy that the thresholds may lose where they are learned: less than where it is measured."""


def parts_of(net: FloatNet) -> CascadeParts:
    """Training pictures, and halves of the test pictures."""
    order = np.random.default_rng(1).permutation(len(net.test))
    one, other = (net.test.take(np.sort(half)) for half in np.array_split(order, 2))
    return CascadeParts(net.training, one, other)


def int8(made: CascadeFile, net: FloatNet) -> bytes:
    """The cascade with all exits quantised in one graph."""
    whole, stages = join(made.content, chain_of(made.manifest.variants))
    return split(quantise(whole, [net.calibration], QuantiseRecipe(method="int8")).content, stages)


def figures_of(content: bytes, made: CascadeFile, parts: CascadeParts, loss: float) -> dict[str, float]:
    """Accuracy, share of the multiply-adds and time of an INT8 cascade."""
    costs = costs_of(made.manifest)
    tuned, measured = (exit_scores(content, made.manifest, one) for one in parts[1:])
    learned = learn(tuned, costs, loss)
    point, full = evaluate(measured.logits, measured.labels, costs, learned)
    names = tuple(one.name for one in reversed(made.manifest.variants))
    result = CalibrationResult(names, costs, learned, point, full, len(parts.thresholds))
    known = with_thresholds(made.manifest, result)
    cascade_ms, deepest_ms = time_exits_ms(content, known, parts.measured, inside=True)
    alone = on_others(learned, measured, costs).alone
    figures = dict(zip(names, alone, strict=True))
    figures |= {f"used_{name}": share for name, share in zip(names, point.used, strict=True)}
    spent = np.cumsum(costs) / np.sum(costs)
    figures |= {f"share_{name}": float(share) for name, share in zip(names, spent, strict=True)}
    figures |= {"cascade": point.accuracy, "lost": full - point.accuracy, "share": point.cost}
    figures |= over_splits(tuned, measured, costs, loss)
    times = {"cascade_ms": cascade_ms, "deepest_ms": deepest_ms, "whole_ms": whole_ms(content, made, parts)}
    return figures | times | {"time": cascade_ms / deepest_ms}


def over_splits(one: ExitScores, other: ExitScores, costs: tuple[float, ...], loss: float) -> dict[str, float]:
    """Mean and most of what is lost, and mean of the share, if other halves of the pictures decide."""
    logits, labels = np.concatenate((one.logits, other.logits)), np.concatenate((one.labels, other.labels))
    found = []
    for seed in range(_SPLITS):
        order = np.random.default_rng(seed).permutation(len(labels))
        halves = [ExitScores(logits[half], labels[half]) for half in np.array_split(order, 2)]
        point, full = evaluate(halves[1].logits, halves[1].labels, costs, learn(halves[0], costs, loss))
        found.append((full - point.accuracy, point.cost))
    lost, share = np.array(found).T
    return {"lost_mean": float(lost.mean()), "lost_most": float(lost.max()), "share_mean": float(share.mean())}


def whole_ms(content: bytes, made: CascadeFile, parts: CascadeParts) -> float:
    """Time of a picture without early exits, in one graph."""
    alone = replace(made.manifest, variants=(Variant(ONLY_VARIANT),))
    graph = deepest(join(content, chain_of(made.manifest.variants))[0])
    return time_exits_ms(graph, alone, parts.measured, inside=True)[0]


def deepened(net: FloatNet, recipe: Recipe, loss: float, name: str) -> dict[str, float]:
    """Give a net exits, and return the figures."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    parts = parts_of(net)
    made = make_cascade(net.model, parts, recipe, folder=folder, tell=print)
    core_s = time.process_time()
    content = int8(made, net)
    (folder / "int8.tflite").write_bytes(content)
    figures: dict[str, float] = {"float_before": made.report.steps[0].score or 0.0, "core_s": core_s}
    return figures | figures_of(content, made, parts, loss)


def quick(net: FloatNet) -> None:
    """Few pictures and a small net, and the recorded figures."""
    few = net._replace(training=net.training.take(np.arange(0, len(net.training), 25)))
    recipe = Recipe(depth=DepthRecipe(epochs=0.0, exits=2))
    for file in (FOLDER / "quick").glob("*.checkpoint"):
        file.unlink()
    figures = deepened(few, recipe, LOST, "quick")
    kept: dict[str, Any] = _recorded.show("exits/wide").get("exits/wide", {})
    figures |= {f"recorded_{name}": kept[name] for name in ("lost", "share", "time") if name in kept}
    targets = {"lost": f"<= {BRIEFLY_LOST}", "share": "< 1"}
    targets |= {"recorded_lost": f"<= {LOST}", "recorded_share": f"<= {SHARE}"}
    conclude("optimise/exits", figures, targets)


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="wide", choices=["wide", "small"])
    parser.add_argument("--epochs", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--at", default="6,12,13", help="tensors behind which the early exits are")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = cifar(given.data)
    if given.quick:
        quick(brief_net(pictures))
    depth = DepthRecipe(epochs=given.epochs, at=tuple(given.at.split(",")), grid=given.grid, loss=LEAST)
    recipe = Recipe(depth=depth, train=replace(TrainRecipe(), learning_rate=given.rate))
    name = f"{given.net}-{given.at}-{given.grid}-{given.epochs:g}-{given.rate:g}"
    figures = deepened(open_net(given, pictures), recipe, LEAST, name)
    if given.record:
        _recorded.record(f"exits/{given.net}", figures)
    targets = {"lost": f"<= {LOST}", "share": f"<= {SHARE}"}
    conclude("optimise/exits", figures, targets, figures["lost"] <= LOST and figures["share"] <= SHARE)


if __name__ == "__main__":
    main()
