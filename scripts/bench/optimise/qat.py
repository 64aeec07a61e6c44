"""Training with the rounding in place, against post-training quantisation: INT8 and INT4, three seeds.

`int4` keeps 8 bits in the first and last layer, as `quantise` does; `int4_everywhere` has 4 in all layers. Each
seed orders the pictures anew and trains for 200 steps of 256, from what `quantise` has found, with the float net
as teacher. Accuracy on the test pictures, in the runtime; the spread is the largest less the smallest. With
--quick, one seed and 20 steps on a net that is trained for seconds.
"""

from __future__ import annotations

from argparse import Namespace

import _recorded
import numpy as np
import torch
from _cifar import dataset, dataset_argument
from _quantised import FloatNet, brief_net, open_net
from common import arguments, conclude, data_argument

from agent.optimise.quantise import QuantisedModel
from agent.optimise.recipe import QatRecipe

GAIN, LOSS = 0.005, 0.001
KINDS = ("int8", "int4", "int4_everywhere")


def quantised(net: FloatNet, kind: str) -> QuantisedModel:
    """The net by one of `KINDS`."""
    return net.quantised("int8" if kind == "int8" else "int4", everywhere=kind == "int4_everywhere")


def measure(given: Namespace, net: FloatNet) -> dict[str, float]:
    """Accuracies of each kind before and after training."""
    steps, seeds = (20, 1) if given.quick else (given.steps, given.seeds)
    figures = {"float": net.accuracy(net.content)}
    for kind in KINDS:
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


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    dataset_argument(parser)
    parser.add_argument("--net", default="small", choices=["wide", "small", "tiny"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = dataset(given)
    figures = measure(given, brief_net(pictures) if given.quick else open_net(given, pictures))
    if given.record:
        _recorded.record(_recorded.name_of("qat", given), figures)
    targets = {"int4_everywhere_gain": f">= {GAIN}", "int8_loss": f"<= {LOSS}"}
    meets = figures["int4_everywhere_gain"] >= GAIN and figures["int8_loss"] <= LOSS
    conclude("optimise/qat", figures, targets, meets)


if __name__ == "__main__":
    main()
