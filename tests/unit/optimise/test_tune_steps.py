"""The steps of tuning on a tiny network that was trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="steps need the extra [optimise]")

from msgspec.structs import replace

from agent.compute.infer.litert import load_runtime
from agent.compute.manifest import InputManifest, Model
from agent.compute.tflite.read import read_modelfile
from agent.errors import CheckpointError, ConfigError, ModelError
from agent.models.library import open_manifest
from agent.optimise import tune_steps
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import Score, score, time_ms
from agent.optimise.graph.objects import dump, load
from agent.optimise.pruning.file import emitted
from agent.optimise.recipe import PruneRecipe, QuantiseRecipe, Recipe, TrainRecipe, parse_recipe
from agent.optimise.recipe.budget import Budget
from agent.optimise.report import OptimiseReport, StepResult
from agent.optimise.train import fit
from agent.optimise.tune import ModelState, Progress, TunedModel, TuningStep, is_float, split, tune
from agent.optimise.tune_steps import TuneRequest, _learned, fuse, prune_step, quantise_steps, steps_of, tune_file
from tests.unit.optimise.pruning.test_channels import network
from tests.unit.optimise.pruning.test_rounds import TRAINING, examples
from tests.unit.optimise.test_tune import METERS

if load_runtime()[0] != "litert":
    pytest.skip("steps need LiteRT", allow_module_level=True)

MANIFEST = """
file = "model.tflite"
[input]
mean = [128.0, 128.0, 128.0]
std = [64.0, 64.0, 64.0]
[output]
decoder = "classify"
labels = ["red", "green", "blue"]
"""
FACTORY = """
from torch import nn

def make():
    first = [nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8 * 4, 3))
"""
RECIPE = Recipe(
    prune=PruneRecipe(target=0.5, rounds=2, round_steps=2, anneal_epochs=1.0),
    train=TrainRecipe(batch=32, learning_rate=0.2),
    quantise=QuantiseRecipe(examples=32),
)


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.pruning.file.time_ms", partial(time_ms, rounds=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its manifest, its module with weights, and examples."""
    module, found = network(), tmp_path_factory.mktemp("tune")
    fit(module, *examples(), TRAINING)
    preparation = InputManifest(mean=(128.0,) * 3, std=(64.0,) * 3)
    (found / "model.tflite").write_bytes(emitted(module.eval(), (8, 8, 3), preparation))
    (found / "model.toml").write_text(MANIFEST)
    (found / "net.py").write_text(FACTORY)
    torch.save(module.state_dict(), found / "net.pt")
    pictures, labels = examples(160, seed=3)
    np.savez(found / "x.npz", x=pictures, y=labels)
    return found


@pytest.fixture
def model(folder: Path) -> Model:
    path = folder / "model.tflite"
    content = path.read_bytes()
    return Model(content, hashlib.sha256(content).hexdigest(), open_manifest(str(path)), str(path))


@pytest.fixture
def seen(folder: Path, model: Model) -> Examples:
    return read_examples(folder / "x.npz", model)


def request(folder: Path, **options: Any) -> TuneRequest:
    return TuneRequest(str(folder / "model.tflite"), folder / "x.npz", **options)


def test_channels_are_removed_and_what_was_quantised_is_quantised_again(
    folder: Path, model: Model, seen: Examples
) -> None:
    asked = request(folder, module=f"{folder / 'net.py'}:make", weights=folder / "net.pt")
    step = prune_step(model, seen, RECIPE, asked, Budget())

    def derive(source: bytes, progress: Progress) -> ModelState:
        return ModelState(b"quantised", source, (), ("again",), derive)

    found = step.apply(ModelState(b"before", model.content, derive=derive), quiet)
    assert (found.content, found.notes[-1]) == (b"quantised", "again")
    assert len(found.source) < len(model.content)
    assert "channels" in found.notes[0]
    assert score(found.source, seen, model.manifest).value > 0.8


def test_pruning_needs_the_module(folder: Path, model: Model, seen: Examples) -> None:
    step = prune_step(model, seen, RECIPE, request(folder), Budget())
    with pytest.raises(ModelError, match="--module"):
        step.apply(ModelState(model.content, model.content), quiet)


def test_pruning_without_its_module_is_not_needed_when_a_budget_is_met(
    folder: Path, model: Model, seen: Examples
) -> None:
    assert not prune_step(model, seen, RECIPE, request(folder), Budget(size=1e9)).always
    assert prune_step(model, seen, RECIPE, request(folder), Budget()).always, "without a budget it would help"


def test_a_model_that_is_fused_already_stays_as_it_is(model: Model) -> None:
    state = ModelState(model.content, model.content)
    assert fuse("m").apply(state, quiet).content == model.content


def test_a_checkpoint_of_another_run_is_refused_and_stays(
    folder: Path, model: Model, seen: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(content: bytes, *_: object, **__: object) -> Score:
        return Score("top-1", 1.0 if content == model.content else 0.9, 160)

    monkeypatch.setattr(tune_steps, "score", told)
    (tmp_path / "int8.checkpoint").write_bytes(b"notes")
    file, begin = parse_recipe("[quantise]\nexamples = 32", "r"), ModelState(model.content, model.content)
    with pytest.raises(CheckpointError, match=r"int8\.checkpoint: is no checkpoint"):
        quantise_steps(model, [seen], file, Budget(), "int8", seen, folder=tmp_path)[1].apply(begin, quiet)
    (tmp_path / "rounds.checkpoint").write_bytes(b"notes")
    asked = request(folder, module=f"{folder / 'net.py'}:make", weights=folder / "net.pt")
    asked = replace(asked, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"rounds\.checkpoint: is no checkpoint"):
        prune_step(model, seen, RECIPE, asked, Budget()).apply(begin, quiet)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"notes"] * 2


def test_int8_weights_are_made_of_the_float_model(model: Model, seen: Examples) -> None:
    file = parse_recipe("[quantise]\nexamples = 32", "r")
    step = quantise_steps(model, [seen], file, Budget(), "int8", seen)[0]
    found = step.apply(ModelState(model.content, model.content), quiet)
    assert not is_float(found.content)
    assert found.source == model.content
    assert {one.bits for one in found.layers} == {8}
    assert read_modelfile(found.content).ends()[0][0].dtype == "uint8"
    assert score(found.content, seen, model.manifest).value > 0.8
    with pytest.raises(ModelError, match="quantised already"):
        step.apply(ModelState(found.content, found.content), quiet)


def test_int4_is_tried_after_int8(folder: Path, model: Model, seen: Examples) -> None:
    names = [
        step.name for step in steps_of(model, [seen], parse_recipe("", "r"), Budget(), request(folder), seen)
    ]
    assert names == ["quantise, int8", "train, int8", "prune", "quantise, mixed", "train, mixed", "fuse"]
    untrained = steps_of(model, [seen], parse_recipe("", "r"), Budget(), request(folder, qat=False), seen)
    assert [step.name for step in untrained] == ["quantise, int8", "prune", "quantise, mixed", "fuse"]
    fixed = parse_recipe('[quantise]\nmethod = "dynamic"', "r")
    assert steps_of(model, [seen], fixed, Budget(), request(folder), seen)[0].name == "quantise, dynamic"


def test_of_a_quantised_model_only_the_graph_is_fused(folder: Path, model: Model, seen: Examples) -> None:
    file = parse_recipe("[quantise]\nexamples = 32", "r")
    step = quantise_steps(model, [seen], file, Budget(), "int8", seen)[0]
    quantised = replace(model, content=step.apply(ModelState(model.content, model.content), quiet).content)
    steps = steps_of(quantised, [seen], file, Budget(), request(folder), seen)
    assert [one.name for one in steps if not one.left_out] == ["fuse"]


def test_what_loses_too_much_is_trained(model: Model, seen: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(content: bytes, *_: object, **__: object) -> Score:
        return Score("top-1", 1.0 if content == model.content else 0.9, 160)

    file = parse_recipe("[quantise]\nexamples = 32\n[qat]\nsteps = 5\nbatch = 32", "r")
    steps = quantise_steps(model, [seen], file, Budget(loss=0.05), "int4", seen)
    begin = ModelState(model.content, model.content)
    plain = steps[0].apply(begin, quiet)
    monkeypatch.setattr(tune_steps, "score", told)
    trained = steps[1].apply(begin, quiet)
    assert trained.content not in (begin.content, plain.content)
    assert score(trained.content, seen, model.manifest).value > 0.8
    assert trained.derive is not None
    assert trained.derive(model.content, quiet).content == trained.content


def test_an_interrupted_training_goes_on(
    model: Model, seen: Examples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(content: bytes, *_: object, **__: object) -> Score:
        return Score("top-1", 1.0 if content == model.content else 0.9, 160)

    def interrupt(what: str) -> None:
        if "step 11 " in what:
            raise KeyboardInterrupt

    def step(folder: Path | None) -> TuningStep:
        file = parse_recipe("[quantise]\nexamples = 32\n[qat]\nsteps = 12\nbatch = 32", "r")
        return quantise_steps(model, [seen], file, Budget(), "int8", seen, folder=folder)[1]

    monkeypatch.setattr(tune_steps, "score", told)
    monkeypatch.setattr("agent.optimise.checkpoint.SAVE_EVERY_S", 0.0)
    begin = ModelState(model.content, model.content)
    with pytest.raises(KeyboardInterrupt):
        step(tmp_path).apply(begin, interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"int8.checkpoint"} <= set(tune_steps.CHECKPOINTS)
    lines: list[str] = []
    found = step(tmp_path).apply(begin, lines.append)
    assert not any("step 1 of" in line for line in lines)
    assert found.content == step(None).apply(begin, quiet).content


def test_a_training_mends_what_its_method_has_lost(model: Model, seen: Examples) -> None:
    names = [
        (one.name, one.mends)
        for one in quantise_steps(model, [seen], parse_recipe("", "r"), Budget(), "int8", seen)
    ]
    assert names == [("quantise, int8", ""), ("train, int8", "quantise, int8")]


def test_the_result_of_a_step_that_trains_has_learned_from_the_part_for_the_steps(
    model: Model, seen: Examples
) -> None:
    for name, kept, count in (("prune", True, 128), ("train, int8", False, 0), ("fuse", True, 0)):
        report = OptimiseReport("tune", "net", steps=(StepResult(name, kept=kept),))
        assert len(_learned(TunedModel(b"", report), model, seen)) == count, name


def test_a_file_is_tuned_with_its_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = folder / "r.toml"
    recipe.write_text('[quantise]\nmethod = "int8"\nexamples = 32\nlayers = [{match = "*", bits = 8}]\n')
    told: list[str] = []
    found = tune_file(request(folder, recipe=recipe), quiet, told.append)
    assert "160 examples" in told[0]
    names = [step.name for step in found.report.steps]
    assert names == ["before", "quantise, int8", "train, int8", "prune", "fuse", "after"]
    assert not is_float(found.content)
    assert {one.bits for one in found.report.layers} == {8}
    recipe.write_text('[quantise]\nlayers = [{match = "stem", bits = 8}]\n')
    with pytest.raises(ConfigError, match="matches no layer"):
        tune_file(request(folder, recipe=recipe), quiet, told.append)


def test_a_size_that_takes_pruning_and_4_bits_is_met(
    folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network(10, 6).eval()
    preparation = InputManifest(mean=(128.0,) * 3, std=(64.0,) * 3)
    smaller = emitted(module, (8, 8, 3), preparation)

    def prune(state: ModelState, progress: Progress) -> ModelState:
        assert state.derive is not None
        return state.derive(smaller, progress)

    monkeypatch.setattr(tune_steps, "_check_pruning", lambda *_: None)
    monkeypatch.setattr(tune_steps, "prune_step", lambda *_: TuningStep("prune", prune))
    (folder / "few.toml").write_text("[quantise]\nexamples = 8\n")
    asked = request(folder, recipe=folder / "few.toml", budget="size<3600B, loss<=100pp", qat=False, module="n:m")
    found = tune_file(asked, quiet, quiet, METERS)
    sizes = {step.name: step.size for step in found.report.steps if step.score is not None}
    assert sizes["prune"] > 3600, "INT8 is too large"
    assert (found.report.missed, sizes["after"]) == ((), sizes["quantise, mixed"])
    assert {one.bits for one in found.report.layers} == {4, 8}


def names_of(some: Examples) -> set[str]:
    return {some.name(index) for index in range(len(some))}


def test_examples_that_judge_are_neither_those_of_the_figures_nor_any_that_the_model_was_trained_on(
    folder: Path, seen: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Examples] = {}

    def steps(_model: Model, seen: Sequence[Examples], *_: object) -> list[TuningStep]:
        given["steps"] = seen[0]
        return []

    def note(*args: Any, judging: Examples | None, **options: Any) -> TunedModel:
        given.update(figures=args[1], judging=judging or args[1])
        return tune(*args, judging=judging, **options)

    monkeypatch.setattr(tune_steps, "steps_of", steps)
    monkeypatch.setattr(tune_steps, "tune", note)
    tune_file(request(folder), quiet, quiet, METERS)
    assert given["judging"] is given["figures"], "of 80, a quarter is too few"
    monkeypatch.setattr(tune_steps, "_ENOUGH", 20)
    tune_file(request(folder), quiet, quiet, METERS)
    assert {name: len(one) for name, one in given.items()} == {"steps": 80, "figures": 60, "judging": 20}
    trained, held_out = map(names_of, split(seen, Recipe().data.held_out))
    assert names_of(given["steps"]) == trained
    assert not names_of(given["judging"]) & (trained | names_of(given["figures"]))
    assert names_of(given["judging"]) | names_of(given["figures"]) == held_out


def refuse_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tune", "steps_of"):
        monkeypatch.setattr(tune_steps, name, lambda *_args, **_options: pytest.fail("the work began"))


def test_a_model_that_no_step_takes_is_told_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuse_work(monkeypatch)
    opened = load((folder / "model.tflite").read_bytes())
    graph = opened.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = np.array([1, -1, 8, 3], np.int32)
    (tmp_path / "model.tflite").write_bytes(dump(opened))
    (tmp_path / "model.toml").write_text(MANIFEST)
    with pytest.raises(ModelError, match=r"model\.tflite: .* has a shape that may change"):
        tune_file(TuneRequest(str(tmp_path / "model.tflite"), folder / "x.npz"), quiet, quiet, METERS)


def test_what_cannot_succeed_is_told_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuse_work(monkeypatch)
    module = f"{folder / 'net.py'}:make"
    for options, told in (
        ({"module": f"{folder / 'net.py'}:other"}, "no function 'other'"),
        ({"module": module, "weights": tmp_path / "no.pt"}, "no such file"),
    ):
        with pytest.raises(ModelError, match=told):
            tune_file(request(folder, **options), quiet, quiet, METERS)
