"""Modules of PyTorch as `.tflite` files: the same results, in one delegate."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="importing modules needs the extra [optimise]")
from ai_edge_litert import interpreter
from torch import nn
from torch.nn import functional

from agent.errors import ModelError
from agent.optimise.graph.from_torch import (
    TOLERANCE,
    ImportedModule,
    _share,
    common_normalisation,
    export,
    float_tflite,
)
from tests.support.delegated import is_one_delegate, operations

torch.set_num_threads(1)
MEANS, STDS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Seq = nn.Sequential


def randomised(module: Any) -> Any:
    """Return the module with statistics as if it were trained."""
    torch.manual_seed(3)
    for one in module.modules():
        if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
            one.running_mean.normal_(0, 0.3)
            one.running_var.uniform_(0.5, 2)
            one.weight.data.uniform_(0.5, 2)
            one.bias.data.normal_(0, 0.3)
    return module


def imported(module: Any, shape: tuple[int, int, int] = (16, 16, 3), **normalisation: Any) -> ImportedModule:
    found = export(randomised(module), shape, **normalisation)
    assert found.difference <= TOLERANCE
    return found


def test_what_the_runtime_tells_of_itself_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Telling(interpreter.Interpreter):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)

        def allocate_tensors(self) -> None:
            os.write(2, b"INFO: Created a delegate\n")  # once a process
            super().allocate_tensors()

    monkeypatch.setattr(interpreter, "Interpreter", Telling)
    imported(conv_norm(3, 8))
    assert "INFO" not in capfd.readouterr().err


def conv_norm(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return Seq(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs)
        self.short = conv_norm(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()

    def forward(self, x: Any) -> Any:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.short(x))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, wide = stride, 3 * inputs
        deep = conv_norm(wide, wide, 3, stride, wide)
        self.body = Seq(conv_norm(inputs, wide, 1), nn.ReLU6(), deep, nn.ReLU6(), conv_norm(wide, outputs, 1))

    def forward(self, x: Any) -> Any:
        return x + self.body(x) if self.stride == 1 else self.body(x)


class OwnConvolution(nn.Conv2d):
    """A subclass, which is traced through."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)


class PoolFirst(nn.Module):
    """Convolution, max-pool, batch norm: the norm folds through the pool; the result is divided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 2), OwnConvolution(8, 12)
        self.norm, self.last = nn.BatchNorm2d(12), nn.Linear(12, 5, bias=False)

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(self.conv(functional.relu(self.stem(x))), 2)
        x = functional.relu(self.norm(x))
        return self.last(functional.max_pool2d(x, 7).flatten(1)) / 9


class Attention(nn.Module):
    """A block whose weights are sigmoids."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, 3 * channels)

    def forward(self, x: Any) -> Any:
        batch, channels, height, width = x.shape
        rows = x.flatten(2).transpose(1, 2)
        query, key, value = self.projection(rows).chunk(3, dim=-1)
        gate = torch.sigmoid(query @ key.transpose(-1, -2) / channels**0.5)
        return x + (gate @ value).transpose(1, 2).reshape(batch, channels, height, width)


def resnet() -> Any:
    blocks = (Residual(8, 8, 1), Residual(8, 12, 2))
    return Seq(conv_norm(3, 8), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def mobile() -> Any:
    blocks = (Inverted(8, 8, 1), Inverted(8, 12, 2), conv_norm(12, 16, 1), nn.Hardswish())
    return Seq(
        conv_norm(3, 8, 3, 2), nn.ReLU6(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


def attentive() -> Any:
    return Seq(conv_norm(3, 8, 3, 2), nn.ReLU(), Attention(8), nn.Flatten(), nn.Linear(8 * 64, 4))


@pytest.mark.parametrize("build", [resnet, mobile, PoolFirst, attentive])
@pytest.mark.parametrize("normalisation", [{"mean": 121, "std": 64.0}, {"mean": MEANS, "std": STDS}])
def test_networks_give_the_same_results_in_one_delegate(build: Any, normalisation: dict[str, Any]) -> None:
    found = imported(build(), **normalisation)
    assert is_one_delegate(found.content)


def test_norms_activations_and_factors_become_part_of_the_weights() -> None:
    assert operations(imported(PoolFirst()).content) == [
        *("CONV_2D", "CONV_2D", "MAX_POOL_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "DELEGATE")
    ]
    kinds = {op for op in operations(imported(resnet()).content) if op != "DELEGATE"}
    assert kinds == {"CONV_2D", "PAD", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED"}


MODULES: dict[str, Any] = {
    "a large stem": lambda: Seq(conv_norm(3, 8, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "a border of a max-pool": lambda: Seq(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.Sigmoid()),
    "a max-pool before ReLU": lambda: Seq(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU()),
    "a size rounded up": lambda: Seq(nn.Conv2d(3, 8, 2), nn.MaxPool2d(2, ceil_mode=True)),
    "dilation": lambda: Seq(nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 0, 2)),
    "groups": lambda: Seq(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 3, groups=4)),
    "string padding": lambda: Seq(nn.Conv2d(3, 4, (2, 3), padding="same"), nn.Conv2d(4, 4, 3, padding="valid")),
    "a norm before all": lambda: Seq(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)),
    "averages": lambda: Seq(
        nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    ),
    "adaptive pools": lambda: Seq(nn.AdaptiveAvgPool2d(8), nn.AdaptiveMaxPool2d(4), nn.Tanh()),
    "activations": lambda: Seq(nn.LeakyReLU(0.2), nn.SiLU(), nn.ELU(), nn.Hardsigmoid(), nn.Hardtanh()),
    "enlarging": lambda: Seq(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3), nn.Conv2d(3, 4, 1)),
    "bilinear": lambda: Seq(
        nn.Upsample((20, 24), mode="bilinear"), nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True)
    ),
    "features": lambda: Seq(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(), nn.ReLU(), nn.Linear(784, 3)
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_layers_give_the_same_results_in_one_delegate(name: str) -> None:
    found = imported(MODULES[name](), mean=128.0, std=64.0)
    assert is_one_delegate(found.content)


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(8, 8)
        self.conv, self.factor = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Any) -> Any:
        return self.function(self, self.conv(x))


def in_place(own: Any, x: Any) -> Any:
    y = x.relu_()
    return (x + y).sub_(0.5)


def squeeze(own: Any, x: Any) -> Any:
    return x * torch.sigmoid(own.linear(x.mean((2, 3))))[:, :, None, None]


def shuffled(own: Any, x: Any) -> Any:
    """Channels of two groups in turns."""
    return x.view(1, 2, 4, 14, 14).transpose(1, 2).reshape(1, 8, 14, 14)


def normalised(own: Any, x: Any) -> Any:
    rows = x.flatten(2).transpose(1, 2)
    return functional.layer_norm(rows, (8,), own.linear.bias, own.linear.weight[0])


def softly(own: Any, x: Any) -> Any:
    query, key, value = (x.flatten(2).transpose(1, 2)[:, None],) * 3
    return functional.scaled_dot_product_attention(query, key, value)


FUNCTIONS: dict[str, Any] = {
    "in place": in_place,
    "squeeze and excite": squeeze,
    "channel shuffle": shuffled,
    "layer norm": normalised,
    "attention": softly,
    "constants": lambda own, x: (3 - x) * own.factor / 7 + 2 * x - own.factor,
    "a quotient": lambda own, x: 1 / (x.square() + 1),
    "negative": lambda own, x: functional.relu(-x) - x.abs() - (x / 99).exp().sqrt(),
    "group norm": lambda own, x: functional.group_norm(x, 2, own.linear.bias, own.linear.weight[0]),
    "pixel shuffle": lambda own, x: functional.pixel_unshuffle(functional.pixel_shuffle(x, 2) + 1, 4),
    "groups in turns": lambda own, x: functional.channel_shuffle(x, 4),
    "limits": lambda own, x: x.clamp(-0.3, 0.5) + x.clamp(min=0) * x**2,
    "many parts": lambda own, x: torch.cat([x] * 7, 1),
    "split": lambda own, x: torch.cat(x.split((2, 6), 1)[::-1], 1)[:, 1:, 2:-1],
    "one channel": lambda own, x: x[:, 3],
    "padding": lambda own, x: functional.pad(x, (1, 2, 0, 1)),
    "softmax over channels": lambda own, x: functional.softmax(x, 1),
    "maximum": lambda own, x: x.amax((2, 3)),
    "sum": lambda own, x: x.sum(1, keepdim=True),
    "rows": lambda own, x: own.linear(x.permute(0, 2, 3, 1)),
    "flat": lambda own, x: x.flatten(1),
    "a constant part": lambda own, x: torch.cat([own.factor.expand(1, 8, 1, 14), x], 2),
    "a tensor like another": lambda own, x: x + torch.ones_like(x) * x.new_full((1, 8, 1, 1), 2),
    "every second pixel": lambda own, x: torch.cat([x[:, :, ::2, 1::2], x[..., 1::2, ::2]], 1),
    "single channels": lambda own, x: x.unbind(1)[2] + x.flatten(2).unbind(-1)[3][:, :1],
    "rolled": lambda own, x: x.roll((3, -1), (2, 3)),
    "pictures and rows": lambda own, x: x.flatten(2) + own.factor[0, :, :, 0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_give_the_same_results_in_one_delegate(name: str) -> None:
    found = imported(Function(FUNCTIONS[name]))
    assert is_one_delegate(found.content)


def test_a_hard_swish_has_operations_that_xnnpack_has_for_int8() -> None:
    assert operations(imported(nn.Hardswish()).content) == ["ADD", "MUL", "MUL", "DELEGATE"]


def test_a_channel_shuffle_is_one_transpose() -> None:
    found = operations(imported(Function(shuffled)).content)
    assert found == ["CONV_2D", "RESHAPE", "TRANSPOSE", "RESHAPE", "DELEGATE"]


def test_a_norm_with_a_negative_factor_stays_behind_the_pool() -> None:
    module = randomised(Seq(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8)))
    module[2].weight.data[1] = -1.0
    found = export(module, (16, 16, 3))
    assert operations(found.content) == ["CONV_2D", "MAX_POOL_2D", "DEPTHWISE_CONV_2D", "DELEGATE"]


def test_one_mean_and_std_cost_no_operation() -> None:
    module = Seq(nn.Conv2d(3, 8, 3, padding=1))
    found = export(module, (16, 16, 3), mean=121, std=64.0)
    assert operations(found.content) == ["CONV_2D", "DELEGATE"]
    assert (found.mean, found.std) == (121.0, 64.0)


def test_a_mean_per_channel_goes_into_a_convolution_without_a_border_only() -> None:
    bare = export(Seq(nn.Conv2d(3, 8, 3)), (16, 16, 3), mean=MEANS, std=STDS)
    assert operations(bare.content) == ["CONV_2D", "DELEGATE"]
    padded = export(Seq(nn.Conv2d(3, 8, 3, padding=1)), (16, 16, 3), mean=MEANS, std=STDS)
    assert operations(padded.content) == ["DEPTHWISE_CONV_2D", "CONV_2D", "DELEGATE"]
    assert bare.mean == padded.mean == 114.0
    assert bare.std == pytest.approx(57.63)


def test_a_common_mean_is_a_whole_number() -> None:
    assert common_normalisation(127.5, 127.5) == (127.5, 127.5)
    assert common_normalisation((0, 0, 0), (1, 1, 1)) == (0.0, 1.0)
    assert common_normalisation((1.2, 2.2, 4.0), (1, 2, 3)) == (2.0, 2.0)


def test_outputs_have_the_names_of_a_dict_or_those_that_are_given() -> None:
    module = Function(lambda own, x: {"boxes": x.mean((2, 3)), "map": x})
    found = export(module, (16, 16, 3))
    assert found.outputs == {"boxes": (1, 8), "map": (1, 14, 14, 8)}
    named = export(module, (16, 16, 3), output_names=["a", "b"])
    assert list(named.outputs) == ["a", "b"]
    assert list(export(Function(lambda own, x: (x, x + 1)), (16, 16, 3)).outputs) == ["output_0", "output_1"]
    with pytest.raises(ModelError, match="2 outputs"):
        export(module, (16, 16, 3), output_names=["a"])


def test_an_unknown_operation_is_named_with_its_place() -> None:
    module = nn.Sequential()
    module.add_module("stem", nn.Conv2d(3, 8, 1))
    module.add_module("up", Seq(nn.ConvTranspose2d(8, 8, 2)))
    with pytest.raises(ModelError, match=r"up\.0.*conv_transpose2d"):
        float_tflite(module, (16, 16, 3))


@pytest.mark.parametrize(
    "module",
    [nn.Linear(7, 3), Function(lambda own, x: x if x.sum() > 0 else -x), Function(lambda own, x: torch.ones(3))],
)
def test_what_cannot_be_traced_or_ignores_its_input_is_refused(module: Any) -> None:
    with pytest.raises(ModelError):
        float_tflite(module, (16, 16, 3))


def test_a_log_softmax_is_told_to_be_needless() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.LogSoftmax(1))
    with pytest.raises(ModelError, match=r"2: log_softmax .* leave it out, since the board takes the softmax"):
        float_tflite(module, (16, 16, 3))


def test_wrong_results_are_refused() -> None:
    with pytest.raises(ModelError, match="differs"):
        export(Function(lambda own, x: x + np.random.default_rng().normal()), (16, 16, 3))


def test_results_that_are_no_numbers_differ_from_numbers() -> None:
    numbers, others = np.array([1.0, 4.0]), np.array([1.0, np.nan])
    assert _share(numbers, others) == _share(others, numbers) == np.inf
    assert _share(others, others) == 0.0
    assert _share(np.array([1.0, 2.0]), numbers) == 0.5


@pytest.mark.parametrize("numbers", [{"mean": (1, 2)}, {"std": 0.0}, {"std": (1, 1, -1)}, {"mean": float("nan")}])
def test_a_wrong_normalisation_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        export(nn.Conv2d(3, 4, 1), (16, 16, 3), **numbers)


def test_the_module_is_not_changed() -> None:
    module = resnet().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert float_tflite(module, (16, 16, 3))
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"],
)
def test_published_networks_are_one_delegate(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    found = imported(getattr(models, name)(weights=None), (64, 64, 3), mean=MEANS, std=STDS)
    assert is_one_delegate(found.content)


def test_a_branch_on_values_is_told_without_the_graph(capfd: pytest.CaptureFixture[str]) -> None:
    branch = Function(lambda own, x: x * 2 if x.sum() > 0 else -x)
    with pytest.raises(ModelError, match="depends on the values of its input") as caught:
        float_tflite(branch, (16, 16, 3))
    assert "def forward" not in f"{caught.value}{''.join(capfd.readouterr())}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_module_whose_results_are_not_finite_is_refused(value: float) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    module[1].weight.data[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"1\.weight has values that are not finite"):
        export(module, (16, 16, 3))
