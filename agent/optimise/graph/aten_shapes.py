"""How operations of PyTorch are emitted that move values, reduce axes or multiply matrices; see `aten`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from agent.optimise.graph.aten import Call, Handler, connected
from agent.optimise.graph.emission import NHWC, Emission, Value


def _axis(axis: int, rank: int) -> int:
    return axis % rank


def _unchanged(build: Emission, call: Call) -> Value:
    value: Value = call["input"]
    return value


def _reshape(build: Emission, call: Call) -> Value:
    return build.reshaped(call["input"], call.shape)


def _transpose(build: Emission, call: Call) -> Value:
    x = call["input"]
    axes = list(range(len(build.shape(x))))
    a, b = (_axis(call[name], len(axes)) for name in ("dim0", "dim1"))
    axes[a], axes[b] = b, a
    return _permuted(build, x, axes)


def _permute(build: Emission, call: Call) -> Value:
    x = call["input"]
    rank = len(build.shape(x))
    return _permuted(build, x, [_axis(axis, rank) for axis in call["dims"]])


def _swap(build: Emission, call: Call) -> Value:
    return _permuted(build, call["input"], [1, 0] if len(call.shape) == 2 else [0])


def _permuted(build: Emission, x: Value, axes: Sequence[int]) -> Value:
    """Return `x` with its axes in another order, which moves nothing."""
    x = build.plain(x) if x.flattened else x
    return Value(x.name, tuple(axes.index(axis) for axis in x.order), positive=x.positive)


def _slice(build: Emission, call: Call) -> Value:
    x, step = call["input"], call["step"]
    axis = _axis(call["dim"], len(call.shape))
    size = build.shape(x)[axis]
    start, stop, _ = slice(call["start"], call["end"]).indices(size)
    if step == 1:
        return build.cut(x, axis, start, stop)
    if size % step or start >= step or stop <= size - step + start:
        raise call.refusal(f"it takes some of every {step} positions, which do not divide {size}, or not all")
    shape = build.shape(x)
    grouped = build.reshaped(x, (*shape[:axis], size // step, step, *shape[axis + 1 :]))
    return build.reshaped(build.cut(grouped, axis + 1, start, start + 1), call.shape)


def _select(build: Emission, call: Call) -> Value:
    x = call["input"]
    axis = _axis(call["dim"], len(build.shape(x)))
    return _selected(build, x, axis, call["index"] % build.shape(x)[axis])


def _selected(build: Emission, x: Value, axis: int, index: int) -> Value:
    shape = build.shape(x)
    return build.reshaped(build.cut(x, axis, index, index + 1), (*shape[:axis], *shape[axis + 1 :]))


def _unbind(build: Emission, call: Call) -> list[Value]:
    x = call["input"]
    axis = _axis(call["dim"], len(build.shape(x)))
    return [_selected(build, x, axis, index) for index in range(build.shape(x)[axis])]


def _split(build: Emission, call: Call) -> list[Value]:
    """Cut into parts: `chunk`, `split`, `split_with_sizes`."""
    x = call["input"]
    axis = _axis(call["dim"], len(build.shape(x)))
    size, sizes = build.shape(x)[axis], call.arguments.get("split_sizes", call.arguments.get("split_size"))
    if sizes is None:
        sizes = -(-size // call["chunks"])
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    ends = np.cumsum([0, *sizes]).tolist()
    return [build.cut(x, axis, start, stop) for start, stop in pairwise(ends)]


def _join(build: Emission, call: Call) -> Value:
    like = next(part for part in call["tensors"] if isinstance(part, Value))
    like = build.plain(like) if like.flattened else like
    parts = [
        part if isinstance(part, Value) else Value(build.constant(f"{call.name}/part", part, like), like.order)
        for part in call["tensors"]
    ]
    return build.joined(parts, _axis(call["dim"], len(call.shape)))


def _roll(build: Emission, call: Call) -> Value:
    """Move positions along axes; those that leave at one end come in at the other."""
    x: Value = call["input"]
    if not call["dims"]:
        raise call.refusal("it has no axes")
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        axis = _axis(dim, len(call.shape))
        size = call.shape[axis]
        if at := -shift % size:
            x = build.joined([build.cut(x, axis, at, size), build.cut(x, axis, 0, at)], axis)
    return x


def _pad(build: Emission, call: Call) -> Value:
    x = call["input"]
    x = build.plain(x) if x.flattened else x
    if (
        call.arguments.get("mode", "constant") != "constant"
        or call.arguments.get("value")
        or min(call["pad"]) < 0
    ):
        raise call.refusal("only zeros can be added")
    pads = [(0, 0)] * len(call.shape)
    for at, pair in enumerate(zip(call["pad"][::2], call["pad"][1::2], strict=True)):
        pads[-1 - at] = pair
    return Value(build.padded(x.name, tuple(pads[axis] for axis in x.order)), x.order, positive=x.positive)


def _reduce(op: str) -> Handler:
    def emit(build: Emission, call: Call) -> Value:
        x = call["input"]
        x = build.plain(x) if x.flattened else x
        rank = len(x.order)
        dims = call.arguments.get("dim")
        axes = {_axis(axis, rank) for axis in ([dims] if isinstance(dims, int) else dims or range(rank))}
        if op == "REDUCE_MAX" and x.order == NHWC and axes == {2, 3}:
            return build.reshaped(_whole_maximum(build, call, x), call.shape)
        return _reduced(build, call, op, x, axes)

    return emit


def _reduced(build: Emission, call: Call, op: str, x: Value, axes: set[int], name: str = "") -> Value:
    stored = tuple(at for at, axis in enumerate(x.order) if axis in axes)
    keep = bool(call.arguments.get("keepdim"))
    kept = [axis for axis in x.order if keep or axis not in axes]
    order = tuple(sorted(kept).index(axis) for axis in kept)
    made = build.network.reduce(op, x.name, stored, keep=keep, name=name or call.name)
    return Value(made, order, positive=x.positive)


def _whole_maximum(build: Emission, call: Call, x: Value) -> Value:
    """Return the maximum over height and width as a pool, which there is for INT8 too."""
    window = (build.shape(x)[2], build.shape(x)[3])
    made = build.network.pool("MAX_POOL_2D", x.name, window, stride=window, name=call.name)
    return replace(x, name=made, pooled=True)


def _softmax(build: Emission, call: Call) -> Value:
    x = call["input"]
    x = build.plain(x) if x.flattened else x
    axis = _axis(call["dim"], len(x.order))
    if x.order[-1] != axis:
        x = build.ordered(x, (*(other for other in x.order if other != axis), axis))
    return Value(build.network.each("SOFTMAX", x.name, call.name), x.order, positive=True)


def _product(build: Emission, call: Call) -> Value:
    a = call["input"]
    b = call.arguments.get("other", call.arguments.get("mat2"))
    if isinstance(b, np.ndarray) and isinstance(a, Value) and b.ndim == 2:
        return connected(build, call, a, b, None)
    if not (isinstance(a, Value) and isinstance(b, Value)) or min(len(a.order), len(b.order)) < 2:
        raise call.refusal("only that of two matrices can be, of which the second may be constant")
    return _multiplied(build, a, b, call.name)


def _multiplied(build: Emission, a: Value, b: Value, name: str) -> Value:
    """Return the product of matrices; one that is stored transposed stays so."""
    rank = max(len(a.order), len(b.order))
    a, b = (_stacked(build, build.ranked(each, rank)) for each in (a, b))
    transposed = (a.order[-1] != rank - 1, b.order[-1] != rank - 1)
    return Value(build.network.multiply(a.name, b.name, transposed, name), tuple(range(rank)))


def _stacked(build: Emission, value: Value) -> Value:
    """Return a value whose last two axes are those of matrices, in either order."""
    plain = tuple(range(len(value.order)))
    swapped = (*plain[:-2], plain[-1], plain[-2])
    return value if value.order == swapped and not value.flattened else build.plain(value)


def _attention(build: Emission, call: Call) -> Value:
    query, key, value = call["query"], call["key"], call["value"]
    if call["attn_mask"] is not None or call["is_causal"]:
        raise call.refusal("it has a mask")
    scale = call["scale"] or build.shape(query)[-1] ** -0.5
    factor = build.constant(f"{call.name}/scale", np.full((), scale), query)
    query = build.plain(query)
    query = Value(build.network.combine("MUL", query.name, factor), query.order)
    swapped = [*range(len(key.order) - 2), len(key.order) - 1, len(key.order) - 2]
    scores = _multiplied(build, query, _permuted(build, key, swapped), f"{call.name}/scores")
    weights = Value(build.network.each("SOFTMAX", scores.name), scores.order)
    return _multiplied(build, weights, value, call.name)


def _layer_norm(build: Emission, call: Call) -> Value:
    x = build.plain(call["input"])
    if len(call["normalized_shape"]) != 1:
        raise call.refusal("only that over the last axis can be")
    return _scaled(build, call, _standardised(build, call, x, {len(x.order) - 1}), {})


def _group_norm(build: Emission, call: Call) -> Value:
    x, groups = call["input"], call["num_groups"]
    batch, channels, *sizes = build.shape(x)
    grouped = build.reshaped(x, (batch, groups, channels // groups, *sizes))
    normal = _standardised(build, call, grouped, set(range(2, len(grouped.order))))
    return _scaled(build, call, build.reshaped(normal, call.shape), {1: channels})


def _standardised(build: Emission, call: Call, x: Value, axes: set[int]) -> Value:
    """Return `x` less its mean over axes, divided by its standard deviation there."""
    net, stored = build.network, tuple(at for at, axis in enumerate(x.order) if axis in axes)
    centred = net.combine("SUB", x.name, net.reduce("MEAN", x.name, stored, keep=True))
    variance = net.reduce("MEAN", net.combine("MUL", centred, centred), stored, keep=True)
    eps = build.constant(f"{call.name}/eps", np.full((), call["eps"]), x)
    return Value(net.combine("MUL", centred, net.each("RSQRT", net.combine("ADD", variance, eps))), x.order)


def _scaled(build: Emission, call: Call, x: Value, lengths: Mapping[int, int]) -> Value:
    """Return `weight × x + bias`, each of the lengths of these axes, or as it is."""
    shape = tuple(lengths.get(axis, 1) for axis in range(len(x.order)))
    for op, argument in (("MUL", "weight"), ("ADD", "bias")):
        if call[argument] is not None:
            values = call[argument].reshape(shape) if lengths else call[argument]
            name = build.constant(f"{call.name}/{argument}", values, x)
            x = Value(build.network.combine(op, x.name, name), x.order)
    return x


def _pixel_shuffle(build: Emission, call: Call) -> Value:
    x, factor = call["input"], call["upscale_factor"]
    batch, channels, height, width = build.shape(x)
    parts = (batch, channels // factor**2, factor, factor, height, width)
    return build.reshaped(_permuted(build, build.reshaped(x, parts), (0, 1, 4, 2, 5, 3)), call.shape)


def _pixel_unshuffle(build: Emission, call: Call) -> Value:
    x, factor = call["input"], call["downscale_factor"]
    batch, channels, height, width = build.shape(x)
    parts = (batch, channels, height // factor, factor, width // factor, factor)
    return build.reshaped(_permuted(build, build.reshaped(x, parts), (0, 1, 3, 5, 2, 4)), call.shape)


def _channel_shuffle(build: Emission, call: Call) -> Value:
    x, groups = call["input"], call["groups"]
    batch, channels, *sizes = build.shape(x)
    parts = build.reshaped(x, (batch, groups, channels // groups, *sizes))
    return build.reshaped(_permuted(build, parts, (0, 2, 1, *range(3, len(parts.order)))), call.shape)


def _expand(build: Emission, call: Call) -> Value:
    x = build.ranked(call["input"], len(call.shape))
    if build.shape(x) == call.shape:
        return x
    ones = np.ones(call.shape)
    name = build.network.combine("MUL", x.name, build.constant(f"{call.name}/ones", ones, x))
    return Value(name, x.order, positive=x.positive)


HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "to"), _unchanged),
    **dict.fromkeys(("_to_copy", "_unsafe_view", "flatten", "reshape", "squeeze", "unflatten"), _reshape),
    **dict.fromkeys(("unsqueeze", "view"), _reshape),
    **dict.fromkeys(("bmm", "matmul", "mm"), _product),
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _split),
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
    "amax": _reduce("REDUCE_MAX"),
    "cat": _join,
    "channel_shuffle": _channel_shuffle,
    "expand": _expand,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "mean": _reduce("MEAN"),
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "roll": _roll,
    "scaled_dot_product_attention": _attention,
    "select": _select,
    "slice": _slice,
    "softmax": _softmax,
    "sum": _reduce("SUM"),
    "t": _swap,
    "transpose": _transpose,
    "unbind": _unbind,
}
"""By the operation's name in `torch.ops.aten`."""
