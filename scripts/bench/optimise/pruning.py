"""Progressive pruning to 80 % of the connections: accuracy by kind of importance and length of the anneal.

Starts from the net of `optimise/baseline --net small --epochs 10`. `dense` is the same net trained by the same
steps without pruning. All of it takes some 5,000 s of one core with `small`. It can be interrupted, and the same
command goes on; one with other --anneals or --kinds adds to what was measured. With --quick, a tiny net is
trained and pruned by two kinds of importance, and the recorded figures are checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import _nets
import _recorded
import torch
from _cifar import BUILD, Dataset
from _pruning import Verdict, open_net, run, switches, training
from baseline import settings as baseline_settings
from baseline import show
from common import conclude
from msgspec.structs import replace

from agent.optimise.pruning.connections import (
    PruneHistory,
    PruneSettings,
    anneal_settings,
    draw_curves,
    prune,
    round_settings,
)
from agent.optimise.train import evaluate, fit

FOLDER = BUILD / "pruning"
KINDS = ("weight", "random", "gradient*weight", "gradient/weight")
"""The first is the default, by which the targets are judged."""
ANNEALS = (0.0, 1.0, 2.0, 8.0)
LOSS, GAP = 0.003, 0.114
"""Most that may be lost against the dense net after the longest anneal; least gap to random after the least."""


def pruned(given: argparse.Namespace, kind: str, anneal: float, pictures: Dataset) -> tuple[float, PruneHistory]:
    """Prune a net, and return its accuracy and what happened; the rounds of a kind serve all anneals."""
    kinds = FOLDER / f"{given.net}-{given.seed}" / kind.replace("/", ":")
    folder = kinds / f"anneal-{anneal:g}"
    folder.mkdir(parents=True, exist_ok=True)
    if anneal:
        pruned(given, kind, 0.0, pictures)
        shutil.copy(kinds / "anneal-0" / "rounds.checkpoint", folder)
    net, settings = open_net(given.net), PruneSettings(importance=kind, anneal_epochs=anneal)  # type: ignore[arg-type]
    data = (pictures.pictures, pictures.labels)
    few = pictures.test_pictures[::5], pictures.test_labels[::5]
    options: dict[str, Any] = {"folder": folder, "test": few, "progress": show}
    history = prune(net, *data, settings, training(given.seed), **options)
    return _accuracy(net, pictures), history


def dense(given: argparse.Namespace, anneal: float, pictures: Dataset) -> float:
    """Train a net by the steps of `pruned`, and return its accuracy."""
    folder = FOLDER / f"{given.net}-{given.seed}" / "dense"
    folder.mkdir(parents=True, exist_ok=True)
    hot, settings = training(given.seed), PruneSettings(anneal_epochs=anneal)
    net = open_net(given.net)
    _rounds(net, settings, given.seed, pictures, folder / "rounds.pt")
    if anneal:
        file = folder / f"anneal-{anneal:g}.checkpoint"
        long = anneal_settings(hot, settings)
        fit(net, pictures.pictures, pictures.labels, long, checkpoint=file, progress=show)
    return _accuracy(net, pictures)


def _rounds(net: Any, settings: PruneSettings, seed: int, pictures: Dataset, file: Path) -> None:
    """Train a net by the steps of the rounds, or read what an earlier run has trained."""
    if file.is_file():
        net.load_state_dict(torch.load(file, weights_only=True))
        return
    for number in range(settings.rounds + 1):
        few = round_settings(training(seed), settings, len(pictures.labels), number)
        fit(net, pictures.pictures, pictures.labels, few)
    torch.save(net.state_dict(), file)


def _accuracy(net: Any, pictures: Dataset) -> float:
    return evaluate(net, *pictures.test, normalisation=_nets.NORMALISATION)


def measure(given: argparse.Namespace, pictures: Dataset) -> dict[str, float]:
    """Accuracies by kind and anneal, with those of earlier runs."""
    file = FOLDER / f"{given.net}-{given.seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    histories = {}
    for anneal in given.anneals:
        for kind in given.kinds:
            if kind == "dense":
                found = dense(given, anneal, pictures)
            else:
                found, histories[kind] = pruned(given, kind, anneal, pictures)
            figures = _kept(file) | {f"{kind}, anneal {anneal:g}": found}
            print(f"{time.strftime('%H:%M:%S')} {kind}, anneal {anneal:g}: {found:.4f}", flush=True)
            file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    file.with_suffix(".png").write_bytes(draw_curves(histories))
    return _kept(file)


def _kept(file: Path) -> dict[str, float]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def judge(figures: dict[str, float]) -> Verdict:
    """What was lost and the gap to random after each anneal; what was not measured is missed."""
    anneals = sorted({float(name.split()[-1]) for name in figures})
    lost = {one: _difference(figures, "dense", KINDS[0], one) for one in anneals}
    gaps = {one: _difference(figures, KINDS[0], "random", one) for one in anneals}
    found = {f"lost_{one:g}": loss for one, loss in lost.items() if loss is not None}
    found |= {f"gap_to_random_{one:g}": gap for one, gap in gaps.items() if gap is not None}
    others = {one: _difference(figures, "dense", KINDS[2], one) for one in anneals}
    found |= {f"lost_{one:g}_by_{KINDS[2]}": loss for one, loss in others.items() if loss is not None}
    names = f"lost_{max(ANNEALS):g}", f"gap_to_random_{min(ANNEALS):g}"
    meets = found.get(names[0], 1.0) <= LOSS and found.get(names[1], 0.0) >= GAP
    return Verdict(found, {names[0]: f"<= {LOSS}", names[1]: f">= {GAP}"}, meets)


def _difference(figures: dict[str, float], more: str, less: str, anneal: float) -> float | None:
    """The difference of two kinds after an anneal; None: one is not measured."""
    names = [f"{kind}, anneal {anneal:g}" for kind in (more, less)]
    return figures[names[0]] - figures[names[1]] if figures.keys() >= set(names) else None


def quick(pictures: Dataset) -> None:
    """Train and prune the smallest net for seconds."""
    few = pictures.pictures[::5], pictures.labels[::5]
    hot = replace(training(0), batch=256)
    net = _nets.build("tiny", pictures.pictures)
    fit(net, *few, replace(baseline_settings(1.0, 0), batch=256))
    state = {name: one.clone() for name, one in net.state_dict().items()}
    figures = {"tiny, dense": _accuracy(net, pictures)}
    for kind in KINDS[:2]:
        net.load_state_dict(state)
        settings = PruneSettings(importance=kind, rounds=4, round_steps=3, anneal_epochs=0.0)  # type: ignore[arg-type]
        prune(net, *few, settings, hot)
        figures[f"tiny, {kind}"] = _accuracy(net, pictures)
    kept = judge(_recorded.show("pruning/").get("pruning/small", {}))
    figures |= {f"recorded_{name}": value for name, value in kept.figures.items()}
    targets = {f"recorded_{name}": target for name, target in kept.targets.items()}
    better = figures["tiny, weight"] > figures["tiny, random"]
    conclude("optimise/pruning", figures, {"tiny, weight": "> random", **targets}, better and kept.meets)


def main() -> None:
    parser = switches(__doc__, "small")
    parser.add_argument("--anneals", nargs="+", type=float, default=ANNEALS, help="epochs")
    parser.add_argument("--kinds", nargs="+", default=("dense", *KINDS[:3]), choices=("dense", *KINDS))
    run("pruning", parser.parse_args(), quick, measure, judge)


if __name__ == "__main__":
    main()
