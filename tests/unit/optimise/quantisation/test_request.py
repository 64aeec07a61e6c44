"""Which outputs are logits, what their range is, and that channels are equalised when that is asked for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")
pytest.importorskip("highspy", reason="choosing bits needs the extra [optimise]")

from torch import nn

from agent.cli.main import vedette
from agent.compute.manifest import Model, OutputManifest
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import time_ms
from agent.optimise.qat import train
from agent.optimise.quantisation.request import logit_outputs
from agent.optimise.quantise import QuantisedModel, quantise
from agent.optimise.recipe import QatRecipe, QuantiseRecipe
from tests.support.float_models import classifier, float_file, pictures, write_examples, write_model

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


def hand(folder: Path, logits: str = "true") -> Model:
    torch.manual_seed(1)
    (folder / "hand.tflite").write_bytes(float_file(Hand().eval()))
    keys = f'name = "hand"\nfile = "hand.tflite"\n{PIXELS}{HAND.format(logits=logits)}'
    (folder / "hand.toml").write_text(keys)
    return open_whole_model(str(folder / "hand.toml"))


def examples_of(model: Model, folder: Path) -> Examples:
    np.savez(folder / "x.npz", x=pictures(32))
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
        graph = found.quantiser.graphs[0]
        return train(graph, found.scales, found.rounded, examples, recipe, logits=logits).losses[0]

    # The file cannot tell -60 from -6.3: where that counts, it is the greatest part of the loss.
    assert first_loss((1,)) < 0.1 * first_loss(())


@pytest.mark.parametrize("by", ["option", "recipe"])
def test_channels_are_equalised_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr("agent.optimise.quantisation.request.time_ms", partial(time_ms, rounds=1))
    write_model(tmp_path, float_file(classifier()))
    data, recipe = write_examples(tmp_path / "x.npz", 32), tmp_path / "recipe.toml"
    recipe.write_text('[quantise]\nmethod = "int8"\nequalise = true\n')

    def made(name: str, *words: str) -> bytes:
        out = tmp_path / f"{name}.tflite"
        args = ["optimise", "quantise", str(tmp_path / "net.tflite"), str(out), "--data", str(data), "--json"]
        done = CliRunner().invoke(vedette, [*args, *words])
        assert done.exit_code == 0, f"{done.output}{done.exception}"
        assert json.loads(done.stdout)["steps"][-1]["kept"]
        return out.read_bytes()

    asked = ["--method", "int8", "--equalise"] if by == "option" else ["--recipe", str(recipe)]
    assert made("equalised", *asked) != made("plain", "--method", "int8")
