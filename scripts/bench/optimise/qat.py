"""Training with the rounding in place, against post-training quantisation: INT8 and INT4, three seeds.

`int4` keeps 8 bits in the first and last layer, as `quantise` does; `int4_everywhere` has 4 in all layers. Each
seed orders the pictures anew and trains for the steps of a recipe, from what `quantise` has found, with the float
net as teacher. Accuracy on the test pictures, in the runtime; the spread is the largest less the smallest.
Figures with `further` are of the float net trained by as many further steps without rounding, and of INT4 in all
its layers without training: what of the gain is that of the steps alone. With --quick, one seed and 20 steps on a
net that is trained for seconds.
"""

from __future__ import annotations

from argparse import Namespace

import _nets
import _recorded
import numpy as np
import torch
from _cifar import Dataset, cifar
from _pruning import training
from _quantised import FloatNet, brief_net, open_net, packed
from baseline import trained
from common import arguments, conclude, data_argument
from msgspec.structs import replace

from agent.optimise.pruning.rounds import anneal_settings
from agent.optimise.quantise import QuantisedModel
from agent.optimise.recipe import PruneRecipe, QatRecipe
from agent.optimise.train import fit

GAIN, LOSS = 0.005, 0.001
KINDS = ("int8", "int4", "int4_everywhere")
_FURTHER = 0.15
"""Learning rate at the beginning of further steps without rounding, relative to that of the first training."""


def quantised(net: FloatNet, kind: str) -> QuantisedModel:
    """The net by one of `KINDS`."""
    return net.quantised("int8" if kind == "int8" else "int4", everywhere=kind == "int4_everywhere")


def measure(given: Namespace, net: FloatNet) -> dict[str, float]:
    """Accuracies of each kind before and after training."""
    steps, seeds = (20, 1) if given.quick else (given.steps, given.seeds)
    figures = {"float": net.accuracy(net.content)}
    for kind in given.kinds:
        found = quantised(net, kind)
        figures[f"{kind}_ptq"] = net.accuracy(found.content)
        print(f"{kind}: {figures[f'{kind}_ptq']:.4f} without training", flush=True)
        reached = []
        for seed in range(seeds):
            reached.append(net.accuracy(net.trained(found, QatRecipe(steps=steps), seed).content))
            print(f"{kind}, seed {seed}: {reached[-1]:.4f}", flush=True)
        figures[f"{kind}_qat"], figures[f"{kind}_spread"] = float(np.mean(reached)), float(np.ptp(reached))
        figures[f"{kind}_gain"] = figures[f"{kind}_qat"] - figures[f"{kind}_ptq"]
        figures[f"{kind}_loss"] = round(figures["float"] - figures[f"{kind}_qat"], 6)
    return figures


def trained_further(given: Namespace, pictures: Dataset, seed: int) -> FloatNet:
    """The float net after as many steps of the same batch, whose learning rate falls from that of an anneal."""
    net = trained(given.net, pictures)
    _nets.heat(net)
    recipe = QatRecipe()
    falling = PruneRecipe(anneal_epochs=given.steps * recipe.batch / len(pictures.labels), anneal_factor=_FURTHER)
    slower = replace(training(seed).slower(recipe.batch / training(seed).batch), batch=recipe.batch)
    fit(net, pictures.pictures, pictures.labels, anneal_settings(slower, falling))
    _nets.cool(net)
    return packed(net.eval(), pictures)


def without_rounding(given: Namespace, pictures: Dataset, trained: float) -> dict[str, float]:
    """What the steps alone are worth, in the mean of the seeds, and the gain over that.

    Args:
        given: command line.
        pictures: to train and test on.
        trained: accuracy of INT4 in all layers after training with the rounding in place.
    """
    reached = []
    for seed in range(given.seeds):
        net = trained_further(given, pictures, seed)
        rounded = quantised(net, "int4_everywhere")
        reached.append((net.accuracy(net.content), net.accuracy(rounded.content)))
        print(f"further, seed {seed}: float {reached[-1][0]:.4f}, INT4 {reached[-1][1]:.4f}", flush=True)
    own, rounded_further = (float(one) for one in np.mean(reached, axis=0))
    return {
        "float_further": own,
        "int4_everywhere_ptq_further": rounded_further,
        "int4_everywhere_gain_over_further": trained - rounded_further,
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="small", choices=["wide", "small", "tiny"])
    parser.add_argument("--steps", type=int, default=QatRecipe().steps)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = cifar(given.data)
    figures = measure(given, brief_net(pictures) if given.quick else open_net(given, pictures))
    if not given.quick and "int4_everywhere" in given.kinds:
        figures |= without_rounding(given, pictures, figures["int4_everywhere_qat"])
    name = _recorded.name_of("qat", given)
    if given.record:
        _recorded.record(name if len(given.kinds) == len(KINDS) else "/".join([name, *given.kinds]), figures)
    bars = {"int4_everywhere_gain": (">=", GAIN), "int8_loss": ("<=", LOSS)}
    asked = {name: bar for name, bar in bars.items() if name in figures}
    meets = all(
        (figures[name] >= bar) if sign == ">=" else (figures[name] <= bar) for name, (sign, bar) in asked.items()
    )
    conclude("optimise/qat", figures, {name: f"{sign} {bar}" for name, (sign, bar) in asked.items()}, meets)


if __name__ == "__main__":
    main()
