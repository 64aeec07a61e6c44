"""Networks that are known by name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.optimise.graph.from_torch import export
from agent.optimise.pruning.channels import trained_groups
from agent.optimise.training.networks import NETWORKS, tiny


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classes", [2, 7])
def test_a_network_answers_for_each_class(name: str, classes: int) -> None:
    module = NETWORKS[name](classes).eval()
    for height, width in ((64, 64), (64, 96)):
        assert module(torch.zeros(2, 3, height, width)).shape == (2, classes)


def test_tiny_takes_what_its_docstring_says() -> None:
    exported = export(tiny(2).eval(), (128, 128, 3), mean=128.0, std=64.0)
    assert exported.multiply_adds == pytest.approx(98e6, rel=0.01)
    assert exported.parameters == pytest.approx(0.65e6, rel=0.01)


def test_all_layers_of_tiny_can_lose_channels_but_the_last() -> None:
    groups = trained_groups(tiny(2), (3, 32, 32))
    assert sorted(group.channels for group in groups) == [24, 48, 96, 192]
