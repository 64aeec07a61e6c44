"""How operations of PyTorch are emitted: convolutions, norms, pools, activations, arithmetic, resizes.

The operations are those of an exported graph, `torch.ops.aten`. Shapes, reductions and products of matrices are
in `aten_shapes`. Sources: https://docs.pytorch.org/docs/stable/nn.functional.html for what they compute, and
https://www.tensorflow.org/mlir/tfl_ops for what those of TFLite do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.optimise.graph.emission import NHWC, Emission, Value, feature_order
from agent.optimise.graph.layers import RELU, RELU6, Convolution, Pads, Pair, Shape

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of the module.

    Attributes:
        op: its name in `torch.ops.aten`, without the underscore of one that works in place.
        path: attributes that lead to its submodule, such as `body.0.conv`; empty: the module itself.
        name: for its layer.
        arguments: by the names of PyTorch's schema; tensors are `Value` or, if they are constant, arrays.
        shape: of the result, () if there are several.
        readers: operations that read the result, one for each time.
    """

    op: str
    path: str
    name: str
    arguments: Mapping[str, Any]
    shape: Shape
    readers: tuple[str, ...] = ()

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def refusal(self, why: str = "no operation of TFLite is known for it") -> ModelError:
        """Return the error that this operation cannot be imported."""
        return ModelError(
            f"{self.path or 'forward'}: {self.op} cannot be imported: {why}; write it with other operations, or "
            "convert the module by litert-torch, and give its .tflite to quantise, rewrite or tune"
        )


Handler = Callable[[Emission, Call], Any]


def _pair(values: Sequence[int] | int, default: Pair = (1, 1)) -> Pair:
    if isinstance(values, int):
        return (values, values)
    return (int(values[0]), int(values[-1])) if values else default


def _windows(build: Emission, call: Call, reach: Pair, before: Pair) -> tuple[bool, Pads]:
    """Return whether windows lie as with SAME padding, and the pixels to be added if they do not."""
    sizes, outs = build.shape(call["input"])[2:], call.shape[2:]
    stride = _pair(call["stride"], reach)
    totals = [
        (out - 1) * step + far - size for out, step, far, size in zip(outs, stride, reach, sizes, strict=True)
    ]
    same = all(
        out == -(-size // step) and first == max(total, 0) // 2
        for out, size, step, first, total in zip(outs, sizes, stride, before, totals, strict=True)
    )
    pads = [(first, max(total - first, 0)) for first, total in zip(before, totals, strict=True)]
    return same, ((0, 0), *pads, (0, 0))


def _convolution(build: Emission, call: Call) -> Value:
    kernel, bias = call["weight"], call["bias"]
    if not isinstance(kernel, np.ndarray) or kernel.ndim != 4:
        raise call.refusal("only two-dimensional ones with constant weights can be")
    stride, dilation = _pair(call["stride"]), _pair(call["dilation"])
    reach = (dilation[0] * (kernel.shape[2] - 1) + 1, dilation[1] * (kernel.shape[3] - 1) + 1)
    same, pads = _windows(build, call, reach, _before(call["padding"], reach))
    x = build.picture(call["input"])
    weights = Convolution(
        np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), np.float32),
        np.zeros(len(kernel), np.float32) if bias is None else bias.astype(np.float32),
    )
    if build.normalisation and x.name == build.network.entry:
        weights = weights.of_scaled(*build.normalisation)
    depthwise = call["groups"] == build.shape(x)[1] > 1
    name = build.network.convolve(
        x.name if same else build.padded(x.name, pads),
        weights,
        depthwise=depthwise,
        name=call.name,
        stride=stride,
        dilation=dilation,
        padding="SAME" if same else "VALID",
    )
    return build.made(name, x)


def _before(padding: Sequence[int] | str, reach: Pair) -> Pair:
    """Return the pixels above and to the left that PyTorch adds."""
    if isinstance(padding, str):
        return ((reach[0] - 1) // 2, (reach[1] - 1) // 2) if padding == "same" else (0, 0)
    return _pair(padding, (0, 0))


def takes_up(arguments: Mapping[str, Any]) -> bool:
    """Return True if a convolution with these arguments can take up factors and offsets of its input."""
    padding = arguments["padding"]
    padded = padding != "valid" if isinstance(padding, str) else any(padding)
    return not padded and arguments["groups"] == 1


def _linear(build: Emission, call: Call) -> Value:
    if not isinstance(call["weight"], np.ndarray):
        raise call.refusal("only one with constant weights can be")
    return connected(build, call, call["input"], call["weight"].T, call["bias"])


def connected(build: Emission, call: Call, x: Value, matrix: Numbers, bias: Numbers | None) -> Value:
    """Return the product of `x` [..., inputs] with a constant [inputs, outputs], plus a bias."""
    if x.flattened:
        matrix = matrix[feature_order(x.flattened)]
        x = replace(x, flattened=())
    last = len(x.order) - 1
    if x.order[-1] != last:
        x = build.plain(x)
    offset = np.zeros(matrix.shape[1]) if bias is None else bias
    weights = Convolution(
        np.ascontiguousarray(matrix[None, None], np.float32), offset.astype(np.float32).reshape(-1)
    )
    return build.made(build.network.connect(x.name, weights, name=call.name), x)


def _batch_norm(build: Emission, call: Call) -> Value:
    if call["training"]:
        raise call.refusal("it would use the statistics of the batch: call eval() on the module")
    mean, variance = call["running_mean"], call["running_var"]
    factor = 1 / np.sqrt(variance + call["eps"])
    factor = factor if call["weight"] is None else factor * call["weight"]
    offset = -mean * factor if call["bias"] is None else call["bias"] - mean * factor
    rank = len(build.shape(call["input"]))
    shape = (1, -1, *(1,) * (rank - 2))
    return _affine(build, call, call["input"], factor.reshape(shape), offset.reshape(shape))


def _affine(build: Emission, call: Call, x: Value, factor: Numbers, offset: Numbers) -> Value:
    """Return `factor × x + offset`, by the layer that computes `x` if that can be."""
    alone = {len(x.order) - constant.ndim + axis for constant in (factor, offset) for axis in _long(constant)}
    fits = max(factor.ndim, offset.ndim) <= len(x.order) and alone <= {x.order[-1]}
    if fits and build.fold(x, factor, offset):
        return replace(x, positive=False)
    if fits and alone and len(x.order) == 4 and x.order[-1] == 1:
        return _channelwise(build, call, x, factor, offset)
    if (factor != 1).any():
        x = _combine(build, call, "MUL", x, factor, f"{call.name}/factor")
    if (offset != 0).any():
        x = _combine(build, call, "ADD", x, offset, f"{call.name}/offset")
    return x


def _long(constant: Numbers) -> list[int]:
    return [axis for axis, size in enumerate(constant.shape) if size > 1]


def _channelwise(build: Emission, call: Call, x: Value, factor: Numbers, offset: Numbers) -> Value:
    """Return `factor × x + offset` as a depthwise convolution of one pixel: in INT8 with a scale per channel."""
    channels = build.shape(x)[1]
    kernel, bias = (np.broadcast_to(values.ravel(), channels) for values in (factor, offset))
    weights = Convolution(kernel.astype(np.float32).reshape(1, 1, 1, -1), bias.astype(np.float32))
    x = build.picture(x)
    return build.made(build.network.convolve(x.name, weights, depthwise=True, name=call.name), x)


def normalise(build: Emission, x: Value, factor: Numbers, offset: Numbers) -> Value:
    """Return `factor × x + offset` of a picture, each [channels]."""
    call = Call("normalise", "", "normalised", {}, build.shape(x))
    return _channelwise(build, call, x, factor, offset)


def _combine(build: Emission, call: Call, op: str, a: Any, b: Any, name: str = "") -> Value:
    """Return the elementwise result of two values, of which one may be an array."""
    rank = len(call.shape)
    if isinstance(a, Value) and isinstance(b, Value):
        a, b = _aligned(build, build.ranked(a, rank), build.ranked(b, rank))
        positive = a.positive and b.positive and op != "SUB"
        made = build.network.combine(op, a.name, b.name, name=build.unused(call.name))
        return build.made(made, a, positive=positive)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    value = build.ranked(value, rank)
    if np.broadcast_shapes(build.shape(value), constant.shape) != build.shape(value):
        raise call.refusal("a constant is larger than the tensor")
    operand = build.constant(name or f"{call.name}/constant", constant, value)
    names = (value.name, operand) if isinstance(a, Value) else (operand, value.name)
    positive = value.positive and bool((constant >= 0).all()) and op != "SUB"
    return build.made(build.network.combine(op, *names, name=build.unused(call.name)), value, positive=positive)


def _aligned(build: Emission, a: Value, b: Value) -> tuple[Value, Value]:
    """Return two values with their axes in the same order, that of the larger one."""
    if a.flattened or b.flattened:
        if a.flattened == b.flattened:
            return a, b
        a, b = build.plain(a), build.plain(b)
    order = max(a, b, key=lambda value: np.prod(build.shape(value))).order
    return build.ordered(a, order), build.ordered(b, order)


def _add(build: Emission, call: Call) -> Value:
    return _sum(build, call, call["input"], call["other"], call["alpha"])


def _subtract(build: Emission, call: Call) -> Value:
    return _sum(build, call, call["input"], call["other"], -call["alpha"])


def _subtract_from(build: Emission, call: Call) -> Value:
    return _sum(build, call, call["other"], call["input"], -call["alpha"])


def _sum(build: Emission, call: Call, a: Any, b: Any, weight: float) -> Value:
    """Return `a + weight × b`."""
    a, b = (x if isinstance(x, Value) else np.asarray(x, np.float64) for x in (a, b))
    if not isinstance(b, Value):
        return _affine(build, call, a, np.ones(()), weight * b)
    if not isinstance(a, Value):
        return _affine(build, call, b, np.full((), weight), a)
    if weight not in (1, -1):
        b = _affine(build, call, b, np.full((), weight), np.zeros(()))
    return _combine(build, call, "SUB" if weight == -1 else "ADD", a, b)


def _multiply(build: Emission, call: Call) -> Value:
    a, b = call["input"], call["other"]
    if isinstance(a, Value) and isinstance(b, Value):
        return _combine(build, call, "MUL", a, b)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    return _affine(build, call, value, np.asarray(constant, np.float64), np.zeros(()))


def _divide(build: Emission, call: Call) -> Value:
    a, b = call["input"], call["other"]
    if isinstance(b, Value):
        return _combine(build, call, "DIV", a if isinstance(a, Value) else np.asarray(a, np.float64), b)
    if call.arguments.get("rounding_mode"):
        raise call.refusal("it rounds")
    return _affine(build, call, a, 1 / np.asarray(b, np.float64), np.zeros(()))


def _reciprocal(build: Emission, call: Call) -> Value:
    return _combine(build, call, "DIV", np.ones(()), call["input"])


def _power(build: Emission, call: Call) -> Value:
    if call["exponent"] != 2:
        raise call.refusal("only squares can be")
    return _square(build, call)


def _square(build: Emission, call: Call) -> Value:
    """Multiply by itself: XNNPACK has no SQUARE for INT8."""
    return replace(_combine(build, call, "MUL", call["input"], call["input"]), positive=True)


def _negative(build: Emission, call: Call) -> Value:
    return _affine(build, call, call["input"], np.full((), -1.0), np.zeros(()))


def _each(op: str, *, positive: bool = False) -> Handler:
    def emit(build: Emission, call: Call) -> Value:
        x = call["input"]
        return replace(build.made(build.network.each(op, x.name, call.name), x), positive=positive)

    return emit


def _relu(build: Emission, call: Call) -> Value:
    return build.activated(call["input"], RELU)


_CLAMPS = {(0, inf): RELU, (0, 6): RELU6, (-1, 1): "RELU_N1_TO_1"}


def _clamp(build: Emission, call: Call) -> Value:
    """Limit the values: `hardtanh`, `clamp`, `relu6`."""
    low = call.arguments.get("min_val", call.arguments.get("min", 0))
    high = call.arguments.get("max_val", call.arguments.get("max", 6 if call.op == "relu6" else None))
    ends = (-inf if low is None else low, inf if high is None else high)
    if ends in _CLAMPS:
        return build.activated(call["input"], _CLAMPS[ends])
    x: Value = call["input"]
    for op, end in zip(("MAXIMUM", "MINIMUM"), ends, strict=True):
        if end not in (inf, -inf):
            x = _combine(build, call, op, x, np.full((), end), f"{call.name}/{op.lower()}")
    return replace(x, positive=ends[0] >= 0)


def _elu(build: Emission, call: Call) -> Value:
    if (call["alpha"], call["scale"], call["input_scale"]) != (1, 1, 1):
        raise call.refusal("only alpha = 1 can be")
    value: Value = _each("ELU")(build, call)
    return value


def _gelu(build: Emission, call: Call) -> Value:
    if call["approximate"] != "none":
        raise call.refusal("only approximate='none' can be")
    value: Value = _each("GELU")(build, call)
    return value


def _leaky_relu(build: Emission, call: Call) -> Value:
    x = call["input"]
    return build.made(build.network.each("LEAKY_RELU", x.name, call.name, alpha=float(call["negative_slope"])), x)


def _silu(build: Emission, call: Call) -> Value:
    x = call["input"]
    gate = build.made(build.network.each("LOGISTIC", x.name, f"{call.name}/gate"), x)
    return _combine(build, call, "MUL", x, gate)


def _hard_sigmoid(build: Emission, call: Call) -> Value:
    moved = _combine(build, call, "ADD", call["input"], np.full((), 3.0), f"{call.name}/offset")
    limited = build.activated(moved, RELU6)
    return _combine(build, call, "MUL", limited, np.full((), 1 / 6), f"{call.name}/factor")


def _hard_swish(build: Emission, call: Call) -> Value:
    """Emit three operations: XNNPACK has no HARD_SWISH for INT8, and the graph would end at each."""
    gate = _hard_sigmoid(build, call)
    return _combine(build, call, "MUL", call["input"], gate)


def _max_pool(build: Emission, call: Call) -> Value:
    x = call["input"]
    window = _pair(call["kernel_size"])
    if _pair(call["dilation"]) != (1, 1):
        raise call.refusal("its windows have gaps")
    same, pads = _windows(build, call, window, _pair(call["padding"], (0, 0)))
    if not same and any(map(any, pads)) and call.readers == ("relu",):
        x = build.activated(x, RELU)  # the maximum is monotone, and the ReLU behind it then does nothing
    picture = build.picture(x)
    name = picture.name
    if not same:
        name = build.padded(name, pads) if x.positive else build.repeated_border(name, pads)
    padding = "SAME" if same else "VALID"
    stride = _pair(call["stride"], window)
    made = build.network.pool("MAX_POOL_2D", name, window, stride=stride, padding=padding, name=call.name)
    return replace(picture, name=made, pooled=True)


def _average_pool(build: Emission, call: Call) -> Value:
    window, before = _pair(call["kernel_size"]), _pair(call["padding"], (0, 0))
    if call["divisor_override"] is not None:
        raise call.refusal("it has a divisor of its own")
    same, pads = _windows(build, call, window, before)
    counted = call["count_include_pad"] and any(map(any, pads))
    if any(map(any, pads)) and not counted and not same:
        raise call.refusal("its padding is not counted and is not that of TFLite: set count_include_pad")
    if call["ceil_mode"] and any(behind > before for before, behind in pads):
        raise call.refusal("it rounds the size up")
    x = build.picture(call["input"])
    valid = counted or not same or not any(map(any, pads))
    name = build.padded(x.name, pads) if valid else x.name
    return _averaged(build, call, replace(x, name=name), window, _pair(call["stride"], window), valid=valid)


def _averaged(build: Emission, call: Call, x: Value, window: Pair, stride: Pair, *, valid: bool) -> Value:
    """Return averages over windows by a depthwise convolution: of INT8, XNNPACK only averages whole pictures."""
    height, width, channels = build.network.shapes[x.name][1:]
    if valid and window == (height, width):
        name = build.network.reduce("MEAN", x.name, (1, 2), keep=True, name=call.name)
    elif valid:
        kernel = np.full((*window, 1, channels), 1 / prod(window), np.float32)
        weights = Convolution(kernel, np.zeros(channels, np.float32))
        name = build.network.convolve(
            x.name, weights, depthwise=True, name=call.name, stride=stride, padding="VALID"
        )
    else:
        name = build.network.pool(
            "AVERAGE_POOL_2D", x.name, window, stride=stride, padding="SAME", name=call.name
        )
    return Value(name, x.order, positive=x.positive)


def _adaptive_average(build: Emission, call: Call) -> Value:
    x = build.picture(call["input"])
    window = _adaptive_window(call, build.shape(x)[2:], call.shape[2:])
    return _averaged(build, call, x, window, window, valid=True)


def _adaptive_window(call: Call, sizes: Shape, outs: Shape) -> Pair:
    if any(size % out for size, out in zip(sizes, outs, strict=True)):
        raise call.refusal(f"{sizes[0]} × {sizes[1]} pixels do not divide into {outs[0]} × {outs[1]}")
    return (sizes[0] // outs[0], sizes[1] // outs[1])


def _adaptive_max(build: Emission, call: Call) -> list[Value | None]:
    x = build.picture(call["input"])
    sizes = build.shape(x)[2:]
    window = _adaptive_window(call, sizes, _pair(call["output_size"]))
    made = build.network.pool("MAX_POOL_2D", x.name, window, stride=window, name=call.name)
    return [replace(x, name=made, pooled=True), None]  # no operation gives the positions


def _check_ratio(build: Emission, call: Call) -> tuple[Value, Shape]:
    """Return the picture and its size after a resize."""
    x, outs = build.picture(call["input"]), call.shape[2:]
    for size, out, factor in zip(
        build.shape(x)[2:], outs, call.arguments.get("scale_factors") or outs, strict=True
    ):
        if call.arguments.get("scale_factors") and abs(size * factor - out) > 1e-6:
            raise call.refusal(f"{size} pixels × {factor} are no whole number: give the size")
    return x, outs


def _bilinear(build: Emission, call: Call) -> Value:
    x, outs = _check_ratio(build, call)
    shape = (1, *outs, build.shape(x)[1])
    sampling = "corners" if call["align_corners"] else "centres"
    name = build.network.add("RESIZE_BILINEAR", x.name, shape=shape, name=call.name, sampling=sampling)
    return Value(name, x.order, positive=x.positive)


def _nearest(build: Emission, call: Call) -> Value:
    x, outs = _check_ratio(build, call)
    (height, rest), (width, other) = map(divmod, outs, build.shape(x)[2:])
    if height == width and not rest and not other:
        return Value(_enlarged(build, x.name, height), x.order, positive=x.positive)
    sampling = "centres" if "exact" in call.op else "edges"
    shape = (1, *outs, build.shape(x)[1])
    name = build.network.add("RESIZE_NEAREST_NEIGHBOR", x.name, shape=shape, name=call.name, sampling=sampling)
    return Value(name, x.order, positive=x.positive)


def _enlarged(build: Emission, x: str, ratio: int) -> str:
    """Return a picture whose pixels are repeated. XNNPACK has no resize to the nearest, but DEPTH_TO_SPACE."""
    while ratio > 1:
        block = next(prime for prime in range(2, ratio + 1) if ratio % prime == 0)
        batch, height, width, channels = build.network.shapes[x]
        copies = build.joined([Value(x, NHWC)] * block**2, 1).name
        shape = (batch, block * height, block * width, channels)
        x, ratio = build.network.add("DEPTH_TO_SPACE", copies, shape=shape, block=block), ratio // block
    return x


HANDLERS: Mapping[str, Handler] = {
    "_upsample_nearest_exact2d": _nearest,
    "abs": _each("ABS", positive=True),
    "adaptive_avg_pool2d": _adaptive_average,
    "adaptive_max_pool2d": _adaptive_max,
    "add": _add,
    "avg_pool2d": _average_pool,
    "batch_norm": _batch_norm,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "conv2d": _convolution,
    "div": _divide,
    "elu": _elu,
    "exp": _each("EXP", positive=True),
    "gelu": _gelu,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": _hard_swish,
    "hardtanh": _clamp,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "max_pool2d": _max_pool,
    "mul": _multiply,
    "neg": _negative,
    "pow": _power,
    "reciprocal": _reciprocal,
    "relu": _relu,
    "relu6": _clamp,
    "rsqrt": _each("RSQRT", positive=True),
    "rsub": _subtract_from,
    "sigmoid": _each("LOGISTIC", positive=True),
    "silu": _silu,
    "sqrt": _each("SQRT", positive=True),
    "square": _square,
    "sub": _subtract,
    "tanh": _each("TANH"),
    "upsample_bilinear2d": _bilinear,
    "upsample_nearest2d": _nearest,
}
"""By the operation's name in `torch.ops.aten`."""
