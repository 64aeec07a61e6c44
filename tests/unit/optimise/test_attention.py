"""Light attention: what a step sees, what it costs, and that XNNPACK runs all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="attention blocks need the extra [optimise]")

from agent.compute.manifest import Manifest, Model
from agent.errors import ModelError
from agent.optimise.attention import BandedAttention, LowRankAttention, PatternAttention
from agent.optimise.data import read_examples
from agent.optimise.graph.from_torch import export
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from tests.support.delegated import is_one_delegate, operations

torch.set_num_threads(1)
CHANNELS, STEPS = 56, 25
OFFSETS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)
BLOCKS: dict[str, Any] = {
    "banded": lambda: BandedAttention(CHANNELS, 20, 3),
    "pattern": lambda: PatternAttention(CHANNELS, 20, OFFSETS),
    "low-rank": lambda: LowRankAttention(CHANNELS, 16, STEPS, 5),
    "uneven": lambda: LowRankAttention(CHANNELS, 16, STEPS, 4),
}
HAVE_INT8 = {
    *("ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC", "MAX_POOL_2D", "MUL", "PAD", "RESHAPE"),
    *("SLICE", "SUB"),
}
"""Operations that XNNPACK has for INT8."""


def sequence(seed: int = 0) -> Any:
    return torch.randn(1, CHANNELS, STEPS, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BLOCKS)
def test_light_blocks_are_one_delegate_of_operations_with_int8_kernels(name: str) -> None:
    torch.manual_seed(1)
    found = export(BLOCKS[name]().eval(), (STEPS, 1, CHANNELS))
    assert is_one_delegate(found.content)
    assert set(operations(found.content)) - {"DELEGATE"} <= HAVE_INT8
    assert found.outputs["logits"] == (1, STEPS, 1, CHANNELS)


@pytest.mark.parametrize("name", ["banded", "pattern", "low-rank"])
def test_a_light_block_stays_one_delegate_when_it_is_quantised(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    block = BLOCKS[name]().eval()
    content = export(block, (STEPS, 1, CHANNELS)).content
    values = np.random.default_rng(2).normal(size=(16, STEPS, 1, CHANNELS)).astype(np.float32)
    np.savez(tmp_path / "steps.npz", x=values)
    model = Model(content, hashlib.sha256(content).hexdigest(), Manifest(), "block.tflite")
    examples = read_examples(tmp_path / "steps.npz", model)
    found = quantise(content, [examples], QuantiseRecipe(method="int8", examples=16))
    assert is_one_delegate(found.content)


def changed(block: Any, step: int) -> list[int]:
    """Return the steps whose result depends on this one."""
    x = sequence()
    other = x.clone()
    other[:, :, step] += 1
    with torch.no_grad():
        moved = (block(x) - block(other)).abs().amax((0, 1, 3))
    return [at for at, value in enumerate(moved.tolist()) if value > 1e-7]


def test_a_step_sees_its_band() -> None:
    torch.manual_seed(1)
    block = BLOCKS["banded"]()
    assert changed(block, 10) == list(range(7, 14))
    assert changed(block, 0) == list(range(4))


@pytest.mark.parametrize("offsets", [(-3, 0, 5), (2, 6), (-7, -1), (0,)])
def test_a_step_sees_those_at_the_distances_of_a_pattern(offsets: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    block = PatternAttention(CHANNELS, 20, offsets)
    for step in (0, 10, STEPS - 1):
        seen_by = {step - offset for offset in offsets} & set(range(STEPS))
        assert changed(block, step) == sorted(seen_by | {step})


@pytest.mark.parametrize("name", ["low-rank", "uneven"])
def test_summaries_reach_the_whole_sequence(name: str) -> None:
    torch.manual_seed(1)
    block = BLOCKS[name]().eval()
    assert changed(block, 0) == changed(block, STEPS - 1) == list(range(STEPS))


@pytest.mark.parametrize("block", [BLOCKS["banded"](), BLOCKS["low-rank"]()])
def test_every_parameter_learns(block: Any) -> None:
    block(sequence()).square().sum().backward()
    assert [name for name, one in block.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: BandedAttention(8, 4, -1), "expected 1 or more"),
        (lambda: BandedAttention(8, 0, 1), "expected 1 or more"),
        (lambda: PatternAttention(0, 4, (0, 1)), "expected 1 or more"),
        (lambda: PatternAttention(4, 4, ()), "expected 1 or more"),
        (lambda: LowRankAttention(8, 4, 10, 0), "expected 1 or more"),
        (lambda: LowRankAttention(8, 4, 10, 6), "cannot cut 10 steps into 6"),
        (lambda: LowRankAttention(8, 4, 3, 4), "cannot cut 3 steps into 4"),
        (lambda: LowRankAttention(8, 4, 0, 2), "cannot cut 0 steps into 2"),
        (
            lambda: BandedAttention(8, 4, 1)(torch.zeros(1, 9, 5, 1)),
            r"\[batch, 8, steps, 1\], got \[1, 9, 5, 1\]",
        ),
        (
            lambda: LowRankAttention(8, 4, 10, 5)(torch.zeros(1, 8, 20, 1)),
            "steps: expected a sequence of 10, got 20",
        ),
    ],
)
def test_what_cannot_be_built_or_used_is_named(make: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        make()
