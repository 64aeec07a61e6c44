"""What the benches of pruning share: the trained nets, the settings of their training, and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import _nets
import _recorded
import torch
from _cifar import Dataset, cifar
from baseline import settings as baseline_settings
from baseline import trained
from common import arguments, conclude, data_argument
from msgspec.structs import replace

from agent.optimise.train import TrainingSettings


class Verdict(NamedTuple):
    """Figures that follow from what was measured, the targets as text, and if all are met."""

    figures: dict[str, float]
    targets: dict[str, str]
    meets: bool


def training(seed: int) -> TrainingSettings:
    """Those of the baseline, less hot: the net is trained already."""
    return replace(baseline_settings(1.0, seed), norm_factor=16.0, look_ahead=0.0)


def open_net(name: str, pictures: Dataset) -> Any:
    """A net of `optimise/baseline` as it was in training."""
    net = trained(name, pictures)
    _nets.heat(net)
    return net.to(memory_format=torch.channels_last)


def switches(doc: str | None, net: str) -> argparse.ArgumentParser:
    """The command line of a bench whose net is this unless --net names another."""
    parser = arguments(doc or "")
    data_argument(parser)
    parser.add_argument("--net", default=net, choices=["wide", "small", "tiny"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    return parser


def run(
    bench: str,
    given: argparse.Namespace,
    quick: Callable[[Dataset], None],
    measure: Callable[[argparse.Namespace, Dataset], dict[str, float]],
    judge: Callable[[dict[str, float]], Verdict],
    variant: str = "",
) -> None:
    """Measure, keep the figures with --record, and conclude; or do with --quick what is quick."""
    torch.set_num_threads(given.threads)
    pictures = cifar(given.data)
    if given.quick:
        quick(pictures)
    figures = measure(given, pictures)
    if given.record:
        seed = f"-{given.seed}" if given.seed else ""
        _recorded.record(f"{bench}/{given.net}{variant}{seed}", figures)
    verdict = judge(figures)
    conclude(f"optimise/{bench}", {**figures, **verdict.figures}, verdict.targets, verdict.meets)
