"""Channels of a torch module that can be removed, found in its graph, and modules without some of them.

Channels that meet in an addition, or pass a batch norm or a depthwise convolution, belong together: they form a
group, of which the same ones must be removed everywhere. A group is left alone if its channels reach the output,
or an operation that is not known here.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from msgspec import Struct
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from agent.errors import ModelError

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_SAME = (*_ACTIVATIONS, *_POOLS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample)
"""Modules that treat every channel alike and give as many as they take."""
_FUNCTIONS = """
relu relu6 hardswish silu gelu dropout max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate
"""
_SAME_FUNCTIONS = {torch.relu, torch.sigmoid, *(getattr(functional, name) for name in _FUNCTIONS.split())}
_SAME_METHODS = {"relu", "sigmoid", "contiguous", "clamp"}
_JOIN = {operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.mul, torch.sub}
"""Operations of two inputs, whose channels then belong together."""


class GroupMember(Struct, frozen=True):
    """A layer that has the channels of a group.

    Attributes:
        layer: name of the module.
        side: `out`: they are its outputs; `in`: its inputs; `both`: a batch norm or a depthwise convolution.
        repeat: inputs of a linear layer for each channel, side by side.
    """

    layer: str
    side: str
    repeat: int = 1


class ChannelGroup(Struct, frozen=True):
    """Channels that can only be removed together.

    Attributes:
        channels: number of them.
        members: layers that have them.
    """

    channels: int
    members: tuple[GroupMember, ...]

    @property
    def name(self) -> str:
        """Name of the first layer that gives the channels."""
        return next(one.layer for one in self.members if one.side == "out")


class _Space:
    """Channels that are known to belong together so far."""

    def __init__(self, channels: int, *, fixed: bool = False) -> None:
        self.channels, self.fixed = channels, fixed
        self.members: list[GroupMember] = []
        self.parent: _Space | None = None

    def root(self) -> _Space:
        return self if self.parent is None else self.parent.root()

    def join(self, other: _Space) -> None:
        one, two = self.root(), other.root()
        if one is not two:
            two.parent = one
            one.members += two.members
            one.fixed |= two.fixed


class _Value(Struct):
    """Channels of one value of the graph, and how many numbers stand for each, side by side."""

    space: _Space
    repeat: int = 1


def channel_groups(module: Any, shape: tuple[int, ...]) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels that can be removed, in the order of the graph.

    Args:
        module: a torch module that `torch.fx` can trace.
        shape: of one input, without the batch.

    Raises:
        ModelError: it cannot be traced, or has no such group.
    """
    search = _Search(_traced(module, shape))
    order = {name: number for number, name in enumerate(search.seen)}
    groups = [
        ChannelGroup(space.channels, tuple(sorted(space.members, key=lambda one: order[one.layer])))
        for space in {id(space.root()): space.root() for space in search.spaces}.values()
        if not space.fixed and any(one.side == "out" for one in space.members)
    ]
    groups.sort(key=lambda group: order[group.name])
    if not groups:
        kept = ", ".join(["the output", *search.unknown])
        raise ModelError(f"{type(module).__name__}: has no channels that can be removed: all reach {kept}")
    return tuple(groups)


def _traced(module: Any, shape: tuple[int, ...]) -> Any:
    module = copy.deepcopy(module).cpu().eval()
    try:
        traced = fx.symbolic_trace(module)
        ShapeProp(traced).propagate(torch.zeros(1, *shape))
    except Exception as error:  # a module's own code runs here, and may raise anything
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{type(module).__name__}: its graph cannot be traced: {reason}") from error
    return traced


class _Search:
    """Walks through a graph and joins spaces."""

    def __init__(self, traced: Any) -> None:
        self.modules = dict(traced.named_modules())
        self.values: dict[Any, _Value] = {}
        self.spaces: list[_Space] = []
        self.seen: dict[str, None] = {}
        self.unknown: list[str] = []
        for node in traced.graph.nodes:
            self._visit(node)

    def _visit(self, node: Any) -> None:
        handler: Callable[[Any], _Value | None] | None = None
        if node.op == "call_module":
            handler = self._module_handler(node)
        elif node.op in ("call_function", "call_method"):
            handler = self._function_handler(node)
        value = handler(node) if handler else None
        if value is None:
            self._fix_inputs(node)
            if node.op.startswith("call_"):
                self.unknown.append(node.target if node.op == "call_module" else node.name)
            value = _Value(self._space(_channels(node), fixed=True))
        self.values[node] = value

    def _module_handler(self, node: Any) -> Callable[[Any], _Value | None] | None:
        module = self.modules[node.target]
        if node.target in self.seen and not isinstance(module, _SAME):
            self._fix_layer(node.target)  # used twice: both uses would have to agree
            return None
        self.seen[node.target] = None
        if isinstance(module, nn.Conv2d):
            return self._convolution
        if isinstance(module, nn.BatchNorm2d):
            return self._per_channel
        if isinstance(module, nn.Linear):
            return self._linear
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return self._flattened
        return self._same if isinstance(module, _SAME) else None

    def _function_handler(self, node: Any) -> Callable[[Any], _Value | None] | None:
        if node.target in _SAME_FUNCTIONS or node.target in _SAME_METHODS:
            return self._same
        if node.target in _JOIN:
            return self._joined
        if node.target in (torch.flatten, "flatten") and node.args[1:2] == (1,):
            return self._flattened
        spatial = node.target in (torch.mean, "mean", torch.amax, "amax")
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if spatial and axes is not None and sorted(axis % 4 for axis in _list(axes)) == [2, 3]:
            return self._same
        return None

    def _space(self, channels: int, *, fixed: bool = False) -> _Space:
        self.spaces.append(_Space(channels, fixed=fixed))
        return self.spaces[-1]

    def _fix_layer(self, name: str) -> None:
        for space in self.spaces:
            space.root().fixed |= any(member.layer == name for member in space.root().members)

    def _fix_inputs(self, node: Any) -> None:
        for one in node.all_input_nodes:
            self.values[one].space.root().fixed = True

    def _convolution(self, node: Any) -> _Value | None:
        layer, value = self.modules[node.target], self.values[node.args[0]]
        if layer.groups == layer.in_channels == layer.out_channels > 1:
            return self._per_channel(node)
        if layer.groups != 1:
            return None
        value.space.root().members.append(GroupMember(node.target, "in"))
        space = self._space(layer.out_channels)
        space.members.append(GroupMember(node.target, "out"))
        return _Value(space)

    def _per_channel(self, node: Any) -> _Value:
        value = self.values[node.args[0]]
        value.space.root().members.append(GroupMember(node.target, "both"))
        return value

    def _linear(self, node: Any) -> _Value | None:
        layer, value = self.modules[node.target], self.values[node.args[0]]
        if len(_shape(node.args[0])) != 2:
            return None
        value.space.root().members.append(GroupMember(node.target, "in", value.repeat))
        space = self._space(layer.out_features)
        space.members.append(GroupMember(node.target, "out"))
        return _Value(space)

    def _same(self, node: Any) -> _Value:
        return self.values[node.args[0]]

    def _flattened(self, node: Any) -> _Value | None:
        value, before = self.values[node.args[0]], _shape(node.args[0])
        return _Value(value.space, value.repeat * (_shape(node)[1] // before[1]))

    def _joined(self, node: Any) -> _Value | None:
        inputs = [one for one in node.args[:2] if isinstance(one, fx.Node)]
        first, last = self.values[inputs[0]], self.values[inputs[-1]]
        if len({(_channels(one), len(_shape(one))) for one in inputs}) > 1 or first.repeat != last.repeat:
            return None
        first.space.join(last.space)
        return first


def _shape(node: Any) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _channels(node: Any) -> int:
    return (*_shape(node), 0, 0)[1]


def _list(axes: Any) -> list[int]:
    return list(axes) if isinstance(axes, tuple | list) else [axes]


def without_channels(module: Any, kept: Mapping[ChannelGroup, Any]) -> Any:
    """Return a copy of a module that has only some channels of these groups.

    If the removed channels of a group were zero wherever they are read, the outputs stay the same.

    Args:
        module: of which `channel_groups` has returned the groups.
        kept: indices of the channels that stay, an int64 tensor, by group; at least one of each.
    """
    smaller = copy.deepcopy(module)
    layers = dict(smaller.named_modules())
    for group, indices in kept.items():
        for member in group.members:
            _shrink(layers[member.layer], member, indices)
    return smaller


def _shrink(layer: Any, member: GroupMember, kept: Any) -> None:
    if member.side == "in":
        repeats = torch.arange(member.repeat, device=kept.device)
        places = (kept[:, None] * member.repeat + repeats).flatten()
        _select(layer, "weight", places, axis=1)
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, kept)
    outputs = {"out": ("out_channels", "out_features"), "in": ("in_channels", "in_features")}
    names = outputs.get(member.side, ("out_channels", "in_channels", "groups", "num_features"))
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, layer.weight.shape[1] if member.side == "in" else len(kept))


def _select(layer: Any, name: str, kept: Any, axis: int = 0) -> None:
    """Keep some rows of a parameter or a buffer, if the layer has it."""
    values = getattr(layer, name, None)
    if values is None:
        return
    kept = kept.to(values.device)
    if isinstance(values, nn.Parameter):
        selected = nn.Parameter(values.detach().index_select(axis, kept), requires_grad=values.requires_grad)
        setattr(layer, name, selected)
    else:
        setattr(layer, name, values.index_select(axis, kept))
