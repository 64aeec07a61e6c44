"""Mixed INT4 and INT8 weights: size, accuracy without and with training, and time, on the baseline net.

`weights` are the bytes of all weights against FP16. The choice of bits: the first and the last layer keep 8, as
they hold 2 % of the weights. Accuracy on 5,000 test pictures of CIFAR-10, in the runtime; time against the INT8
file, in turns. With --quick, a net that is trained for seconds takes the baseline's place.
"""

from __future__ import annotations

import _recorded
import torch
from _cifar import cifar
from _quantised import brief_net, open_net
from common import arguments, conclude, data_argument

from agent.compute.tflite.expand import expand_int4
from agent.optimise.evaluate import time_ms
from agent.optimise.quantise import QuantisedModel
from agent.optimise.recipe import QatRecipe

WEIGHTS, KEPT, LOSS, SLOWER = 0.26, 0.97, 0.001, 1.1


def weights(found: QuantisedModel) -> float:
    """Bytes of the weights against 2 for each."""
    return sum(one.values * one.bits / 8 for one in found.layers) / sum(2 * one.values for one in found.layers)


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="wide", choices=["wide", "small", "tiny"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = cifar(given.data)
    net = brief_net(pictures) if given.quick else open_net(given, pictures)
    int8, found = net.quantised(method="int8"), net.quantised(method="int4")
    figures = {"weights": weights(found), "size_of_int8": len(found.content) / len(int8.content)}
    exact, rounded = net.accuracy(net.content), net.accuracy(found.content)
    before, after = time_ms([int8.content, expand_int4(found.content, "litert")], 10 if given.quick else 40)
    figures |= {"float": exact, "ptq": rounded, "ptq_of_float": rounded / exact, "time_of_int8": after / before}
    trained = net.trained(found, QatRecipe(steps=20 if given.quick else given.steps))
    figures |= {"qat": net.accuracy(trained.content)}
    figures["loss_with_qat"] = round(exact - figures["qat"], 6)  # whole pictures
    if given.record:
        _recorded.record(_recorded.name_of("mixed", given), figures)
    targets = {
        "weights": f"<= {WEIGHTS}",
        "ptq_of_float": f">= {KEPT}",
        "loss_with_qat": f"<= {LOSS}",
        "time_of_int8": f"<= {SLOWER}",
    }
    meets = (
        figures["weights"] <= WEIGHTS
        and figures["ptq_of_float"] >= KEPT
        and figures["loss_with_qat"] <= LOSS
        and figures["time_of_int8"] <= SLOWER
    )
    conclude("optimise/mixed", figures, targets, meets)


if __name__ == "__main__":
    main()
