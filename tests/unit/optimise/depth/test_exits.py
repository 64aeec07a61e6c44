"""Early exits of a classifier: where they can be, and the graph with their heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exits need the extra [optimise]")

from ai_edge_litert.interpreter import Interpreter
from torch import nn

from agent.errors import ModelError
from agent.optimise.depth.exits import add_exits, backbone, choose_exits
from agent.optimise.depth.stages import Stage, split, stage_multiply_adds, weighted_layers
from agent.optimise.graph.objects import graphs, load
from tests.support.float_models import CLASSES, SIDE, classifier, float_file


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


def run(content: bytes, signature: str, image: Any) -> dict[str, Any]:
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner(signature)
    ((name, _),) = runner.get_input_details().items()
    found: dict[str, Any] = runner(**{name: image})
    return found


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
