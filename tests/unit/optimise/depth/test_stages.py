"""Graphs with several exits are cut into chained signatures, and joined again: no number changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exits need the extra [optimise]")
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from agent.compute.manifest import Variant
from agent.errors import ModelError
from agent.optimise.depth.stages import (
    Stage,
    add_exits,
    backbone,
    chain_of,
    choose_exits,
    cuts,
    deepest,
    join,
    split,
    stage_multiply_adds,
    weighted_layers,
)
from agent.optimise.graph.integers import IntegerPlan, IntegerWeights, from_range, write
from agent.optimise.graph.layers import RELU, Convolution, Network
from agent.optimise.graph.objects import dump, graphs, load
from agent.optimise.graph.writer import ModelWriter
from tests.support.float_models import CLASSES, SIDE, classifier, float_file

EXITS = 5
STAGES = (Stage("exit1", "logits1", "block"), Stage("exit2", "logits2", "wide"), Stage("exit3", "logits3"))
_CHAIN = tuple(one.signature for one in STAGES)


def network() -> Network:
    """A residual block, two more convolutions, and an exit behind each."""
    random = np.random.default_rng(0)

    def weights(height: int, width: int, inputs: int, outputs: int) -> Convolution:
        kernel = random.normal(0, 1 / np.sqrt(height * width * inputs), (height, width, inputs, outputs))
        return Convolution(kernel.astype(np.float32), random.normal(0, 0.1, outputs).astype(np.float32))

    def leave(x: str, number: int) -> None:
        mean = net.reduce("MEAN", x, (1, 2), name=f"mean{number}")
        net.connect(mean, weights(1, 1, net.shapes[x][-1], EXITS), name=f"logits{number}")

    net = Network("image", shapes={"image": (1, 8, 8, 3)})
    stem = net.convolve("image", weights(3, 3, 3, 8), name="stem", activation=RELU)
    side = net.convolve(stem, weights(3, 3, 8, 8), name="side", activation=RELU)
    block = net.combine("ADD", stem, side, name="block", activation=RELU)
    leave(block, 1)
    leave(net.convolve(block, weights(3, 3, 8, 16), name="wide", stride=(2, 2), activation=RELU), 2)
    logistic = net.each("LOGISTIC", "wide", name="logistic")
    leave(net.convolve(logistic, weights(3, 3, 16, 16), name="last", activation=RELU), 3)
    return net


def whole(*outputs: str) -> bytes:
    writer = ModelWriter()
    writer.add("serving_default", network(), outputs or ("logits1", "block", "logits2", "wide", "logits3"))
    return writer.pack()


def integers(content: bytes, *, keep_float: bool = False) -> bytes:
    """INT8 by plain rounding; the second convolution may stay float between conversions."""
    model = load(content)
    (graph,) = graphs(model)
    names = [graph.name(index) for one in graph.operators for index in one.outputs]
    weights = {}
    for operator in graph.operators:
        if len(operator.inputs) != 3 or (keep_float and graph.name(operator.outputs[0]) == "wide"):
            continue
        kernel, bias = (graph.constant(index) for index in operator.inputs[1:])
        assert kernel is not None
        assert bias is not None
        steps = np.abs(kernel).reshape(len(kernel), -1).max(1) / 127
        rounded = np.round(kernel / steps.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)
        key = tuple(int(graph.tensor(index).buffer) for index in operator.inputs[1:])
        weights[key] = IntegerWeights(rounded, steps.astype(np.float32), 8, bias.astype(np.float64))
    write(model, IntegerPlan(dict.fromkeys(["image", *names], from_range(-4.0, 4.0)), weights))  # type: ignore[arg-type]
    return dump(model)


def run(content: bytes, signature: str, given: Any) -> dict[str, Any]:
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner(signature)
    ((name, spec),) = runner.get_input_details().items()
    found: dict[str, Any] = runner(**{name: given.astype(spec["dtype"])})
    return found


def run_chain(content: bytes, given: Any) -> list[Any]:
    scores = []
    for signature in _CHAIN:
        found = run(content, signature, given)
        scores.append(found["logits"])
        given = found.get("hidden")
    return scores


@pytest.mark.parametrize("kind", ["float", "int8", "partly float"])
def test_the_stages_answer_bit_for_bit_as_the_whole_graph(kind: str) -> None:
    content = whole() if kind == "float" else integers(whole(), keep_float=kind == "partly float")
    cut = split(content, STAGES)
    random = np.random.default_rng(1)
    for _ in range(5):
        image = random.integers(0, 255, (1, 8, 8, 3)) if kind != "float" else random.normal(size=(1, 8, 8, 3))
        wanted = run(content, "serving_default", image)
        found = run_chain(cut, image)
        assert all(np.array_equal(one, wanted[stage.scores]) for one, stage in zip(found, STAGES, strict=True))


def test_weights_are_stored_once_and_no_layer_is_in_two_stages() -> None:
    content = whole()
    cut = split(content, STAGES)
    assert len(load(cut).buffers) == len(load(content).buffers)
    assert len(cut) < len(content) + 4000
    before, after = ([one for graph in graphs(load(file)) for one in graph.operators] for file in (content, cut))
    assert len(before) == len(after)


@pytest.mark.parametrize("quantised", [False, True])
def test_joining_reverses_the_cut(quantised: bool) -> None:
    content = integers(whole()) if quantised else whole()
    cut = split(content, STAGES)
    joined, stages = join(cut, _CHAIN)
    image = np.random.default_rng(2).integers(0, 255, (1, 8, 8, 3))
    wanted, found = (run(file, "serving_default", image) for file in (content, joined))
    assert [one.signature for one in stages] == list(_CHAIN)
    for one, other in zip(STAGES, stages, strict=True):
        assert np.array_equal(wanted[one.scores], found[other.scores])
    assert split(joined, stages) == cut


def test_the_deepest_exit_alone_is_a_model_of_one_output() -> None:
    content = whole()
    alone = deepest(content)
    image = np.random.default_rng(3).normal(size=(1, 8, 8, 3))
    found = run(alone, "serving_default", image)
    assert list(found) == ["logits"]
    assert np.array_equal(found["logits"], run(content, "serving_default", image)["logits3"])
    assert len(alone) < len(content)


def test_multiply_adds_of_the_stages_are_those_of_the_network() -> None:
    found = stage_multiply_adds(split(whole(), STAGES))
    assert list(found) == list(_CHAIN)
    assert sum(found.values()) == network().multiply_adds()


def test_a_tensor_beside_which_others_are_needed_is_no_cut() -> None:
    content = whole("logits1", "side", "logits2", "wide", "logits3")
    with pytest.raises(ModelError, match=r"'side' is no cut: exit2 needs"):
        split(content, (Stage("exit1", "logits1", "side"), *STAGES[1:]))


def test_an_exit_before_the_cut_that_it_continues_is_refused() -> None:
    with pytest.raises(ModelError, match="'wide' is no cut"):
        split(whole(), (Stage("exit1", "logits2", "wide"), Stage("exit2", "logits1")))


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ModelError, match="no output 'logits9'; it has: logits1"):
        split(whole(), (Stage("a", "logits9"),))


def test_signatures_that_do_not_continue_each_other_are_not_joined() -> None:
    cut = split(whole(), STAGES)
    with pytest.raises(ModelError, match="no signature 'exit9'; it has: exit1, exit2, exit3"):
        join(cut, ("exit1", "exit9"))
    for chain in (("exit1", "exit3"), ("exit3", "exit1")):
        with pytest.raises(ModelError, match=f"{chain[1]!r} does not continue"):
            join(cut, chain)


def test_a_model_of_several_graphs_is_not_cut() -> None:
    with pytest.raises(ModelError, match="3 graphs"):
        split(split(whole(), STAGES), STAGES)


def test_cuts_are_the_tensors_that_all_paths_pass() -> None:
    found = cuts(whole())
    assert [one.name for one in found] == ["stem", "block", "wide", "logistic", "last"]
    assert found[0].share < found[1].share < found[2].share == found[3].share < found[4].share < 1
    assert found[1].multiply_adds == 8 * 8 * 9 * (3 * 8 + 8 * 8)


def test_the_signatures_of_a_cascade_are_found_in_its_variants() -> None:
    chained = (Variant("3", "exit3", after="2"), Variant("2", "exit2", after="1"), Variant("1", "exit1"))
    assert chain_of(chained) == ("exit1", "exit2", "exit3")
    assert chain_of((Variant("416", "large"), Variant("256", "small"))) == ()
    assert chain_of((Variant("full"),)) == ()


class Straight(nn.Module):
    """Convolutions in a row, of which all but the first cost the same, and softmax."""

    def __init__(self, layers: int = 8, end: Any = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(layers - 1))
        )
        self.head, self.end = nn.Linear(8, CLASSES), end or nn.Softmax(1)

    def forward(self, x: Any) -> Any:
        for layer in self.body:
            x = layer(x).relu()
        return self.end(self.head(x.mean((2, 3))))


def straight(**options: Any) -> bytes:
    torch.manual_seed(0)
    return backbone(float_file(Straight(**options).eval()))


def test_exits_lie_near_halves_quarters_and_eighths_of_the_multiply_adds() -> None:
    shares = [place.share for place in choose_exits(straight(), 4)]
    assert shares == sorted(shares)
    assert np.allclose(shares, [0.125, 0.25, 0.5], atol=0.08)
    assert len(choose_exits(straight(), 2)) == 1


def test_more_exits_than_places_are_refused_with_the_places() -> None:
    with pytest.raises(
        ModelError, match=r"12 exits: the graph can be cut at 7 places only: body.0 \(5%\), body.1"
    ):
        choose_exits(straight(), 12)


def test_exits_can_be_named_in_any_order() -> None:
    names = [place.name for place in choose_exits(straight(), 3, ("body.5", "body.1"))]
    assert names == ["body.1", "body.5"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("head",), "'head' is no place for an exit; it can be cut at: body.0"),
        (("image",), "'image' is no place for an exit"),
    ],
)
def test_names_that_are_no_place_are_refused_with_those_that_are(names: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        choose_exits(straight(), 3, names)


def test_of_tensors_at_the_same_cost_the_smallest_is_cut() -> None:
    content = backbone(float_file(classifier()))
    (place,) = choose_exits(content, 2, ())
    assert place.shape[1] < SIDE, "behind the pooling"


def test_a_tensor_inside_a_residual_block_is_no_place() -> None:
    content = backbone(float_file(classifier()))
    with pytest.raises(ModelError, match="'deep' is no place for an exit"):
        choose_exits(content, 2, ("deep",))


def test_a_graph_whose_paths_never_meet_is_refused() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.one(x).relu().mean((2, 3)) + self.two(x).relu().mean((2, 3)))

    with pytest.raises(ModelError, match="the graph cannot be cut"):
        choose_exits(backbone(float_file(Parallel().eval())), 2)


def test_the_softmax_at_the_end_goes_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    given = float_file(Straight().eval())
    image = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    logits = run(backbone(given), "serving_default", image)["logits"]
    wanted = run(given, "serving_default", image)["logits"]
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        (Straight(end=nn.Sigmoid()), "scores each class by itself"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), r"is \[1, 8, 8, 8\]: expected \[1, classes\]"),
    ],
)
def test_what_is_no_classifier_is_refused(module: Any, fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        backbone(float_file(module.eval()))


def test_a_cascade_gets_no_more_exits() -> None:
    content, stages = add_exits(straight(), choose_exits(straight(), 3))
    with pytest.raises(ModelError, match="5 outputs"):
        backbone(content)
    with pytest.raises(ModelError, match="3 graphs: give a model of one"):
        backbone(split(content, stages))


def test_heads_are_added_and_the_answers_of_the_backbone_stay() -> None:
    content = straight()
    places = choose_exits(content, 3)
    whole, stages = add_exits(content, places)
    assert stages == (
        Stage("exit1", "logits1", "hidden1"),
        Stage("exit2", "logits2", "hidden2"),
        Stage("exit3", "logits3"),
    )
    image = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    found, wanted = run(whole, "serving_default", image), run(content, "serving_default", image)
    assert np.array_equal(found["logits3"], wanted["logits"])
    assert found["logits1"].shape == (1, CLASSES)
    assert not found["logits1"].any(), "heads are zero until they are trained"
    heads = 2 * 8 * CLASSES
    assert (
        sum(stage_multiply_adds(split(whole, stages)).values())
        == sum(stage_multiply_adds(content).values()) + heads
    )


@pytest.mark.parametrize(("grid", "cells"), [(2, 2), (5, 5), (8, 8), (40, SIDE)])
def test_a_head_sees_the_means_of_a_grid(grid: int, cells: int) -> None:
    content = straight()
    whole, _ = add_exits(content, choose_exits(content, 2), grid=grid)
    (graph,) = graphs(load(whole))
    head: Any = graph.producer(graph.outputs[0])
    assert graph.shape(head.inputs[1]) == (CLASSES, cells * cells * 8)
    image = np.zeros((1, SIDE, SIDE, 3), np.float32)
    assert run(whole, "serving_default", image)["logits1"].shape == (1, CLASSES)


def test_layers_are_counted_up_to_each_exit() -> None:
    content = straight()
    assert weighted_layers(content, ["body.1", "body.5"]) == [2, 6, 9]
