"""Pruning whole channels of a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")
from torch import nn

from agent.errors import ModelError
from agent.optimise.pruning.channels import ChannelPruning, channels_after, channels_over_groups
from agent.optimise.recipe import PruneRecipe
from agent.optimise.train import TrainingStep, evaluate, fit
from tests.unit.optimise.pruning.test_rounds import TRAINING, StopError, examples, weights

SETTINGS = PruneRecipe(target=0.5, structured=True, rounds=2, round_steps=2, anneal_epochs=2.0)


@pytest.fixture(autouse=True)
def _small_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.pruning.channels.MULTIPLE", 2)


def network(wide: int = 12, narrow: int = 8) -> Any:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(narrow * 4, 3))


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    module = network()
    fit(module, *examples(), TRAINING)
    return dict(module.state_dict())


def dense(trained: dict[str, Any]) -> Any:
    module = network()
    module.load_state_dict(trained)
    return module


def pruned(
    trained: dict[str, Any], settings: PruneRecipe = SETTINGS, folder: Path | None = None
) -> ChannelPruning:
    run = ChannelPruning(dense(trained), *examples(), settings, TRAINING)
    run.run(folder)
    return run


@pytest.mark.parametrize("importance", ["gradient*weight", "weight", "random"])
def test_half_of_the_channels_are_gone_and_the_rest_is_trained(trained: Any, importance: Any) -> None:
    module = dense(trained)
    before = weights(module)
    run = ChannelPruning(module, *examples(), replace(SETTINGS, importance=importance), TRAINING)
    run.run()
    smaller = run.module
    assert weights(module) == before
    assert [smaller[0].out_channels, smaller[4].in_channels, smaller[4].out_channels] == [6, 6, 4]
    assert smaller[9].in_features == 16
    assert run.layers == {"0": 0.5, "4": 0.5}
    assert run.gone == 0.5
    assert evaluate(smaller, *examples(seed=1)) > 0.85


@pytest.mark.parametrize("stopped_at", [1, 3, 5, 6, 8, 11])
def test_an_interrupted_run_ends_with_the_same_bytes(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", -1.0)
    steps = []

    def progress(step: TrainingStep) -> None:
        steps.append(step)
        if len(steps) == stopped_at:
            raise StopError

    whole = pruned(trained)
    with pytest.raises(StopError):
        ChannelPruning(dense(trained), *examples(), SETTINGS, TRAINING, progress).run(tmp_path)
    resumed = pruned(trained, folder=tmp_path)
    assert weights(resumed.module) == weights(whole.module)
    assert resumed.layers == whole.layers


@given(st.integers(1, 300), st.floats(0.01, 0.99), st.integers(1, 32))
def test_the_channels_that_stay_are_a_multiple_where_there_are_enough(
    channels: int, share: float, multiple: int
) -> None:
    stay = channels_after(channels, share, multiple)
    assert 1 <= stay <= channels
    assert stay % multiple == 0 or stay == channels
    assert abs(stay - channels * (1 - share)) <= multiple


def test_a_frozen_layer_keeps_its_channels(trained: Any) -> None:
    module = dense(trained)
    module[0].weight.requires_grad = False
    run = ChannelPruning(module, *examples(), replace(SETTINGS, anneal_epochs=0.0), TRAINING)
    run.run()
    assert list(run.layers) == ["4"]
    assert [run.module[0].out_channels, run.module[4].out_channels] == [12, 4]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 64), min_size=1),
    st.floats(0.05, 0.9),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 99),
)
def test_over_all_layers_what_stays_is_the_wanted_share_and_the_least_of_each(
    channels: dict[str, int], share: float, multiple: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(count, generator=draw) for name, count in channels.items()}
    least = 0.5 * (1 - share)
    stay = channels_over_groups(scores, channels, share, least, multiple)
    for name, count in channels.items():
        assert min(count, count * least) <= stay[name] <= count
        assert stay[name] % multiple == 0 or stay[name] == count
    wanted = sum(channels.values()) * (1 - share)
    assert abs(sum(stay.values()) - wanted) <= multiple * (len(channels) + 1)


def test_over_all_layers_the_more_important_layer_keeps_more(trained: Any) -> None:
    scores = {"first": torch.arange(16.0) + 4, "second": torch.arange(16.0)}
    stay = channels_over_groups(scores, {"first": 16, "second": 16}, 0.5, 0.25, 2)
    assert stay == {"first": 10, "second": 6}


@pytest.mark.parametrize("rounds", [3, 8, 16, 32])
@pytest.mark.parametrize(
    "sizes", [{"a": 64}, {"a": 128}, {"a": 16, "b": 32, "c": 64}, {"a": 24, "b": 48, "c": 64}]
)
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_over_all_layers_no_round_takes_more_than_its_share(
    rounds: int, sizes: dict[str, int], target: float
) -> None:
    draw, left = torch.Generator().manual_seed(1), dict(sizes)
    for number in range(1, rounds + 1):
        scores = {name: torch.rand(count, generator=draw) for name, count in left.items()}
        share = target * number / rounds
        left = channels_over_groups(scores, sizes, share, 0.6 * (1 - target), 8)
        wanted = sum(sizes.values()) * (1 - share)
        assert sum(left.values()) >= wanted - 8
    assert sum(left.values()) <= wanted + 8 * len(sizes)


@pytest.mark.parametrize("live", [0, 8, 64])
def test_of_channels_that_are_alike_the_same_share_of_each_layer_goes(live: int) -> None:
    one = torch.cat([torch.rand(live), torch.zeros(64 - live)])
    assert channels_over_groups({"a": one, "b": one}, {"a": 64, "b": 64}, 0.5, 0.3, 8) == {"a": 32, "b": 32}


def test_a_target_at_which_no_channels_can_go_is_an_error(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.pruning.channels.MULTIPLE", 16)
    with pytest.raises(ModelError, match=r"no channels can go.* multiple of 16, and there are 0: 12, 4: 8"):
        pruned(trained)


def test_a_module_is_pruned_over_all_layers(trained: Any) -> None:
    smaller = pruned(trained, replace(SETTINGS, over_layers=True)).module
    stay = smaller[0].out_channels, smaller[4].out_channels
    assert sum(stay) == 10
    assert stay[0] >= 4
    assert evaluate(smaller, *examples(seed=1)) > 0.85


def test_channels_go_with_a_teacher(trained: Any) -> None:
    smaller = pruned(trained, replace(SETTINGS, teacher=0.5)).module
    assert evaluate(smaller, *examples(seed=1)) > 0.85
