"""Pictures and their boxes are changed together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.optimise.augment import Normalisation
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.training.boxes import BoxAugmentation, BoxAugmenter

HEIGHT, WIDTH = 64, 96
RAW = Normalisation(0.0, 1.0)


def pictures(count: int = 8) -> tuple[Any, list[ObjectBoxes]]:
    """Dark pictures with one bright box each."""
    random = np.random.default_rng(0)
    found, objects = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8), []
    for number, picture in enumerate(found):
        y, x = random.integers(8, 24), random.integers(8, 40)
        high, wide = random.integers(10, 30), random.integers(10, 40)
        picture[y : y + high, x : x + wide] = 200
        box = np.array([[x / WIDTH, y / HEIGHT, (x + wide) / WIDTH, (y + high) / HEIGHT]])
        objects.append(ObjectBoxes(np.array([number % 3]), box))
    return found, objects


def augmenter(**changes: Any) -> BoxAugmenter:
    given = BoxAugmentation(**{"light": 0.0, **changes})
    return BoxAugmenter(*pictures(), given, RAW, 0, torch.device("cpu"))


@pytest.mark.parametrize("changes", [{}, {"turn": True}, {"flip": False}, {"scale": 1.0}, {"scale": 1.8}])
def test_a_box_stays_around_what_it_was_around(changes: dict[str, Any]) -> None:
    batches, seen = augmenter(**changes), 0
    for step in range(20):
        inputs = batches.batch(torch.arange(8), 0, step).float().numpy()
        assert inputs.shape == (8, 3, HEIGHT, WIDTH)
        for picture, boxes, classes in zip(inputs[:, 0], batches.boxes, batches.classes, strict=True):
            if classes[0] < 0:
                continue
            rows, columns = np.nonzero(picture == 200)
            x0, y0, x1, y1 = boxes[0].tolist()
            place = (
                columns.min() / WIDTH,
                rows.min() / HEIGHT,
                (columns.max() + 1) / WIDTH,
                (rows.max() + 1) / HEIGHT,
            )
            assert np.abs(np.subtract(place, (x0, y0, x1, y1))).max() < 1.6 / HEIGHT
            seen += 1
    assert seen > 100


def test_without_changes_a_picture_stays_as_it_is() -> None:
    found, objects = pictures()
    batches = augmenter(flip=False, scale=1.0)
    inputs = batches.batch(torch.arange(8), 0, 3)
    assert (inputs.float().numpy().transpose(0, 2, 3, 1) == found).all()
    assert np.allclose(batches.boxes[:, 0].numpy(), np.concatenate([one.boxes for one in objects]), atol=1e-6)


def test_an_object_that_is_mostly_outside_is_dropped() -> None:
    batches = augmenter(scale=3.0)
    dropped = 0
    for step in range(30):
        batches.batch(torch.arange(8), 0, step)
        boxes = batches.boxes[batches.classes >= 0]
        assert ((boxes >= 0) & (boxes <= 1)).all()
        dropped += int((batches.classes < 0).sum())
    assert dropped > 5


def test_a_step_decides_all_that_is_random() -> None:
    one, other = augmenter(light=0.2), augmenter(light=0.2)
    other.batch(torch.arange(8), 0, 1)
    assert torch.equal(one.batch(torch.arange(8), 0, 7), other.batch(torch.arange(8), 0, 7))
    assert torch.equal(one.boxes, other.boxes)
    assert not torch.equal(one.batch(torch.arange(8), 0, 8), other.batch(torch.arange(8), 0, 7))


def test_light_changes_brightness_and_stays_in_range() -> None:
    found = augmenter(light=0.9).batch(torch.arange(8), 0, 0)
    assert 0 <= float(found.min()) < float(found.max()) <= 255
    assert len({float(one.max()) for one in found}) > 4
