"""Progressive pruning to 80 % of the connections: accuracy by kind of importance and length of the anneal.

Starts from the net of `optimise/baseline --net small --epochs 10`. `dense` is the same net trained by the same
steps without pruning. With --teacher, what is pruned learns from the labels and the answers of the net before,
and is compared with the same dense net; `taught dense` is one that learns from both. All of it takes some 5,000 s
of one core with `small`, without a teacher. It can be interrupted, and the same command goes on; one with other
--anneals, --kinds or --teacher adds to what was measured. With --quick, a tiny net is trained and pruned by two
kinds of importance, and the recorded figures are checked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _nets
import _recorded
import torch
from _cifar import BUILD, Dataset
from _pruning import Verdict, open_net, run, switches, training
from baseline import settings as baseline_settings
from baseline import show
from common import conclude
from msgspec.structs import replace

from agent.optimise.pruning.rounds import ConnectionPruning, anneal_settings, round_settings, to_learn
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import Labels, Objective, Pictures, TrainingSettings, evaluate, fit

FOLDER = BUILD / "pruning"
KINDS = ("weight", "random", "gradient*weight")
"""The first is the default, by which the targets are judged."""
DENSE, TAUGHT_DENSE = "dense", "taught dense"
ANNEALS = (0.0, 1.0, 2.0, 8.0)
TEACHER, TAUGHT_WIDE = 0.5, "pruning/wide-teacher-0.5"
"""Weight of the answers of the net before by which `wide` is recorded, and how names of its seeds begin."""
LOSS, GAP = 0.003, 0.114
"""Most that may be lost against the dense net after the longest anneal; least gap to random after the least."""


class Trial(NamedTuple):
    """A net on its way, and what it learns from.

    Attributes:
        net: name of one of `_nets`.
        seed: of order and augmentation.
        kind: of importance, `DENSE` or `TAUGHT_DENSE`.
        teacher: weight of the answers of the net before.
        anneal: epochs.
    """

    net: str
    seed: int
    kind: str
    teacher: float
    anneal: float

    @property
    def name(self) -> str:
        """The name of its accuracy among the figures."""
        kind = DENSE if self.kind == TAUGHT_DENSE else self.kind
        return name_of(kind, self.teacher, self.anneal)

    @property
    def folder(self) -> Path:
        """Where its checkpoints are kept, with those of other anneals."""
        told = f"-teacher-{self.teacher:g}" if self.teacher else ""
        kind = DENSE if self.kind == TAUGHT_DENSE else self.kind.replace("/", ":")
        return FOLDER / f"{self.net}-{self.seed}" / f"{kind}{told}"


def name_of(kind: str, teacher: float, anneal: float) -> str:
    """The name of an accuracy among the figures."""
    return f"{kind}, {f'teacher {teacher:g}, ' if teacher else ''}anneal {anneal:g}"


def pruned(trial: Trial, pictures: Dataset) -> float:
    """Prune a net, and return its accuracy; the rounds of a kind serve all anneals."""
    folder = trial.folder / f"anneal-{trial.anneal:g}"
    folder.mkdir(parents=True, exist_ok=True)
    rounds = "rounds.checkpoint"
    if not (folder / rounds).is_file():
        for other in sorted(trial.folder.glob(f"*/{rounds}"))[:1]:
            shutil.copy(other, folder)
    settings = PruneRecipe(importance=trial.kind, anneal_epochs=trial.anneal, teacher=trial.teacher)  # type: ignore[arg-type]
    net, data = open_net(trial.net, pictures), (pictures.pictures, pictures.labels)
    ConnectionPruning(net, *data, settings, training(trial.seed), show).run(folder)
    return _accuracy(net, pictures)


def dense(trial: Trial, pictures: Dataset) -> float:
    """Train a net by the steps of `pruned`, and return its accuracy."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    net, hot = open_net(trial.net, pictures), training(trial.seed)
    labels, objective = to_learn(net, pictures.pictures, pictures.labels, hot, trial.teacher)
    data = pictures.pictures, labels
    options: dict[str, Any] = {"objective": objective, "progress": show}
    settings = PruneRecipe(anneal_epochs=trial.anneal)
    _rounds(net, settings, hot, data, trial.folder / "rounds.pt", objective)
    if trial.anneal:
        file = trial.folder / f"anneal-{trial.anneal:g}.checkpoint"
        fit(net, *data, anneal_settings(hot, settings), checkpoint=file, **options)
    return _accuracy(net, pictures)


def _rounds(
    net: Any,
    settings: PruneRecipe,
    hot: TrainingSettings,
    data: tuple[Pictures, Labels],
    file: Path,
    objective: Objective | None,
) -> None:
    """Train a net by the steps of the rounds, or read what an earlier run has trained."""
    if file.is_file():
        net.load_state_dict(torch.load(file, weights_only=True))
        return
    for number in range(settings.rounds + 1):
        fit(net, *data, round_settings(hot, settings, len(data[1]), number), objective=objective)
    torch.save(net.state_dict(), file)


def _accuracy(net: Any, pictures: Dataset) -> float:
    return evaluate(net, *pictures.test, normalisation=_nets.NORMALISATION)


def measure(given: argparse.Namespace, pictures: Dataset) -> dict[str, float]:
    """Accuracies by kind, teacher and anneal, with those of earlier runs."""
    file = FOLDER / f"{given.net}-{given.seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for anneal in given.anneals:
        for kind in given.kinds:
            teacher = 0.0 if kind == DENSE else given.teacher
            trial = Trial(given.net, given.seed, kind, teacher, anneal)
            found = dense(trial, pictures) if kind in (DENSE, TAUGHT_DENSE) else pruned(trial, pictures)
            figures = _kept(file) | {trial.name: found}
            print(f"{time.strftime('%H:%M:%S')} {trial.name}: {found:.4f}", flush=True)
            file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return _kept(file)


def _kept(file: Path) -> dict[str, float]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def judge(figures: dict[str, float], teacher: float = 0.0) -> Verdict:
    """What was lost and the gap to random after each anneal; what was not measured is missed."""
    found: dict[str, float] = {}
    for anneal in sorted({float(name.split()[-1]) for name in figures}):
        for weight in sorted({0.0, teacher}):
            found |= _differences(figures, weight, anneal)
    names = name_of("lost", teacher, max(ANNEALS)), name_of("gap to random", teacher, min(ANNEALS))
    meets = found.get(names[0], 1.0) <= LOSS and found.get(names[1], 0.0) >= GAP
    return Verdict(found, {names[0]: f"<= {LOSS}", names[1]: f">= {GAP}"}, meets)


def _differences(figures: dict[str, float], teacher: float, anneal: float) -> dict[str, float]:
    """What was lost against both dense nets and the gap to random, of what was measured."""
    weight, plain = name_of(KINDS[0], teacher, anneal), name_of(DENSE, 0.0, anneal)
    pairs = {
        "lost": (plain, weight),
        "lost against taught dense": (name_of(DENSE, teacher, anneal), weight),
        "gap to random": (weight, name_of("random", teacher, anneal)),
        f"lost by {KINDS[2]}": (plain, name_of(KINDS[2], teacher, anneal)),
    }
    if not teacher:
        del pairs["lost against taught dense"]
    return {
        name_of(told, teacher, anneal): figures[more] - figures[less]
        for told, (more, less) in pairs.items()
        if figures.keys() >= {more, less}
    }


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
        settings = PruneRecipe(importance=kind, rounds=4, round_steps=3, anneal_epochs=0.0)  # type: ignore[arg-type]
        ConnectionPruning(net, *few, settings, hot).run()
        figures[f"tiny, {kind}"] = _accuracy(net, pictures)
    recorded = _recorded.show("pruning/")
    kept = judge(recorded.get("pruning/small", {}))
    figures |= {f"recorded_{name}": value for name, value in kept.figures.items()}
    targets = {f"recorded_{name}": target for name, target in kept.targets.items()}
    lost = name_of("lost", TEACHER, max(ANNEALS))
    seeds = [judge(one, TEACHER).figures[lost] for name, one in recorded.items() if name.startswith(TAUGHT_WIDE)]
    figures |= {"recorded_wide_lost, teacher, most": max(seeds), "recorded_wide_seeds": float(len(seeds))}
    targets["recorded_wide_lost, teacher, most"] = f"<= {LOSS}"
    meets = kept.meets and max(seeds) <= LOSS and figures["tiny, weight"] > figures["tiny, random"]
    conclude("optimise/pruning", figures, {"tiny, weight": "> random", **targets}, meets)


def main() -> None:
    parser = switches(__doc__, "small")
    parser.add_argument("--anneals", nargs="+", type=float, default=ANNEALS, help="epochs")
    kinds = (DENSE, TAUGHT_DENSE, *KINDS)
    parser.add_argument("--kinds", nargs="+", default=(DENSE, *KINDS), choices=kinds)
    parser.add_argument("--teacher", type=float, default=0.0, help="weight of the answers of the net before")
    given = parser.parse_args()
    variant = f"-teacher-{given.teacher:g}" if given.teacher else ""
    run("pruning", given, quick, measure, partial(judge, teacher=given.teacher), variant)


if __name__ == "__main__":
    main()
