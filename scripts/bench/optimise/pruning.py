"""Progressive pruning to 80 % of the connections: accuracy by kind of importance and length of the anneal.

Starts from the nets of `optimise/baseline --net small --epochs 10`. `dense` is the same net trained by the same
steps without pruning. All of it takes some 5,000 s of one core with `small`; it can be interrupted, and the same
command goes on. With --quick, a tiny net is trained and pruned by two kinds of importance, and the recorded
figures are checked.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

import _nets
import _recorded
import torch
from _cifar import BUILD, Dataset, cifar
from baseline import FOLDER as NETS
from baseline import settings as baseline_settings
from baseline import show
from common import arguments, conclude, data_argument
from msgspec.structs import replace

from agent.optimise.pruning.connections import (
    PruneHistory,
    PruneSettings,
    anneal_settings,
    draw_curves,
    prune,
    round_settings,
)
from agent.optimise.train import TrainingSettings, evaluate, fit

FOLDER = BUILD / "pruning"
KINDS = ("gradient*weight", "weight", "random", "gradient/weight")
ANNEALS = (0.0, 1.0, 2.0, 8.0)
LOSS, GAP = 0.003, 0.114
"""Most that may be lost against the dense net after the longest anneal; least gap to random without one."""


def training(seed: int) -> TrainingSettings:
    """Those of the baseline, less hot: the net is trained already."""
    return replace(baseline_settings(1.0, seed), norm_factor=16.0, label_smoothing=0.1, look_ahead=0.0)


def open_net(name: str) -> Any:
    """The trained net as it was in training."""
    net = _nets.load(NETS / f"{'baseline' if name == 'wide' else name}.pt")
    _nets.heat(net)
    return net.to(memory_format=torch.channels_last)


def pruned(name: str, kind: str, anneal: float, seed: int, pictures: Dataset) -> PruneHistory:
    """Prune a net; the rounds of a kind are done once for all anneals."""
    folder = FOLDER / f"{name}-{seed}" / kind.replace("/", ":") / f"anneal-{anneal:g}"
    folder.mkdir(parents=True, exist_ok=True)
    rounds = folder.parent / "anneal-0" / "rounds.checkpoint"
    if rounds.is_file() and anneal:
        shutil.copy(rounds, folder)
    settings = PruneSettings(importance=kind, anneal_epochs=anneal)  # type: ignore[arg-type]
    data = (pictures.pictures, pictures.labels)
    net = open_net(name)
    return prune(net, *data, settings, training(seed), folder=folder, test=pictures.test, progress=show)


def dense(name: str, anneal: float, seed: int, pictures: Dataset) -> float:
    """Train a net by the steps of `pruned`, and return its accuracy."""
    net, hot, settings = open_net(name), training(seed), PruneSettings(anneal_epochs=anneal)
    rate = hot.learning_rate * settings.round_factor
    for number in range(settings.rounds + 1):
        few = round_settings(hot, settings.round_steps, len(pictures.labels), rate, number)
        fit(net, pictures.pictures, pictures.labels, few)
    if anneal:
        folder = FOLDER / f"{name}-{seed}" / "dense"
        folder.mkdir(parents=True, exist_ok=True)
        long = anneal_settings(hot, settings)
        file = folder / f"anneal-{anneal:g}.checkpoint"
        fit(net, pictures.pictures, pictures.labels, long, checkpoint=file, progress=show)
    return evaluate(net, pictures.test_pictures, pictures.test_labels, hot.normalisation)


def measure(given: Any, pictures: Dataset) -> dict[str, float]:
    """Accuracies by kind and anneal; what an earlier run has measured is read."""
    file = FOLDER / f"{given.net}-{given.seed}.json"
    figures: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    histories = {}
    for anneal in given.anneals:
        for kind in ("dense", *given.kinds):
            label = f"{kind}, anneal {anneal:g}"
            if kind == "dense" and label not in figures:
                figures[label] = dense(given.net, anneal, given.seed, pictures)
            if kind != "dense":
                histories[kind] = pruned(given.net, kind, anneal, given.seed, pictures)
                figures[label] = histories[kind].points[-1].accuracy or 0.0
            print(f"{time.strftime('%H:%M:%S')} {label}: {figures[label]:.4f}", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    file.with_suffix(".png").write_bytes(draw_curves(histories))
    return figures


def verdict(figures: dict[str, float], anneals: Sequence[float]) -> tuple[dict[str, float], bool]:
    """The two figures that have a target, and if both are met."""
    best, long, short = KINDS[0], f"anneal {anneals[-1]:g}", f"anneal {anneals[0]:g}"
    loss = figures[f"dense, {long}"] - figures[f"{best}, {long}"]
    gap = figures[f"{best}, {short}"] - figures[f"random, {short}"]
    return {"loss_after_long_anneal": loss, "gap_to_random_without": gap}, loss <= LOSS and gap >= GAP


def quick(pictures: Dataset) -> None:
    """Train and prune the smallest net for seconds."""
    few = pictures.pictures[::5], pictures.labels[::5]
    hot = replace(training(0), batch=256)
    net = _nets.build("tiny", pictures.pictures)
    fit(net, *few, replace(baseline_settings(1.0, 0), batch=256))
    state = {name: one.clone() for name, one in net.state_dict().items()}
    figures = {"tiny, dense": evaluate(net, *pictures.test, normalisation=hot.normalisation)}
    for kind in ("gradient*weight", "random"):
        net.load_state_dict(state)
        settings = PruneSettings(importance=kind, rounds=4, round_steps=3, anneal_epochs=0.0)
        prune(net, *few, settings, hot)
        figures[f"tiny, {kind}"] = evaluate(net, *pictures.test, normalisation=hot.normalisation)
    meets = figures["tiny, gradient*weight"] > figures["tiny, random"]
    kept: dict[str, float] = next(iter(_recorded.show("pruning").values()), {})
    if kept:
        recorded, good = verdict(kept, sorted({float(name.split()[-1]) for name in kept}))
        figures |= {f"recorded_{name}": value for name, value in recorded.items()}
        meets = meets and good
    targets = {"tiny, gradient*weight": "> random", **_targets("recorded_")}
    conclude("optimise/pruning", figures, targets, meets and bool(kept))


def _targets(prefix: str = "") -> dict[str, str]:
    return {f"{prefix}loss_after_long_anneal": f"<= {LOSS}", f"{prefix}gap_to_random_without": f">= {GAP}"}


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="small", choices=["wide", "small", "tiny"])
    parser.add_argument("--anneals", nargs="+", type=float, default=ANNEALS, help="epochs, shortest first")
    parser.add_argument("--kinds", nargs="+", default=KINDS[:3], choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pictures = cifar(given.data)
    if given.quick:
        quick(pictures)
    figures = measure(given, pictures)
    if given.record:
        _recorded.record(f"pruning/{given.net}", figures)
    found, meets = verdict(figures, given.anneals)
    conclude("optimise/pruning", {**figures, **found}, _targets(), meets)


if __name__ == "__main__":
    main()
