"""Random changes of training pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.errors import ModelError
from agent.optimise.augment import Augmentation, Augmenter, Normalisation

PLAIN = Normalisation(mean=0, std=1.0)


def numbered(count: int, height: int, width: int) -> Any:
    """Pictures whose pixels all differ: row, column, and the picture's number."""
    pictures = np.zeros((count, height, width, 3), np.uint8)
    pictures[..., 0], pictures[..., 1] = np.mgrid[0:height, 0:width]
    pictures[..., 2] = np.arange(count)[:, None, None]
    return pictures


def drawn(pictures: Any, augmentation: Augmentation, *, epoch: int = 0, step: int = 0, seed: int = 0) -> Any:
    data = Augmenter(pictures, augmentation, PLAIN, seed, torch.device("cpu"))
    batch = data.batch(torch.arange(len(pictures)), epoch, step)
    return batch.float().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def test_without_changes_pictures_stay_as_they_are() -> None:
    pictures = numbered(3, 6, 9)
    assert np.array_equal(drawn(pictures, Augmentation(shift=0, flip=False)), pictures)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 20), st.data())
def test_a_shift_mirrors_the_edge(height: int, width: int, step: int, data: Any) -> None:
    shift = data.draw(st.integers(0, min(height, width) - 1))
    pictures = numbered(1, height, width)
    got = drawn(pictures, Augmentation(shift=shift, flip=False), step=step)[0]
    padded = np.pad(pictures[0], ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
    crops = [padded[y : y + height, x : x + width] for y in range(2 * shift + 1) for x in range(2 * shift + 1)]
    assert any(np.array_equal(got, crop) for crop in crops)


def test_each_picture_is_mirrored_in_every_other_epoch() -> None:
    pictures = numbered(40, 4, 6)
    even, odd, next_even = (drawn(pictures, Augmentation(shift=0), epoch=epoch) for epoch in (0, 1, 2))
    mirrored = [bool((one[0, 0, 1]) == 5) for one in even]
    assert 8 < sum(mirrored) < 32
    assert [bool(one[0, 0, 1] == 5) for one in odd] == [not one for one in mirrored]
    assert np.array_equal(even, next_even)


def test_a_turned_picture_is_one_of_four() -> None:
    pictures = np.repeat(numbered(1, 5, 5), 40, axis=0)
    got = drawn(pictures, Augmentation(shift=0, flip=False, turn=True))
    quarters = [np.rot90(pictures[0], number) for number in range(4)]
    numbers = [next(number for number, one in enumerate(quarters) if np.array_equal(one, own)) for own in got]
    assert set(numbers) == {0, 1, 2, 3}
    with pytest.raises(ModelError, match="4×8 cannot be turned"):
        Augmentation(shift=1, turn=True).check(4, 8)


def test_light_changes_brightness_and_contrast_within_its_limit() -> None:
    pictures = np.full((200, 4, 4, 3), 100, np.uint8)
    pictures[:, :2] = 140
    got = drawn(pictures, Augmentation(shift=0, flip=False, light=0.2)).astype(float)
    means = got.mean((1, 2, 3))
    contrasts = (got[:, 0].mean((1, 2)) - got[:, 3].mean((1, 2))) / means
    assert 94 <= means.min() < 105
    assert 135 < means.max() <= 145
    assert 0.8 * 40 / 120 - 0.02 <= contrasts.min() < contrasts.max() <= 1.2 * 40 / 120 + 0.02
    assert contrasts.max() - contrasts.min() > 0.1
    with pytest.raises(ValueError, match="light"):
        Augmentation(light=1.0)


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    pictures = numbered(20, 9, 9)
    change = Augmentation(shift=3, turn=True, light=0.3)
    assert np.array_equal(drawn(pictures, change, step=5), drawn(pictures, change, step=5))
    assert not np.array_equal(drawn(pictures, change, step=5), drawn(pictures, change, step=6))
    assert not np.array_equal(drawn(pictures, change, step=5), drawn(pictures, change, step=5, seed=1))


def test_normalisation_is_the_quantisation_of_the_input() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    normalised = Normalisation(mean=121, std=64.0).apply(pixels)
    assert torch.equal(torch.round(normalised * 64 + 121).to(torch.uint8).view(-1), pixels.view(-1))


def test_each_channel_may_have_a_mean_of_its_own() -> None:
    pixels = torch.tensor([[[[10, 20, 30]]]], dtype=torch.uint8)
    assert Normalisation(mean=(10.0, 0.0, 20.0), std=(1.0, 2.0, 5.0)).apply(pixels).flatten().tolist() == [
        0,
        10,
        2,
    ]
    with pytest.raises(ModelError, match="2 values of mean for 3 channels"):
        Normalisation(mean=(1.0, 2.0)).check(3)


def test_pictures_too_small_for_the_changes_are_refused() -> None:
    with pytest.raises(ModelError, match="4×8"):
        Augmentation(shift=4).check(4, 8)


def test_impossible_values_are_refused() -> None:
    for wrong in (256.0, -1.0, float("nan"), (0.0, 300.0, 0.0)):
        with pytest.raises(ValueError, match="mean: expected"):
            Normalisation(mean=wrong)
    for wrong in (0.0, -1.0, float("nan"), (1.0, 0.0, 1.0)):
        with pytest.raises(ValueError, match="std: expected"):
            Normalisation(std=wrong)
    with pytest.raises(ValueError, match="shift"):
        Augmentation(shift=-1)
