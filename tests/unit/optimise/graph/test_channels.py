"""Channels that can be removed, in networks of the shapes that matter."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")
from torch import nn

from agent.errors import ModelError
from agent.optimise.graph.channels import ChannelGroup, channel_groups, without_channels

torch.set_num_threads(1)

SHAPE = (3, 8, 8)


def unit(inputs: int, outputs: int, groups: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=groups > 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = unit(channels, 5), unit(5, channels)

    def forward(self, inputs: Any) -> Any:
        return torch.relu(inputs + self.second(self.first(inputs)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, inputs: Any) -> Any:
        return inputs * torch.sigmoid(self.excite(torch.relu(self.squeeze(inputs.mean((2, 3), keepdim=True)))))


NETS: dict[str, tuple[Any, set[str]]] = {
    "plain": (lambda: nn.Sequential(unit(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 3)), {"0.0"}),
    "hidden": (
        lambda: nn.Sequential(unit(3, 4), nn.Flatten(), nn.Linear(256, 7), nn.ReLU(), nn.Linear(7, 2)),
        {"0.0", "2"},
    ),
    "residual": (
        lambda: nn.Sequential(
            unit(3, 6), Residual(6), Residual(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        ),
        {"0.0", "1.first.0", "2.first.0"},
    ),
    "depthwise": (
        lambda: nn.Sequential(unit(3, 6), unit(6, 6, groups=6), unit(6, 4), nn.Flatten(), nn.Linear(256, 3)),
        {"0.0", "2.0"},
    ),
    "gated": (
        lambda: nn.Sequential(unit(3, 6), Gate(6), nn.Flatten(), nn.Linear(384, 3)),
        {"0.0", "1.squeeze"},
    ),
}


def built(name: str) -> Any:
    torch.manual_seed(1)
    module = NETS[name][0]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                values.data.uniform_(0.5, 2.0)
            for values in (layer.bias, layer.running_mean):
                values.data.normal_()
    return module.eval()


def silence(module: Any, group: ChannelGroup, gone: Any) -> None:
    """Make channels zero wherever they are read."""
    layers = dict(module.named_modules())
    for member in group.members:
        layer = layers[member.layer]
        if member.side == "in":
            repeats = torch.arange(member.repeat)
            layer.weight.data[:, (gone[:, None] * member.repeat + repeats).flatten()] = 0


@pytest.mark.parametrize("name", NETS)
def test_the_groups_are_those_that_can_be_removed(name: str) -> None:
    assert {group.name for group in channel_groups(built(name), SHAPE)} == NETS[name][1]


@pytest.mark.parametrize("name", NETS)
def test_removing_channels_that_nothing_reads_changes_no_answer(name: str) -> None:
    module = built(name)
    groups = channel_groups(module, SHAPE)
    kept = {}
    for group in groups:
        gone = torch.tensor([1, group.channels - 1])
        silence(module, group, gone)
        kept[group] = torch.tensor([one for one in range(group.channels) if one not in gone.tolist()])
    smaller = without_channels(module, kept)
    inputs = torch.randn(4, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(smaller(inputs), module(inputs))
    counts = [sum(one.numel() for one in net.parameters()) for net in (smaller, module)]
    assert counts[0] < counts[1]
    assert {group.channels for group in channel_groups(smaller, SHAPE)} == {len(one) for one in kept.values()}
    smaller.train()(inputs).sum().backward()


def test_channels_that_meet_in_an_addition_belong_together() -> None:
    group = next(one for one in channel_groups(built("residual"), SHAPE) if one.name == "0.0")
    outs = {one.layer for one in group.members if one.side == "out"}
    assert outs == {"0.0", "1.second.0", "2.second.0"}


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, inputs: Any) -> Any:
        return self.last(self.same(self.same(self.stem(inputs))))


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, inputs: Any) -> Any:
        return self.last(self.middle(torch.roll(self.stem(inputs), 1, 1)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, inputs: Any) -> Any:
        return self.stem(inputs) if inputs.sum() > 0 else inputs


def test_a_layer_that_is_used_twice_keeps_its_channels() -> None:
    with pytest.raises(ModelError, match="no channels that can be removed"):
        channel_groups(Reused(), SHAPE)


def test_a_module_without_channels_that_can_go_names_what_keeps_them() -> None:
    grouped = nn.Sequential(unit(3, 6), unit(6, 6, groups=2), nn.Flatten(), nn.Linear(384, 3))
    with pytest.raises(ModelError, match=r"all reach the output, 1\.0$"):
        channel_groups(grouped, SHAPE)
    with pytest.raises(ModelError, match=r"all reach the output$"):
        channel_groups(nn.Sequential(unit(3, 6)), SHAPE)


def test_channels_that_reach_an_unknown_operation_stay() -> None:
    assert [group.name for group in channel_groups(Unknown(), SHAPE)] == ["middle"]


def test_a_module_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ModelError, match="Branching: its graph cannot be traced"):
        channel_groups(Branching(), SHAPE)
    with pytest.raises(ModelError, match="cannot be traced"):
        channel_groups(built("plain"), (3, 20, 20))
