"""Static INT8: the accuracy that it costs, and the time that it saves, on nets of several sizes.

Accuracy: the baseline net on 5,000 test pictures of CIFAR-10, in the runtime. Time: against the float file, one
thread, in turns, medians; nets with random weights have the times of trained ones. INT8 gains next to nothing on
x86-64 without instructions for it, so the ratio is also predicted for a Pi 4B, from published times of other
networks. With --quick, a net that is trained for seconds takes the baseline's place.
"""

from __future__ import annotations

import _nets
import _recorded
import torch
from _cifar import cifar
from _quantised import FloatNet, brief_net, open_net, packed
from board_predictor import find_board, predict
from board_work import work_of
from common import arguments, conclude, data_argument

from agent.compute.tflite.read import read_modelfile
from agent.optimise.evaluate import time_ms

LOSS, QUICK_LOSS, FASTER = 0.003, 0.015, 2.3
"""Accuracy that INT8 may cost, and that it may with `--quick`, on few pictures; times as fast as float."""
NETS = {"wide": 118, "small": 55, "mobilenet": 51, "resnet20": 41}
"""Multiply-adds, millions."""
BOARD = "pi4b"


def speed(net: FloatNet, rounds: int) -> tuple[float, float]:
    """Time of the float file as a multiple of that of the INT8 file: here, and as predicted for a board."""
    files = [net.content, net.quantised(method="int8").content]
    board = find_board(BOARD)
    before, after = time_ms(files, rounds)
    float_there, int8_there = (predict(work_of(read_modelfile(one).graph("")), board, 1).ms for one in files)
    return before / after, float_there / int8_there


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--net", default="wide", choices=["wide", "small", "tiny"])
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = cifar(given.data)
    net = brief_net(pictures) if given.quick else open_net(given, pictures)
    found = net.quantised(method="int8")
    figures = {"float": net.accuracy(net.content), "int8": net.accuracy(found.content)}
    figures["loss"] = figures["float"] - figures["int8"]
    for name in ["wide"] if given.quick else NETS:
        plain = packed(_nets.build(name, pictures.pictures).eval(), pictures)
        here, there = speed(plain, 10 if given.quick else 40)
        figures |= {f"faster_{name}": here, f"faster_{name}_{BOARD}_predicted": there}
        print(
            f"{name}, {NETS[name]} million multiply-adds: {here:.2f} times as fast, {there:.2f} on a {BOARD} by "
            "prediction",
            flush=True,
        )
    if given.record:
        _recorded.record(_recorded.name_of("int8", given), figures)
    loss = QUICK_LOSS if given.quick else LOSS
    conclude("optimise/int8", figures, {"loss": f"<= {loss}", "faster_wide": f">= {FASTER}"})


if __name__ == "__main__":
    main()
