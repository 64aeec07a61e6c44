"""The loss of a detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.optimise.training.boxes import DetectionLoss, generalized_iou, iou
from agent.optimise.training.networks import BINS, BoxDetector

HEIGHT, WIDTH = 64, 96
CELLS = sum((HEIGHT // stride) * (WIDTH // stride) for stride in (8, 16, 32))


def loss() -> DetectionLoss:
    return DetectionLoss(HEIGHT, WIDTH, torch.device("cpu"))


def coordinates() -> Any:
    return st.lists(st.floats(0, 100, width=32), min_size=4, max_size=4)


def box(values: list[float]) -> Any:
    x, y = sorted(values[::2]), sorted(values[1::2])
    return torch.tensor([x[0], y[0], x[1], y[1]])


@given(coordinates(), coordinates())
def test_overlaps_are_symmetric_and_in_range(one: list[float], other: list[float]) -> None:
    a, b = box(one), box(other)
    assert 0 <= float(iou(a, b)) <= 1.0001
    assert -1.0001 <= float(generalized_iou(a, b)) <= float(iou(a, b)) + 1e-4
    assert float(iou(a, b)) == pytest.approx(float(iou(b, a)), abs=1e-5)


def test_overlaps_of_boxes_that_are_known() -> None:
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2])
    assert float(iou(a, b)) == pytest.approx(1 / 3)
    assert float(generalized_iou(a, torch.tensor([2.0, 0, 4, 2]))) == pytest.approx(0.0)
    assert float(generalized_iou(a, torch.tensor([6.0, 0, 8, 2]))) == pytest.approx(-0.5)


def test_boxes_are_those_of_the_decoder() -> None:
    from agent.compute.decode.nanodet import NanoDetOptions, _grid

    distances = torch.rand(1, CELLS, 4 * BINS)
    found = loss().boxes(distances)[0].numpy() / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    centres, steps = _grid((HEIGHT, WIDTH), NanoDetOptions(bins=BINS))
    bins = distances[0].numpy().reshape(CELLS, 4, BINS)
    expected = centres + (bins @ np.arange(BINS, dtype=np.float32)) / bins.sum(2) * steps
    assert np.allclose(found, expected, atol=1e-5)


def perfect(boxes: Any, classes: Any) -> tuple[Any, Any]:
    """Logits of a network that answers rightly in all cells within the first box."""
    judge = loss()
    truth = boxes[0, 0] * judge._size
    sides = torch.cat((judge._centres - truth[:2], truth[2:] - judge._centres), 1) / judge._strides
    sides = sides.clamp(0, BINS - 1)
    bins = (1 - (torch.arange(BINS) - sides[..., None]).abs()).clamp(1e-4, 1 - 1e-4)
    scores = torch.full((1, CELLS, 2), -8.0)
    inside = ((judge._centres > truth[:2]) & (judge._centres < truth[2:])).all(1)
    scores[0, inside, int(classes[0, 0])] = 8.0
    return scores, bins.flatten(1)[None].logit()


def test_a_right_answer_costs_less_than_wrong_ones() -> None:
    boxes, classes = torch.tensor([[[0.25, 0.25, 0.5, 0.5]]]), torch.tensor([[1]])
    scores, distances = perfect(boxes, classes)
    right = float(loss()((scores, distances), boxes, classes))
    assert right < 0.5
    for wrong in ((scores.flip(-1), distances), (scores, distances.flip(-1)), (-scores, distances)):
        assert float(loss()(wrong, boxes, classes)) > 2 * right
    nothing = torch.tensor([[-1]])
    assert float(loss()((scores, distances), boxes, nothing)) > 10
    assert float(loss()((torch.full_like(scores, -12.0), distances), boxes, nothing)) < 0.01


def test_every_box_has_a_cell_that_answers_for_it() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.22, 0.23], [0.5, 0.1, 0.9, 0.9], [0.55, 0.15, 0.95, 0.85]]])
    classes = torch.tensor([[0, 1, 1]])
    judge = loss()
    scores, distances = torch.rand(1, CELLS, 2), torch.rand(1, CELLS, 4 * BINS)
    owner, target = judge._assign(scores, judge.boxes(distances), boxes * judge._size, classes)
    taken = target.sum(-1) > 0
    assert set(owner[taken].tolist()) == {0, 1, 2}
    assert (target[0, owner[0] == 0][..., 1] == 0).all()
    assert ((target >= 0) & (target <= 1)).all()


def test_a_batch_without_any_object_can_be_learned_from() -> None:
    net = BoxDetector(2).train()
    value = loss()(net(torch.zeros(2, 3, HEIGHT, WIDTH)), torch.zeros(2, 1, 4), torch.full((2, 1), -1))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(one.grad).all() for one in net.parameters() if one.grad is not None)
