"""The light barrier in the picture: parts that pass, stop, and are not wholly in view."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from agent.compute.gate.barrier import BarrierReading, LightBarrier
from agent.types import Image
from tests.support.belt import belt

REGION = (0.45, 0.3, 0.55, 0.7)
S = 1_000_000_000


def barrier(cover: float = 0.3) -> LightBarrier:
    return LightBarrier(REGION, cover)


def read(
    barrier: LightBarrier, pictures: Iterable[Image], fps: float = 20.0, from_s: float = 0.0
) -> list[BarrierReading]:
    return [barrier.read(one, round((from_s + n / fps) * S)) for n, one in enumerate(pictures)]


def crossings(readings: Iterable[BarrierReading]) -> int:
    return sum(one.crossed for one in readings)


def passing(*, light: float = 1.0, seed: int = 0) -> list[Image]:
    """A part that goes through the picture from left to right."""
    return [belt([centre], light=light, seed=seed + n) for n, centre in enumerate(np.linspace(-0.3, 1.3, 40))]


def test_a_part_that_passes_is_announced_once() -> None:
    readings = read(barrier(), [belt([]), *passing(), belt([])])
    assert crossings(readings) == 1
    (at,) = [n for n, one in enumerate(readings) if one.crossed]
    assert 12 < at < 24
    assert not readings[-1].covered


def test_each_of_several_parts_is_announced() -> None:
    pictures = [belt([]), *(one for n in range(7) for one in passing(seed=100 * n))]
    assert crossings(read(barrier(), pictures)) == 7


def test_an_empty_belt_announces_nothing_in_changing_light_and_noise() -> None:
    lights = [1.0 + 0.4 * np.sin(n / 30) for n in range(400)]
    assert crossings(read(barrier(), [belt([], light=light, seed=n) for n, light in enumerate(lights)])) == 0


def test_parts_are_announced_in_other_light_than_the_belt_was_learned_in() -> None:
    dimmed = [belt([], light=light, seed=n) for n, light in enumerate(np.linspace(1.0, 0.6, 10))]
    pictures = [belt([]), *dimmed, *passing(light=0.6)]
    assert crossings(read(barrier(), pictures)) == 1


def test_a_part_is_cut_until_it_is_wholly_in_view() -> None:
    readings = read(barrier(), [belt([]), belt([0.5])])
    assert (readings[1].crossed, readings[1].is_cut) == (True, False)
    long = read(barrier(), [belt([]), belt([0.5], radius=0.9)])
    assert (long[1].crossed, long[1].is_cut) == (True, True)


def test_only_what_the_model_is_shown_counts_for_a_cut() -> None:
    watch = LightBarrier(REGION, 0.3, (0.4, 0.0, 0.6, 1.0))
    assert read(watch, [belt([]), belt([0.5])])[1].is_cut


def test_a_line_that_stands_still_announces_the_part_once() -> None:
    standing = [belt([0.5], seed=n) for n in range(50)]
    watch = barrier()
    readings = read(watch, [belt([]), *passing()])
    readings += read(watch, standing, fps=1.0, from_s=10.0)  # longer than it takes to learn it
    readings += read(watch, [belt([centre]) for centre in np.linspace(0.5, 1.3, 20)], from_s=100.0)
    assert crossings(readings) == 2  # the one that passed, and the one that stood
    assert crossings(read(watch, passing(), from_s=110.0)) == 1


def test_a_part_that_is_there_at_the_start_costs_one_announcement_at_most() -> None:
    watch = barrier()
    readings = read(watch, [belt([0.5]), *(belt([centre]) for centre in np.linspace(0.5, 1.3, 20))])
    readings += read(watch, [belt([], seed=n) for n in range(50)], fps=1.0, from_s=10.0)
    assert crossings(readings) <= 1
    assert crossings(read(watch, passing(), from_s=100.0)) == 1


def test_what_is_put_into_the_region_for_good_is_learned_with_the_next_parts() -> None:
    watch = barrier()
    read(watch, [belt([]), *passing(), belt([])])
    read(watch, [_fixed(belt([], seed=n)) for n in range(50)], fps=1.0, from_s=10.0)
    over = [_fixed(belt([place], radius=0.45, seed=n)) for n, place in enumerate(np.linspace(-0.3, 1.3, 40))]
    gap = [_fixed(belt([], seed=n)) for n in range(40)]
    for number in range(3):
        read(watch, [*over, *gap], from_s=100.0 + 5 * number)
    assert crossings(read(watch, [*over, *gap], from_s=120.0)) == 1


def _shaded(picture: Image) -> Image:
    """Let a shadow fall on two thirds of the picture."""
    dark = picture.copy()
    dark[:, 110:] = (dark[:, 110:] * 0.5).astype(np.uint8)
    return dark


@pytest.mark.parametrize("change", [0.6, 1.3, 1.6, _shaded])
def test_a_busy_line_goes_on_after_a_lamp_is_switched_or_a_shadow_falls(change: object) -> None:
    def now(centre: float | None, seed: int) -> Image:
        light = change if isinstance(change, float) else 1.0
        picture = belt([] if centre is None else [centre], light=light, seed=seed)
        return change(picture) if callable(change) else picture

    watch = barrier()
    read(watch, [belt([]), *passing(), belt([])])
    part = [now(centre, seed) for seed, centre in enumerate(np.linspace(-0.3, 1.3, 40))]
    gap = [now(None, seed) for seed in range(40)]
    readings = read(watch, 20 * [*part, *gap], from_s=10.0)  # a part every 4 s
    assert crossings(readings[400:]) == 15  # the first five may be lost


def _fixed(picture: Image) -> Image:
    """Put something dark into the region, beneath what is bright."""
    below = picture.copy()
    below[50:110, 140:180] = 5
    return np.where(picture > 110, picture, below)


def test_a_camera_of_another_size_begins_anew() -> None:
    watch = barrier()
    read(watch, [belt([])])
    (reading,) = read(watch, [belt([0.5], size=(120, 200))])
    assert not reading.covered


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2, 2)])
def test_any_picture_is_read(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    assert crossings(read(barrier(), [picture, picture])) == 0
