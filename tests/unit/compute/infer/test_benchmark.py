"""Choosing by measuring, among a real delegate's ways to misbehave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.infer.benchmark import (
    By,
    Measurement,
    best_of,
    choose,
    cost,
    decide,
    describe_error,
    golden_inputs,
    output_error,
    survey,
    tolerance,
)
from agent.compute.infer.delegates import DelegateProbe, probe_delegates
from agent.compute.infer.session import BackendSpec
from agent.compute.manifest import GoldenManifest, Manifest, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.models.library import open_model
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, identity_model

BY: tuple[By, ...] = ("latency", "energy")
REASONS = {
    "refuse": "the device is busy",
    "nothing": "takes none of the model's 600 operations",
    "crash-prepare": "killed by SIGSEGV",
    "crash": "killed by SIGSEGV",
    "illegal": "killed by SIGILL",
    "exit": "exit status 0",
    "hang": "hangs: an inference took longer than 10 s",
    "wrong": "answers wrongly",
    "nan": "answers wrongly: not all numbers are finite",
    "slow": "slower than the CPU",
    "fail": "the device has gone",
}


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_the_right_one_is_chosen_and_each_refusal_is_named(tmp_path: Path) -> None:
    library, model = compiled(tmp_path), open_model(str(identity_model(tmp_path)))
    names = {mode: f"external:{library}?mode={mode}" for mode in (*REASONS, "fast")}
    told: list[str] = []
    verdict = choose(model, probe_delegates(list(names.values())), cores=1, patience_s=10.0, progress=told.append)
    assert verdict.chosen.settings == {"mode": "fast"}
    measured = {one.name: one for one in verdict.measured}
    for mode, reason in REASONS.items():
        assert reason in measured[names[mode]].refused, mode
    assert measured[names["fast"]].refused == measured["cpu"].refused == ""
    assert measured[names["fast"]].delegated == 600
    assert list(dict.fromkeys(told)) == ["cpu, 1 thread", *names.values()]


def test_without_anything_better_it_is_the_cpu(tmp_path: Path) -> None:
    verdict = choose(open_model("small-speech", "3"), probe_delegates(["teflon"], tmp_path), cores=2)
    assert (verdict.chosen.kind, verdict.chosen.threads in (1, 2)) == ("cpu", True)
    assert [one.here for one in verdict.measured] == [True, True, False]
    assert all(one.p50_ms > 0.0 and one.cpu_ms > 0.0 and one.rss_mb > 10.0 for one in verdict.measured[:2])


def test_the_best_is_worth_its_trouble() -> None:
    one = Measurement("cpu", threads=1, p50_ms=10.0, cpu_ms=10.0)
    two = replace(one, threads=2, p50_ms=9.8, cpu_ms=19.0)
    three = replace(one, threads=3, p50_ms=7.0, cpu_ms=20.0)
    assert best_of([one, two], "latency", 0.97) == one
    assert best_of([one, two], "latency", 0.99) == two
    assert best_of([one, two, three], "latency", 0.97) == three
    assert best_of([one, two, three], "energy", 0.97) == one
    assert best_of([replace(one, refused="no")], "latency", 0.97) is None
    assert (cost(two, "energy"), cost(two, "latency")) == (19.0, 9.8)


def test_threads_that_were_asked_for_and_refused_are_compared_by_the_best_of_the_others() -> None:
    one = Measurement("cpu", threads=1, p50_ms=10.0)
    two = Measurement("cpu", threads=2, refused="killed by SIGSEGV")
    gpu = Measurement("gpu", p50_ms=5.0)
    found = [DelegateProbe("gpu", "GPU", BackendSpec("gpu", "accelerator", "GPU"))]
    for device, chosen in ((gpu, "gpu"), (replace(gpu, p50_ms=20.0), "cpu")):
        verdict = decide([one, two, device], found, "latency", threads=2)
        assert (verdict.chosen.backend, verdict.cpu) == (chosen, BackendSpec(threads=2))
    verdict = decide([two, gpu], found, "latency", threads=2)
    assert verdict.chosen == verdict.cpu == BackendSpec(threads=2)


def test_what_is_wrong_is_told_in_one_sentence() -> None:
    assert describe_error(0.02, 0.02) == ""
    assert describe_error(0.5, 0.02) == "answers wrongly: error 50.0%, allowed 2.0%"
    assert describe_error(float("inf"), 0.02) == "answers wrongly: not all numbers are finite"


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)), min_size=1, max_size=8))
def test_the_number_of_threads_is_within_5_percent_of_thebest_of(costs: list[tuple[float, float]]) -> None:
    tried = [
        Measurement("cpu", threads=number, p50_ms=ms, cpu_ms=cpu_ms)
        for number, (ms, cpu_ms) in enumerate(costs, 1)
    ]
    for place, by in enumerate(BY):
        chosen = decide(tried, [], by).cpu.threads
        assert costs[chosen - 1][place] <= 1.05 * min(cost[place] for cost in costs)


def test_numbers_of_threads_take_turns() -> None:
    told: list[str] = []
    survey(open_model("small-speech", "3"), [], 3, progress=told.append)
    one, two, three = (f"cpu, {number} thread{'s' * (number > 1)}" for number in (1, 2, 3))
    assert told[:9] == [one, two, three, one, two, three, three, two, one]
    assert len(set(map(told.count, (one, two, three)))) == 1


def test_where_memory_is_short_they_run_one_after_the_other() -> None:
    told: list[str] = []
    survey(open_model("small-speech", "3"), [], 2, spare_mb=1.0, progress=told.append)
    assert told == sorted(told)


SPECS = (TensorSpec("a", (1, 20, 30, 3), "uint8", 0.1), TensorSpec("b", (1, 50), "float32"))


def test_golden_inputs_are_the_same_each_time_and_fill_the_range() -> None:
    one, other = golden_inputs(SPECS), golden_inputs(SPECS)
    for case, again in zip(one, other, strict=True):
        assert all((array == same).all() for array, same in zip(case, again, strict=True))
        assert case[0].dtype == np.uint8
        assert case[0].min() < 80 < 170 < case[0].max()
        assert 0.0 <= case[1].min() < case[1].max() <= 1.0
    manifest = Manifest("m", OutputManifest("classify"))
    assert (tolerance(manifest, SPECS[:1]), tolerance(manifest, SPECS[1:])) == (0.1, 0.02)
    assert tolerance(replace(manifest, golden=GoldenManifest(tolerance=0.3)), SPECS) == 0.3


@given(scale=st.floats(0.01, 100.0), share=st.floats(0.0, 2.0), seed=st.integers(0, 100))
def test_distance_does_not_depend_on_the_scale(scale: float, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    right = random.standard_normal(2000) * scale
    wrong = right + random.standard_normal(2000) * scale * share
    assert output_error([[right]], [[wrong]], SPECS[1:]) == pytest.approx(share, rel=0.15, abs=1e-9)


@given(size=st.floats(1e-3, 1e3), off=st.floats(-0.5, 0.5), count=st.sampled_from((1, 50)))
def test_of_one_number_or_of_many_that_are_alike_the_size_counts(size: float, off: float, count: int) -> None:
    """They have no deviation, and float32 cannot be as close as a share of that."""
    right = np.full((1, count), size, np.float32)
    assert output_error([[right]], [[right * np.float32(1 + off)]], SPECS[1:]) == pytest.approx(
        abs(off), abs=1e-6
    )
    assert (
        describe_error(output_error([[right]], [[np.nextafter(right, np.float32(np.inf))]], SPECS[1:]), 0.02)
        == ""
    )


def test_what_is_not_finite_is_infinitely_far() -> None:
    right = np.ones((1, 50), np.float32)
    assert output_error([[right]], [[np.full_like(right, np.nan)]], SPECS[1:]) == float("inf")
    assert output_error([[right]], [[right]], SPECS[1:]) == 0.0
