"""The small speech model as a list of layers: twelve, with an exit after the third, fourth, sixth and twelfth.

Layer 1 is a convolution; layers 2 to 12 are depthwise-separable, and residual where they keep the shape. Every
exit is a mean over time and a fully connected layer; the mean keeps the bands of frequency apart, since the early
layers have not yet seen how those go together.

The last layer also attends, over time. Its attention is light: one narrow head, in which each step of 40 ms sees
five learned summaries, of a fifth of the second each. It has 37 % of the parameters of dense attention, and is as
accurate (`scripts/bench/optimise/attention.py`). The weights are sigmoids of the scores and not a softmax,
https://arxiv.org/abs/2409.04431: XNNPACK has no INT8 softmax, so that one would break the graph in two; and with
sigmoids a step may also attend to nothing.
"""

from collections.abc import Mapping

from agent.optimise.graph.layers import NONE, RELU, Convolution, Network

FRAMES, MELS = 98, 40
CLASSES = 12
DEPTHS = (3, 4, 6, 12)
"""The layers after which there is an exit."""
FOLD = 4
"""Neighbouring mels that the first layer reads as channels: for INT8 kernels one channel is as dear as four."""
STEM_SIZE, STEM_STRIDE = (5, 3), (2, 1)
STEPS, HEAD, SUMMARIES = 25, 19, 5
"""Steps of the last layer, width of its attention's head, and summaries that each step sees."""


STEM_CHANNELS, CHANNELS = 16, 56
"""Channels of the first layer, and of the others."""
KERNEL = (5, 3)
"""Kernel of the depthwise convolutions: longer in time, so that early exits hear more than a part of a word."""
HALVING = 2
"""The layer after the first that halves the time again: 98 rows become 49, then 25."""

Stride = tuple[int, int]
Weights = Mapping[str, Convolution]
"""Convolutions by the name of the tensor that they write."""


def speech(weights: Weights) -> Network:
    """The network with all exits: `features` [1, 98, 40, 1] to `logits3`, …4, …6 and `logits12` [1, 12].

    `hidden3`, `hidden4` and `hidden6` are what goes on to the next exit.
    """
    net = Network("features", shapes={"features": (1, FRAMES, MELS, 1)})
    folded = net.reshape("features", (1, FRAMES, MELS // FOLD, FOLD))
    x = _conv(net, weights, folded, "stem", STEM_STRIDE, activation=RELU)
    for depth in range(2, DEPTHS[-1] + 1):
        x = _block(net, weights, x, depth)
        if depth == DEPTHS[-1]:
            x = _attention(net, weights, x)
        if depth in DEPTHS:
            _exit(net, weights, x, depth)
    return net


def outputs(depth: int) -> list[str]:
    """The tensors that leave the graph of an exit."""
    return [f"logits{depth}"] + [f"hidden{depth}"] * (depth != DEPTHS[-1])


def _conv(
    net: Network, weights: Weights, x: str, name: str, stride: Stride = (1, 1), activation: str = NONE
) -> str:
    """A convolution that keeps the size or divides it, rounding up."""
    return net.convolve(x, weights[name], name=name, stride=stride, activation=activation)


def _depthwise(net: Network, weights: Weights, x: str, name: str, stride: Stride) -> str:
    return net.convolve(x, weights[name], depthwise=True, name=name, stride=stride, activation=RELU)


def _block(net: Network, weights: Weights, x: str, depth: int) -> str:
    """Depthwise, then pointwise convolution; their result is added to what came in, if it has the same shape."""
    name = f"hidden{depth}"
    narrow = _depthwise(net, weights, x, f"block{depth}/depthwise", STEM_STRIDE if depth == HALVING else (1, 1))
    if depth == HALVING:
        return _conv(net, weights, narrow, f"block{depth}/pointwise", activation=RELU)
    return net.combine(
        "ADD", x, _conv(net, weights, narrow, f"block{depth}/pointwise"), name=name, activation=RELU
    )


def _across(net: Network, weights: Weights, x: str, name: str) -> str:
    """A weighted sum over the third axis, channel by channel: it becomes 1 wide."""
    return net.convolve(x, weights[name], depthwise=True, name=name, padding="VALID")


def _attention(net: Network, weights: Weights, x: str) -> str:
    """Attention over time to summaries, added to `x`."""
    step = _across(net, weights, x, "attention/step")
    projected = _conv(net, weights, step, "attention/projection")
    query = _channels(net, projected, 0, HEAD)
    met = _summaries(net, weights, _channels(net, projected, HEAD, 3 * HEAD))
    key, value = _channels(net, met, 0, HEAD), _channels(net, met, HEAD, 2 * HEAD)
    match = net.combine("MUL", key, query, name="attention/match")
    gate = net.each("LOGISTIC", _conv(net, weights, match, "attention/score"), "attention/gate")
    seen = net.combine("MUL", value, gate, name="attention/seen")
    gathered = _across(net, weights, seen, "attention/gathered")
    return net.combine(
        "ADD", x, _conv(net, weights, gathered, "attention/output"), name="attended", activation=RELU
    )


def _channels(net: Network, x: str, start: int, stop: int) -> str:
    return net.cut(x, 3, start, stop)


def _summaries(net: Network, weights: Weights, x: str) -> str:
    """Return a learned mean of each stretch of the steps, [1, 1, SUMMARIES, C]."""
    stretches = net.reshape(x, (1, SUMMARIES, STEPS // SUMMARIES, 2 * HEAD))
    means = _across(net, weights, stretches, "attention/summary")
    return net.reshape(means, (1, 1, SUMMARIES, 2 * HEAD))


def _exit(net: Network, weights: Weights, x: str, depth: int) -> None:
    """Mean over time, and a fully connected layer."""
    batch, _, width, channels = net.shapes[x]
    mean = net.reduce("MEAN", x, (1,), name=f"mean{depth}")
    pooled = net.reshape(mean, (batch, width * channels), f"pooled{depth}")
    name = f"logits{depth}"
    net.connect(pooled, weights[name], name=name)
