"""What a model's report tells of its training: whether a step holds out what was learned from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.manifest import InputManifest, Manifest, Model
from agent.optimise.data import Examples
from agent.optimise.data.layouts import FoundData
from agent.optimise.report import OptimiseReport
from agent.optimise.source import judged_by_learned, learned_doubts, learned_sample
from agent.optimise.tune import split

COUNT, SHAPE = 400, (4, 4, 3)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(b"", "a" * 64, Manifest(), str(tmp_path / "net.tflite"))


def examples(count: int = COUNT, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    found = FoundData(random.integers(0, 256, (COUNT, *SHAPE), np.uint8), "pictures")
    return Examples(found, SHAPE, InputManifest(), "x.npz").take(range(count))


def write_report(model: Model, learned: tuple[str, ...], sha256: str = "a" * 64) -> None:
    report = OptimiseReport("train", "tiny", sha256_after=sha256, learned=learned)
    Path(model.path).with_suffix(".report.json").write_bytes(msgspec.json.encode(report))


def test_the_parts_of_the_training_are_known_and_not_doubted(model: Model) -> None:
    seen, held = split(examples(), 0.5)
    write_report(model, learned_sample(seen))
    assert learned_doubts(model, seen, held) == ()


@pytest.mark.parametrize(("trained", "now"), [(100, COUNT), (COUNT, 100)])
def test_another_limit_than_in_the_training_is_told(model: Model, trained: int, now: int) -> None:
    write_report(model, learned_sample(split(examples(trained), 0.5)[0]))
    (doubt,) = learned_doubts(model, *split(examples(now), 0.5))
    assert "--limit" in doubt


def test_another_share_that_is_held_out_is_told(model: Model) -> None:
    write_report(model, learned_sample(split(examples(), 0.2)[0]))
    (doubt,) = learned_doubts(model, *split(examples(), 0.5))
    assert "`held_out`" in doubt


def test_the_sample_of_a_model_that_is_trained_further_keeps_what_it_knew(model: Model) -> None:
    seen, held = split(examples(100), 0.5)
    write_report(model, learned_sample(held))
    write_report(model, learned_sample(seen, model))
    assert learned_doubts(model, seen, held)


def test_nothing_is_known_of_other_examples_or_without_a_report_of_the_model(model: Model) -> None:
    parts = split(examples(), 0.5)
    assert learned_doubts(model, *parts) == ()
    write_report(model, learned_sample(examples(seed=1)))
    assert learned_doubts(model, *parts) == ()
    write_report(model, learned_sample(parts[1]))
    assert learned_doubts(replace(model, sha256="b" * 64), *parts) == ()


def test_equal_examples_in_both_parts_are_no_doubt(model: Model) -> None:
    every = examples(100)
    seen, held = every.take(range(60)), every.take(range(50, 100))
    write_report(model, learned_sample(seen))
    assert learned_doubts(model, seen, held) == ()


def test_a_model_that_is_judged_by_what_it_was_trained_on_is_told(model: Model) -> None:
    seen, held = split(examples(100), 0.5)
    write_report(model, learned_sample(seen))
    assert judged_by_learned(model, held) == ()
    (line,) = judged_by_learned(model, examples(100))
    assert "50 of 50 that were compared" in line
    assert judged_by_learned(replace(model, sha256="b" * 64), seen) == ()
