"""Requests to quantise: logits and their range, and which examples decide on a training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")

from torch import nn

from agent.compute.manifest import Model, OutputManifest
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import Score, time_ms
from agent.optimise.qat import train_quantised
from agent.optimise.quantisation.allocation import fits_int4
from agent.optimise.quantisation.request import QuantisedFile, QuantiseRequest, logit_outputs, quantise_file
from agent.optimise.quantise import QuantisedModel, quantise, read_layers
from agent.optimise.recipe import Method, QatRecipe, QuantiseRecipe
from agent.optimise.report import OptimiseReport
from agent.optimise.source import learned_sample
from agent.optimise.tune import split
from tests.support.float_models import (
    CLASSES,
    classifier,
    float_file,
    pictures,
    write_model,
)

torch.set_num_threads(1)
HAND = '[output]\ndecoder = "landmarks"\nlabels = ["hand"]\n[output.options]\nlogits = {logits}\n'
PIXELS = "[input]\nmean = [128.0, 128.0, 128.0]\nstd = [64.0, 64.0, 64.0]\n"


class Hand(nn.Module):
    """Points of a hand, and a logit of its being there, which is far below 0 on every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.points, self.presence = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 63), nn.Linear(8, 1)
        self.presence.weight.data.mul_(20.0)
        self.presence.bias.data.fill_(-60.0)

    def forward(self, x: Any) -> Any:
        found = self.body(x).relu().mean((2, 3))
        return self.points(found), self.presence(found)


@pytest.fixture
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", partial(time_ms, rounds=1))


def hand(folder: Path, logits: str = "true") -> Model:
    torch.manual_seed(1)
    (folder / "hand.tflite").write_bytes(float_file(Hand().eval()))
    keys = f'name = "hand"\nfile = "hand.tflite"\n{PIXELS}{HAND.format(logits=logits)}'
    (folder / "hand.toml").write_text(keys)
    return open_whole_model(str(folder / "hand.toml"))


def examples_of(model: Model, folder: Path, count: int = 32) -> Examples:
    np.savez(folder / "x.npz", x=pictures(count))
    return read_examples(folder / "x.npz", model)


def scale_of_logits(found: QuantisedModel, place: int) -> float:
    graph = found.quantiser.graphs[0]
    return found.scales.by_name()[graph.name(graph.outputs[place])].scale


def test_a_score_of_which_the_decoder_takes_the_sigmoid_is_a_logit(tmp_path: Path) -> None:
    model = hand(tmp_path)
    (place,) = logit_outputs(model)
    assert place == 1


def test_probabilities_are_no_logits(tmp_path: Path) -> None:
    assert logit_outputs(hand(tmp_path, "false")) == ()


def test_scores_of_a_classifier_are_none_since_they_compete(tmp_path: Path) -> None:
    assert logit_outputs(open_whole_model(str(write_model(tmp_path, float_file(classifier()))))) == ()


def test_outputs_that_do_not_fit_their_decoder_are_none(tmp_path: Path) -> None:
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    output = OutputManifest(decoder="blazeface", labels=("face",))
    manifest = replace(model.manifest, output=output)
    assert logit_outputs(Model(model.content, model.sha256, manifest, model.path)) == ()


def test_logits_have_the_range_that_a_sigmoid_tells_apart(tmp_path: Path) -> None:
    model = hand(tmp_path)
    examples, recipe = examples_of(model, tmp_path), QuantiseRecipe(method="int8", examples=32)
    with_range, without = (quantise(model.content, [examples], recipe, logits=one) for one in ((1,), ()))
    assert scale_of_logits(with_range, 1) < 12.7 / 255
    assert scale_of_logits(without, 1) > 3 * scale_of_logits(with_range, 1)


def test_training_does_not_care_how_far_below_zero_a_logit_is(tmp_path: Path) -> None:
    model = hand(tmp_path)
    examples = examples_of(model, tmp_path)
    found = quantise(model.content, [examples], QuantiseRecipe(method="int8", examples=32), logits=(1,))
    recipe = QatRecipe(steps=1, batch=16)

    def first_loss(logits: tuple[int, ...]) -> float:
        found.quantiser.logits, told = logits, list[str]()
        train_quantised(found, examples, recipe, progress=told.append)
        return float(told[0].rpartition(" ")[2])

    # The file cannot tell -60 from -6.3: where that counts, it is the greatest part of the loss.
    assert first_loss((1,)) < 0.1 * first_loss(())


COUNT = 64


def true_labels() -> Any:
    """Return what the float classifier answers."""
    x = torch.from_numpy((pictures(COUNT).astype(np.float32) - 128.0) / 64.0).permute(0, 3, 1, 2)
    with torch.no_grad():
        return classifier()(x).argmax(1).numpy()


def halves(folder: Path) -> tuple[Model, Examples, Examples]:
    """Return the classifier, the examples for the step, and those held out."""
    model = open_whole_model(str(write_model(folder, float_file(classifier()))))
    return model, *split(examples_of(model, folder, COUNT), 0.5)


def numbers(some: Examples) -> list[int]:
    return [int(some.name(index)) for index in range(len(some))]


def quantised(folder: Path, labels: Any, budget: str = "", qat: bool | None = None) -> QuantisedFile:
    """Quantise the classifier on pictures with these labels; a training learns them, not the float answers."""
    (folder / "recipe.toml").write_text("[qat]\nsteps = 60\nbatch = 16\nteacher = 0.0\n")
    np.savez(folder / "x.npz", x=pictures(COUNT), y=labels)
    model, data = str(write_model(folder, float_file(classifier()))), folder / "x.npz"
    asked = QuantiseRequest(model, data, folder / "recipe.toml", "int8", budget, qat=qat)
    return quantise_file(asked, lambda _: None, lambda _: None)


@pytest.mark.usefixtures("_short_timing")
def test_a_training_that_learns_its_examples_by_heart_is_not_kept(tmp_path: Path) -> None:
    labels = true_labels()
    learned = numbers(halves(tmp_path)[1])
    labels[learned] = (labels[learned] + 1 + np.arange(len(learned)) % 2) % CLASSES  # two classes, both wrong
    report = quantised(tmp_path, labels, qat=True).report
    _, plain, trained = report.steps
    assert not trained.kept
    assert trained.score is not None
    assert plain.score is not None
    assert trained.score < plain.score
    assert "of 32 examples that were not trained on" in trained.notes[0]


@pytest.mark.usefixtures("_short_timing")
def test_labels_or_values_that_cannot_be_right_are_told(tmp_path: Path) -> None:
    wrong = quantised(tmp_path, (true_labels() + 1) % CLASSES, qat=False).report.remarks
    assert any(
        "hardly better than a guess: " in one and ": it is right for 0.0% of the 32" in one for one in wrong
    )
    assert not any("guess" in one for one in quantised(tmp_path, true_labels(), qat=False).report.remarks)


Lost = dict[str, tuple[float, float]]
"""Loss of the quantised and of the trained model by the examples that it is measured on."""


def decided(folder: Path, monkeypatch: pytest.MonkeyPatch, lost: Lost) -> OptimiseReport:
    """Return the report of models that lose so much, with a limit of 1 pp; `enough` examples are 8."""
    monkeypatch.setattr("agent.optimise.tune_steps._ENOUGH", 8)
    reported, deciding = (tuple(numbers(one)) for one in split(halves(folder)[2], 0.25))
    parts, trained = {reported: "reported", deciding: "deciding"}, b"trained"

    def told(content: bytes, some: Examples, *_: Any, reference: bytes, **__: Any) -> Score:
        before, after = lost[parts[tuple(numbers(some))]]
        value = 1.0 if content == reference else 1.0 - (after if content == trained else before)
        return Score("top-1", value, len(some))

    monkeypatch.setattr("agent.optimise.quantisation.request.score", told)
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", lambda _: [1.0, 1.0])
    monkeypatch.setattr(
        "agent.optimise.qat.train_quantised",
        lambda found, *_, **__: found._replace(content=trained),
    )
    return quantised(folder, true_labels(), "loss<1pp").report


def test_a_loss_of_the_reported_examples_starts_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = decided(tmp_path, monkeypatch, {"deciding": (-0.004, 0.0), "reported": (0.05, 0.0)})
    assert [one.name for one in report.steps] == ["float", "quantise"]
    (loss,) = report.missed
    assert loss.startswith("loss 5 pp")


def test_a_loss_of_the_deciding_examples_starts_a_training_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = decided(tmp_path, monkeypatch, {"deciding": (0.05, 0.01), "reported": (0.0, 0.005)})
    assert report.steps[-1].kept
    assert report.learned == learned_sample(halves(tmp_path)[1])
    (note,) = report.steps[-1].notes
    assert "since it loses 5 pp" in note
    assert "of 8 examples that were not trained on, it loses 1 pp, and loses 5 pp without" in note
    assert any("8 examples that are held out as well have decided" in one for one in report.remarks)
    assert report.missed == ()


def test_what_the_reported_examples_say_for_a_training_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = decided(tmp_path, monkeypatch, {"deciding": (0.05, 0.05), "reported": (0.05, 0.0)})
    assert not report.steps[-1].kept
    assert len(report.missed) == 1
    assert report.sha256_after == "", "no file is written"


def test_examples_that_are_held_out_decide_on_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[Any] = []

    def chosen(content: bytes, *_: Any, loss: Any, **__: Any) -> QuantisedModel:
        losses.clear()
        loss(content + b" ")
        raise ModelError("chosen")

    def told(_: bytes, some: Examples, *__: Any, **___: Any) -> Score:
        losses.append(numbers(some))
        return Score("top-1", 1.0, len(some))

    monkeypatch.setattr("agent.optimise.quantisation.request.score", told)
    monkeypatch.setattr("agent.optimise.quantisation.request.quantise", chosen)
    model, _, held = halves(tmp_path)
    asked = QuantiseRequest(model.path, tmp_path / "x.npz", method="mixed")
    with pytest.raises(ModelError, match="chosen"):
        quantise_file(asked, lambda _: None, lambda _: None)
    assert losses[0] == numbers(held)


@pytest.mark.parametrize("int8", [1.0, 0.5])
def test_that_no_layer_has_4_bits_is_told_with_the_reason_unless_8_lose_too_much_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: float
) -> None:
    def told(content: bytes, some: Examples, *_: Any, reference: bytes, **__: Any) -> Score:
        if content == reference:
            return Score("top-1", 1.0, len(some))
        return Score("top-1", 0.5 if "int4" in read_modelfile(content).weights else int8, len(some))

    monkeypatch.setattr("agent.optimise.quantisation.request.score", told)
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", lambda _: [1.0, 1.0])
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    examples_of(model, tmp_path)
    asked = QuantiseRequest(model.path, tmp_path / "x.npz", None, "mixed", "loss<1pp", qat=False)
    report = quantise_file(asked, lambda _: None, lambda _: None).report
    assert any(one.startswith("no layer has 4 bits") for one in report.remarks) is (int8 == 1.0)
    assert bool(report.missed) is (int8 == 0.5)


@pytest.mark.parametrize(
    ("float_ms", "int8_ms", "is_told"), [(0.064, 0.086, True), (0.064, 0.066, False), (0.015, 0.023, True)]
)
def test_that_the_result_is_slower_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_ms: float, int8_ms: float, is_told: bool
) -> None:
    def timed(contents: list[bytes]) -> list[float]:
        return [float_ms if content == model.content else int8_ms for content in contents]

    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", timed)
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    examples_of(model, tmp_path)
    asked = QuantiseRequest(model.path, tmp_path / "x.npz", None, "int8")
    remarks = quantise_file(asked, lambda _: None, lambda _: None).report.remarks
    assert any("slower than the float model" in one and "vedette bench" in one for one in remarks) is is_told


def test_a_trained_file_that_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(found: QuantisedModel, *_: Any, **__: Any) -> QuantisedModel:
        return found._replace(content=found.content + bytes(5000))

    monkeypatch.setattr("agent.optimise.qat.train_quantised", trained)
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    size = least_size(model.content, examples_of(model, tmp_path), "int8")
    asked = QuantiseRequest(model.path, tmp_path / "x.npz", None, "int8", f"size<{size + 1000}B", qat=True)
    report = quantise_file(asked, lambda _: None, lambda _: None).report
    assert not report.missed
    assert [(step.name, step.kept) for step in report.steps] == [
        ("float", True),
        ("quantise", True),
        ("qat", False),
    ]
    assert "over the limit: the one without training is kept" in report.steps[-1].notes[0]


def test_a_recipe_that_gives_all_layers_4_bits_leaves_mixed_nothing_to_choose(tmp_path: Path) -> None:
    model = open_whole_model(str(write_model(tmp_path, float_file(classifier()))))
    examples_of(model, tmp_path)
    names = [layer.name for layer in read_layers(model.content).values() if fits_int4(layer)]
    rules = ", ".join(f'{{match = "{name}", bits = 4}}' for name in names)
    (tmp_path / "r.toml").write_text(f"[quantise]\nlayers = [{rules}]\n")
    methods: tuple[Method | None, ...] = (None, "mixed")
    for method in methods:
        asked = QuantiseRequest(model.path, tmp_path / "x.npz", tmp_path / "r.toml", method, qat=False)
        made = quantise_file(asked, lambda _: None, lambda _: None)
        assert {layer.name for layer in made.report.layers if layer.bits == 4} == {*names}
        assert not any("no layer" in remark for remark in made.report.remarks)


def least_size(content: bytes, examples: Examples, method: Method) -> int:
    narrow = {layer.name: 4 for layer in read_layers(content).values() if fits_int4(layer)}
    recipe = QuantiseRecipe(method="int8" if method == "mixed" else method, examples=16)
    return len(
        quantise(content, [examples], recipe, layer_bits=lambda _: narrow if method == "mixed" else {}).content
    )


def chosen_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, float_ms: float) -> OptimiseReport:
    """Quantise where INT8 activations take 3 ms instead of 1, and float ones so much."""

    def times(contents: Sequence[bytes]) -> list[float]:
        kinds = [read_modelfile(one).ends("serving_default")[0][0].dtype for one in contents]
        return [1.0, 3.0 if kinds[1] == "uint8" else 1.0 if contents[0] == contents[1] else float_ms]

    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", times)
    np.savez(folder / "x.npz", x=pictures(COUNT))
    model = str(write_model(folder, float_file(classifier())))
    return quantise_file(QuantiseRequest(model, folder / "x.npz"), lambda _: None, lambda _: None).report


def test_float_activations_are_taken_where_int8_ones_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = chosen_by_itself(tmp_path, monkeypatch, float_ms=0.5)
    assert [(one.name, one.kept) for one in report.steps] == [
        ("float", True),
        ("quantise", True),
        ("dynamic", True),
    ]
    assert report.steps[-1].notes == ("INT8 activations take 3 ms instead of 1",)
    assert not any("slower" in one for one in report.remarks)


def test_float_activations_that_are_no_faster_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = chosen_by_itself(tmp_path, monkeypatch, float_ms=4.0)
    assert (report.steps[-1].name, report.steps[-1].kept) == ("dynamic", False)
    assert any("slower" in one for one in report.remarks)


def test_nothing_but_training_loads_pytorch(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=pictures(16))
    words = (str(write_model(tmp_path, float_file(classifier()))), tmp_path / "x.npz", None, "int8")
    program = (
        "import sys; from pathlib import Path; from agent.optimise.quantisation.request import *\n"
        f"quantise_file(QuantiseRequest(*{words!r}), print, print)\n"
        "assert 'torch' not in sys.modules"
    ).replace("PosixPath", "Path")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
