"""Training with the rounding in place, against post-training quantisation: INT4 and INT8, three seeds.

Each seed orders the pictures anew and trains for 200 steps of 256, from what `quantise` has found, with the
float net as teacher. Accuracy on 5,000 test pictures of CIFAR-10, in the runtime. With --quick, one seed and 20
steps on a net that is trained for seconds.
"""

from __future__ import annotations

import _recorded
import numpy as np
import torch
from _cifar import cifar
from _quantised import brief_net, open_net
from common import arguments, conclude, data_argument

from agent.optimise.recipe import QatRecipe

GAIN, LOSS = 0.005, 0.001


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="small", choices=["wide", "small"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = cifar(given.data)
    net = brief_net(pictures) if given.quick else open_net(given.net, pictures)
    steps, seeds = (20, 1) if given.quick else (given.steps, given.seeds)
    figures = {"float": net.accuracy(net.content)}
    for method in ("int4", "int8"):
        found = net.quantised(method=method)
        figures[f"{method}_ptq"] = net.accuracy(found.content)
        reached = []
        for seed in range(seeds):
            reached.append(net.accuracy(net.trained(found, QatRecipe(steps=steps), seed).content))
            print(f"{method}, seed {seed}: {reached[-1]:.4f}", flush=True)
        figures[f"{method}_qat"], figures[f"{method}_spread"] = float(np.mean(reached)), float(np.ptp(reached))
    figures["int4_gain"] = figures["int4_qat"] - figures["int4_ptq"]
    figures["int8_loss"] = round(figures["float"] - figures["int8_qat"], 6)
    if given.record:
        _recorded.record(f"qat/{given.net}", figures)
    meets = figures["int4_gain"] >= GAIN and figures["int8_loss"] <= LOSS
    conclude("optimise/qat", figures, {"int4_gain": f">= {GAIN}", "int8_loss": f"<= {LOSS}"}, meets)


if __name__ == "__main__":
    main()
