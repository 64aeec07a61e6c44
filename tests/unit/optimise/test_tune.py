"""Tuning with steps that help, do harm, fail, and do nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import CheckpointError, ModelError
from agent.optimise.data import Examples
from agent.optimise.evaluate import Score
from agent.optimise.profile import ModelProfile, OperatorRow
from agent.optimise.recipe.budget import Budget, parse_budget
from agent.optimise.report import LayerResult, StepResult, markdown
from agent.optimise.tune import Meters, ModelState, Progress, TunedModel, TuningStep, is_float, split, tune
from tests.support.picture_models import classifier, detector
from tests.unit.optimise.test_evaluate import MANIFEST, examples

FLOAT, INT8, UINT8 = (classifier(numbers) for numbers in ("float32", "int8", "uint8"))
MODEL = Model(FLOAT, hashlib.sha256(FLOAT).hexdigest(), MANIFEST, "colours.tflite")
TIMES = {FLOAT: 10.0, INT8: 4.0, UINT8: 4.05}


def times(contents: Sequence[bytes]) -> list[float]:
    return [TIMES.get(content, 4.0) for content in contents]


def no_profile(model: Model) -> ModelProfile:
    raise ModelError("there is no profiler")


METERS = Meters(times, lambda content, manifest: 20.0, no_profile)
"""In place of processes, which take long to start."""


def gives(content: bytes) -> TuningStep:
    def apply(state: ModelState, progress: Progress) -> ModelState:
        progress("converting")
        return ModelState(content, state.source, (LayerResult("logits", "FULLY_CONNECTED", 8, 576),), ("noted",))

    return TuningStep("convert", apply)


def failing(state: ModelState, progress: Progress) -> ModelState:
    raise ModelError("the model has custom operations")


def tuned(*steps: TuningStep, budget: Budget = Budget(), labels: Sequence[int] = (0, 1, 2) * 4) -> TunedModel:  # noqa: B008
    measured = examples(list(labels)) if labels else examples()
    return tune(MODEL, measured, steps, budget, meters=METERS)


def step_of(found: TunedModel, name: str) -> StepResult:
    return next(step for step in found.report.steps if step.name == name)


def test_a_step_that_helps_is_kept_and_reported() -> None:
    found = tuned(gives(INT8), budget=parse_budget("size<3MB, loss<0.5pp"))
    assert found.content == INT8
    report = found.report
    assert [step.name for step in report.steps] == ["before", "convert", "after"]
    before, convert, after = report.steps
    assert (before.score, convert.score, after.score) == (1.0, 1.0, 1.0)
    assert (before.size, after.size) == (len(FLOAT), len(INT8))
    assert (before.latency_ms, after.latency_ms) == (10.0, 4.0)
    assert before.memory_mb == 20.0
    assert "noted" in convert.notes
    assert report.missed == ()
    assert report.layers[0].bits == 8
    assert (report.sha256_before, report.sha256_after) == (
        MODEL.sha256,
        hashlib.sha256(INT8).hexdigest(),
    )


def test_a_step_that_does_not_help_is_not_kept() -> None:
    found = tuned(gives(INT8), gives(UINT8))
    assert found.content == INT8
    assert [step.kept for step in found.report.steps] == [True, True, False, True]


def without_weights() -> bytes:
    weights = next(tensor for tensor in read_modelfile(INT8).subgraphs[0].tensors if tensor.name == "weights")
    begin = INT8.index(weights.size.to_bytes(4, "little")) + 4  # behind the length of its buffer
    return INT8[:begin] + bytes(weights.size) + INT8[begin + weights.size :]


def test_a_step_that_loses_too_much_is_not_kept() -> None:
    found = tuned(gives(without_weights()))
    assert found.content == FLOAT
    assert [step.kept for step in found.report.steps] == [True, False]
    assert "pp" in step_of(found, "convert").notes[-1]


@pytest.mark.parametrize(("budget", "kept"), [("loss<=2pp", True), ("loss<1.9pp", False)])
def test_a_step_that_loses_no_more_than_the_limit_is_kept(
    budget: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {FLOAT: 0.52, INT8: 0.50}
    told = {content: Score("top-1", value, 50) for content, value in values.items()}
    monkeypatch.setattr("agent.optimise.tune.score", lambda content, *_, **__: told[content])
    assert step_of(tuned(gives(INT8), budget=parse_budget(budget)), "convert").kept == kept


def test_what_cannot_be_applied_is_reported_and_the_next_step_goes_on() -> None:
    found = tuned(TuningStep("fail", failing), gives(FLOAT), gives(INT8))
    assert found.content == INT8
    assert step_of(found, "fail") == StepResult("fail", kept=False, notes=("the model has custom operations",))
    assert found.report.steps[2].notes == ("nothing to do",)


def test_a_checkpoint_that_a_step_refuses_ends_the_run() -> None:
    def refusing(state: ModelState, progress: Progress) -> ModelState:
        raise CheckpointError("int8.checkpoint: belongs to another run")

    with pytest.raises(CheckpointError):
        tuned(TuningStep("train", refusing), gives(INT8))


def test_a_step_for_the_budget_is_left_out_when_it_is_met() -> None:
    spare = TuningStep("shrink", failing, always=False)
    assert "met" in step_of(tuned(gives(INT8), spare), "shrink").notes[0]
    tight = Budget(size=10.0)
    assert "custom" in step_of(tuned(gives(INT8), spare, budget=tight), "shrink").notes[0]


def test_a_step_that_lacks_something_is_not_needed_when_the_budget_is_met() -> None:
    prune = TuningStep("prune", failing, always=False, left_out="give --module")
    met = parse_budget("size<3MB")
    assert step_of(tuned(gives(INT8), prune, budget=met), "prune").notes == ("the budget is met without it",)
    assert step_of(tuned(gives(INT8), prune, budget=Budget(size=10.0)), "prune").notes == ("give --module",)


def test_a_budget_that_cannot_be_met_says_how_near_it_came() -> None:
    found = tuned(gives(INT8), budget=parse_budget("size<1kB, latency<1ms"))
    assert len(found.report.missed) == 2
    assert found.content == INT8


def slower(times: float) -> Meters:
    """Say that what a step makes takes so many times as long."""
    return Meters(lambda contents: [1.0 if one == FLOAT else times for one in contents], *METERS[1:])


def test_what_is_nearer_to_a_budget_of_size_is_kept_though_it_is_slower() -> None:
    given = [gives(INT8)]
    without = tune(MODEL, examples(), given, Budget(), meters=slower(1.5))
    near = tune(MODEL, examples(), given, Budget(size=10.0), meters=slower(1.5))
    both = tune(MODEL, examples(), given, Budget(size=10.0, latency_ms=1.2), meters=slower(1.5))
    assert (without.content, near.content, both.content) == (FLOAT, INT8, FLOAT)
    assert "size -" in both.report.steps[-1].notes[-1]
    assert (
        both.report.steps[-1].notes[-1].endswith("; it would miss the budget: latency 1.5 ms, 0.3 ms over 1.2 ms")
    )
    assert "it would miss" not in without.report.steps[-1].notes[-1]
    slow = "slower than the model as it was on this machine, 1.5 ms instead of 1: measure both on the board"
    assert [one.report.remarks[0].startswith(slow) for one in (without, near, both)] == [False, True, False]


def test_a_small_network_that_gets_slower_is_kept_for_its_size_and_that_is_told() -> None:
    short = Meters(lambda contents: [0.015 if one == FLOAT else 0.023 for one in contents], *METERS[1:])
    found = tune(MODEL, examples(), [gives(INT8)], Budget(), meters=short)
    assert found.content == INT8
    assert found.report.remarks[0].startswith("slower than the model as it was on this machine, 0.023 ms")


def test_times_that_nobody_can_tell_apart_are_the_same() -> None:
    short = Meters(lambda contents: [0.02 if one == FLOAT else 0.021 for one in contents], *METERS[1:])
    assert tune(MODEL, examples(), [gives(INT8)], Budget(), meters=short).content == INT8


def test_a_model_that_guesses_is_told() -> None:
    (told,) = (one for one in tuned(gives(INT8), labels=(1, 2, 0) * 4).report.remarks if "guess" in one)
    assert told.startswith("the model is hardly better than a guess: ")
    assert not any("guess" in one for one in tuned(gives(INT8)).report.remarks)


def test_without_labels_the_first_model_is_the_reference() -> None:
    found = tuned(gives(INT8), labels=())
    assert found.content == INT8
    assert {step.metric for step in found.report.steps} == {"agreement"}
    assert "95 %" in "".join(step_of(found, "convert").notes)


def test_models_that_classify_nothing_have_one_metric_in_all_steps() -> None:
    content = detector()
    boxes = Model(content, hashlib.sha256(content).hexdigest(), MANIFEST, "boxes.tflite")
    report = tune(boxes, examples(), [gives(content + bytes(1))], Budget(), meters=METERS).report
    assert {step.metric for step in report.steps} == {"fidelity"}


def test_examples_are_split_without_overlap() -> None:
    everything = examples([0, 1, 2] * 4)
    one, other = split(everything, 0.5)
    assert (len(one), len(other)) == (6, 6)
    assert not set(one._rows) & set(other._rows)
    assert [len(part) for part in split(everything, 0.01)] == [11, 1]
    assert isinstance(one, Examples)


def test_models_are_measured_for_real() -> None:
    found = tune(MODEL, examples([0, 1, 2] * 4), [gives(INT8)], Budget(), meters=Meters())
    for step in found.report.steps:
        assert step.latency_ms is not None
        assert step.memory_mb is not None
        assert step.memory_mb > 5.0
    if load_runtime()[0] == "litert":
        assert {one.name for one in found.report.operations} >= {"FULLY_CONNECTED"}
        assert any("of the time" in remark for remark in found.report.remarks)


def test_quantised_weights_are_told_from_float_ones() -> None:
    assert is_float(FLOAT)
    assert not is_float(INT8)


def test_reasons_of_steps_that_failed_are_kept_and_those_left_out_are_no_failures() -> None:
    found = tuned(TuningStep("fail", failing), TuningStep("prune", failing, left_out="give --module"))
    assert found.failures == ("fail: the model has custom operations",)
    assert step_of(found, "prune").notes == ("give --module",)


@pytest.mark.parametrize(("again", "kept"), [(10.0, True), (14.0, False)])
def test_a_gain_within_what_the_model_differs_from_itself_does_not_count(again: float, kept: bool) -> None:
    def unsteady(contents: Sequence[bytes]) -> list[float]:
        same = contents[0] == contents[1]
        return [10.0, again] if same else [10.0, 8.0]

    padded = FLOAT + bytes(1)
    found = tune(
        MODEL, examples([0, 1, 2] * 4), [gives(padded)], Budget(), meters=METERS._replace(times=unsteady)
    )
    assert step_of(found, "convert").kept is kept


def test_a_time_is_its_own_measurement_and_the_model_before_is_compared_beside_it() -> None:
    """A busy moment makes the model before a step ten times as long as when it was measured itself."""

    def busy_later(contents: Sequence[bytes]) -> list[float]:
        return [2.0 if INT8 not in contents else {FLOAT: 20.0, INT8: 1.0}[content] for content in contents]

    report = tune(MODEL, examples(), [gives(INT8)], Budget(), meters=METERS._replace(times=busy_later)).report
    assert [step.latency_ms for step in report.steps] == [2.0, 1.0, 1.0]


def test_shares_of_the_time_are_of_the_operations() -> None:
    rows = (
        *(OperatorRow("CONV_2D", "", "", (), 0, 0.0, 0.0),) * 2,
        OperatorRow("", "Reshape (NC)", "", (), -1, 0.0015, 1.0),
    )

    def profiler(model: Model) -> ModelProfile:
        return ModelProfile("", "", 1, 1, 0.004, 0.0015, rows, rows[2:])

    meters = METERS._replace(times=lambda contents: [0.004] * len(contents), profiler=profiler)
    report = tune(MODEL, examples(), [], Budget(), meters=meters).report
    assert [(one.name, one.before_ms) for one in report.operations] == [("other", 0.0015), ("CONV_2D", 0.0)]
    assert "| CONV\\_2D | \\<0.001 |" in markdown(report)
    told = "\n".join(report.remarks)
    assert "before: other (Reshape (NC)) takes 100% of the time of all operations" in told


def test_a_training_is_tried_where_the_examples_that_judge_say_that_too_much_was_lost() -> None:
    def training(mends: str) -> TuningStep:
        return TuningStep("train", gives(INT8).apply, mends=mends)

    lossy = tuned(gives(without_weights()), training("convert"))
    assert [step.kept for step in lossy.report.steps] == [True, False, True, True]
    kept = step_of(tuned(gives(INT8), training("convert")), "train")
    assert kept.notes == ("not needed: convert is kept",)
    failed = step_of(tuned(TuningStep("fail", failing), training("fail")), "train")
    assert failed.notes == ("not needed: fail has no result that loses too much",)


@pytest.mark.parametrize(("budget", "allowed"), [("loss<9pp", True), ("loss<=10pp", False)])
def test_a_loss_is_mended_unless_the_budget_allows_it(
    budget: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {FLOAT: Score("top-1", 1.0, 50), INT8: Score("top-1", 0.9, 50), UINT8: Score("top-1", 1.0, 50)}
    monkeypatch.setattr("agent.optimise.tune.score", lambda content, *_, **__: told[content])
    train = TuningStep("train", gives(UINT8).apply, mends="convert")
    assert (step_of(tuned(gives(INT8), train, budget=parse_budget(budget)), "train").score is not None) is allowed


def test_other_examples_than_those_of_the_figures_decide_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = examples([0, 1, 2] * 4)
    judging = measured.take(range(8))
    lost = {(INT8, 12): 0.0, (INT8, 8): 0.3, (UINT8, 12): 0.3, (UINT8, 8): 0.0}

    def told(content: bytes, some: Examples, *_: object, **__: object) -> Score:
        return Score("top-1", 1.0 - lost.get((content, len(some)), 0.0), len(some))

    def tuned_by(budget: str, *steps: TuningStep) -> TunedModel:
        return tune(MODEL, measured, steps, parse_budget(budget), judging=judging, meters=METERS)

    monkeypatch.setattr("agent.optimise.tune.score", told)
    refused = tuned_by("loss<1pp", gives(INT8))
    assert not step_of(refused, "convert").kept
    assert step_of(refused, "convert").score == 1.0
    assert "of the 8 examples that judge" in step_of(refused, "convert").notes[-1]
    kept = tuned_by("loss<1pp", gives(UINT8), TuningStep("shrink", failing, always=False))
    assert kept.content == UINT8
    assert "met" in step_of(kept, "shrink").notes[0]
    assert kept.report.missed[0].startswith("loss 30 pp"), "the figures tell the truth"
    assert any("8 other examples have decided" in one for one in kept.report.remarks)
    assert any("12 examples of these figures have also decided" in one for one in tuned().report.remarks)
