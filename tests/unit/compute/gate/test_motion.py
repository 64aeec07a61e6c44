from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.gate.motion import GateDecision, MotionGate, complexity, crop_around
from agent.config import GateConfig
from agent.types import Box, Image, Luma

pytestmark = pytest.mark.numerics

Scene = NDArray[np.float32]

HEIGHT, WIDTH = 288, 384
FRAME_NS = 100_000_000
_RANDOM = np.random.default_rng(7)
_NOISE = [_RANDOM.normal(0.0, 1.0, (HEIGHT, WIDTH, 3)).astype(np.float32) for _ in range(9)]


def scene() -> Scene:
    """A textured background: a gradient, walls and windows."""
    picture = np.linspace(50, 170, WIDTH, dtype=np.float32)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    picture[40:120, 60:160] -= 40
    picture[150:200, 220:330] += 50
    return picture


def noisy(picture: Scene, sigma: float, number: int) -> Image:
    noise = np.roll(_NOISE[number % len(_NOISE)], 31 * number, axis=0)
    return np.clip(picture + sigma * noise, 0, 255).astype(np.uint8)


def sights(gate: MotionGate, pictures: Iterator[Image]) -> list[GateDecision]:
    return [gate.evaluate(image, number * FRAME_NS, watching=False) for number, image in enumerate(pictures)]


def walk(size: tuple[int, int], speed: float, contrast: float, begin: int, count: int) -> Iterator[Image]:
    """Something of `size` (width, height, px) crosses the picture from frame `begin` on."""
    for number in range(count):
        picture = scene()
        if number >= begin:
            x = round(100 + speed * (number - begin))
            picture[210 : 210 + size[1], x : x + size[0]] += contrast
        yield noisy(picture, 4.0, number)


@pytest.mark.parametrize("sigma", [0.0, 3.0, 6.0, 12.0])
def test_camera_noise_keeps_it_closed(sigma: float) -> None:
    seen = sights(MotionGate(GateConfig()), (noisy(scene(), sigma, n) for n in range(100)))
    assert Counter(sight.reason for sight in seen) == {"first": 1, "still": 99}


def test_compression_flicker_keeps_it_closed() -> None:
    def flicker(number: int) -> Scene:
        blocks = np.random.default_rng(number).uniform(-6, 6, (HEIGHT // 16, WIDTH // 16, 1))
        return scene() + np.kron(blocks, np.ones((16, 16, 1))).astype(np.float32)

    seen = sights(MotionGate(GateConfig()), (noisy(flicker(n), 3.0, n) for n in range(100)))
    assert sum(sight.open for sight in seen[20:]) == 0


@pytest.mark.parametrize("per_frame", [-0.0015, 0.0015])
def test_slow_light_drift_keeps_it_closed(per_frame: float) -> None:
    seen = sights(MotionGate(GateConfig()), (noisy(scene() * (1 + per_frame * n), 4.0, n) for n in range(200)))
    assert sum(sight.open for sight in seen) == 1


def _lamp(picture: Scene) -> Scene:
    return picture * 1.5


def _offset(picture: Scene) -> Scene:
    return picture + 40


def _half(picture: Scene) -> Scene:
    changed = picture.copy()
    changed[:, : WIDTH // 2] *= 1.6
    return changed


def _dark(picture: Scene) -> Scene:
    return picture * 0.4


@pytest.mark.parametrize("light", [_lamp, _offset, _half, _dark])
def test_a_lamp_opens_it_only_briefly(light: Callable[[Scene], Scene]) -> None:
    pictures = (noisy(light(scene()) if n >= 50 else scene(), 4.0, n) for n in range(120))
    seen = sights(MotionGate(GateConfig(hold_s=1.0)), pictures)
    assert not any(sight.open for sight in seen[1:50])
    assert sum(sight.open for sight in seen[50:]) <= 15
    assert not any(sight.open for sight in seen[70:])


@pytest.mark.parametrize(
    ("size", "speed", "contrast"),
    [
        pytest.param((6, 11), 2.0, -60.0, id="far"),
        pytest.param((8, 16), 0.5, -60.0, id="slow"),
        pytest.param((8, 16), 10.0, 60.0, id="fast"),
        pytest.param((20, 50), 3.0, -25.0, id="pale"),
    ],
)
def test_a_walker_opens_it_at_once(size: tuple[int, int], speed: float, contrast: float) -> None:
    seen = sights(MotionGate(GateConfig()), walk(size, speed, contrast, 40, 60))
    assert not any(sight.open for sight in seen[1:40])
    assert [sight.reason for sight in seen[41:]] == ["motion"] * 19


def test_the_region_is_where_the_walker_is() -> None:
    seen = sights(MotionGate(GateConfig()), walk((20, 40), 0.0, -80.0, 20, 22))
    assert seen[-1].regions[0] == pytest.approx((100 / WIDTH, 210 / HEIGHT, 120 / WIDTH, 250 / HEIGHT), abs=0.02)


def test_it_holds_after_motion_and_then_closes() -> None:
    gate = MotionGate(GateConfig(hold_s=0.5))

    def pictures() -> Iterator[Image]:
        yield from walk((20, 40), 0.0, -80.0, 20, 22)
        yield from (noisy(scene(), 4.0, n) for n in range(22, 40))

    reasons = [sight.reason for sight in sights(gate, pictures())]
    assert reasons[20:22] == ["motion", "motion"]
    assert reasons[22:26] == ["hold"] * 4
    assert set(reasons[26:]) == {"still"}


def test_a_thing_that_stays_becomes_background() -> None:
    seen = sights(MotionGate(GateConfig()), walk((20, 40), 0.0, 80.0, 20, 300))
    assert seen[40].open
    assert not seen[-1].open


@pytest.mark.parametrize(("sensitivity", "opens"), [(0.0, False), (1.0, True)])
def test_sensitivity_decides_about_a_pale_walker(sensitivity: float, opens: bool) -> None:
    seen = sights(MotionGate(GateConfig(sensitivity=sensitivity)), walk((20, 40), 4.0, 12.0, 30, 40))
    assert any(sight.open for sight in seen[30:]) is opens


def test_min_area_ignores_what_is_smaller() -> None:
    seen = sights(MotionGate(GateConfig(min_area=0.05)), walk((20, 40), 4.0, 80.0, 30, 40))
    assert not any(sight.open for sight in seen[1:])


def test_an_inference_at_least_every_max_idle() -> None:
    gate = MotionGate(GateConfig(max_idle_s=2.0))
    reasons = [sight.reason for sight in sights(gate, (noisy(scene(), 3.0, n) for n in range(61)))]
    assert [n for n, reason in enumerate(reasons) if reason == "keep-alive"] == [20, 40, 60]


def test_it_never_closes_while_a_track_lives() -> None:
    gate = MotionGate(GateConfig(hold_s=0.0))
    reasons = [gate.evaluate(noisy(scene(), 3.0, n), n * FRAME_NS, watching=n < 20).reason for n in range(30)]
    assert reasons == ["first"] + ["track"] * 19 + ["still"] * 10


def test_it_opens_for_one_picture_when_a_check_is_due() -> None:
    gate = MotionGate(GateConfig(hold_s=0.0))
    reasons = [
        gate.evaluate(noisy(scene(), 3.0, n), n * FRAME_NS, watching=False, check=n == 5).reason for n in range(8)
    ]
    assert reasons == ["first", "still", "still", "still", "still", "check", "still", "still"]


def test_a_crop_holds_what_rests_only_where_something_moves() -> None:
    near, far = (0.2, 0.7, 0.4, 0.8), (0.9, 0.05, 0.95, 0.1)
    gate = MotionGate(GateConfig(crop=True))
    seen = [
        gate.evaluate(image, n * FRAME_NS, watching=False, resting=(near, far))
        for n, image in enumerate(walk((10, 20), 0.0, -80.0, 20, 25))
    ]
    crop = seen[-1].crop
    assert crop is not None
    assert _inside(near, crop)
    assert not _inside(far, crop)


def test_a_gate_that_is_off_is_always_open_and_looks_at_nothing() -> None:
    gate = MotionGate(GateConfig(motion=False))
    sight = gate.evaluate(np.empty((0, 0, 3), np.uint8), 0, watching=False)
    assert (sight.open, sight.reason, sight.crop) == (True, "off", None)


def test_another_picture_size_is_learned_anew() -> None:
    gate = MotionGate(GateConfig())
    sights(gate, (noisy(scene(), 3.0, n) for n in range(5)))
    smaller = noisy(scene(), 3.0, 1)[:200, :300].copy()
    reasons = [gate.evaluate(smaller, n * FRAME_NS, watching=False).reason for n in range(5, 8)]
    assert reasons == ["first", "still", "still"]


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2), (1080, 1920), (1001, 641)])
def test_any_picture_size_is_taken(shape: tuple[int, int]) -> None:
    gate = MotionGate(GateConfig())
    image = np.full((*shape, 3), 90, np.uint8)
    reasons = [gate.evaluate(image, n * FRAME_NS, watching=False).reason for n in range(3)]
    assert reasons == ["first", "still", "still"]


def test_a_crop_holds_what_moves_and_what_is_kept() -> None:
    gate = MotionGate(GateConfig(crop=True))
    keep = ((0.45, 0.6, 0.5, 0.7),)
    seen = [
        gate.evaluate(image, n * FRAME_NS, watching=n > 20, keep=keep)
        for n, image in enumerate(walk((10, 20), 0.0, -80.0, 20, 25))
    ]
    crop = seen[-1].crop
    assert crop is not None
    assert all(_inside(box, crop) for box in (*seen[-1].regions, *keep))


def test_the_whole_frame_is_looked_at_again_every_max_idle_even_when_cropping() -> None:
    gate = MotionGate(GateConfig(crop=True, max_idle_s=1.0))
    keep = ((0.45, 0.6, 0.5, 0.7),)
    seen = [gate.evaluate(noisy(scene(), 3.0, n), n * FRAME_NS, watching=True, keep=keep) for n in range(31)]
    assert [n for n, sight in enumerate(seen) if sight.crop is None] == [0, 10, 20, 30]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**10), st.booleans()), min_size=1, max_size=30))
def test_it_is_open_whenever_a_track_lives_whatever_is_shown(steps: list[tuple[int, int, bool]]) -> None:
    gate = MotionGate(GateConfig(crop=True))
    now_ns = 0
    for shade, later_ns, alive in steps:
        now_ns += later_ns
        image = np.full((24, 32 + shade % 2, 3), 50 * shade, np.uint8)
        image[4:12, 4 * shade : 4 * shade + 6] = 200
        sight = gate.evaluate(image, now_ns, watching=alive)
        assert sight.open or not alive
        assert sight.open == (sight.reason != "still")
        assert 0.0 <= sight.complexity <= 1.0
        assert all(_inside(box, (0.0, 0.0, 1.0, 1.0)) for box in sight.regions)


def _boxes(most: int) -> st.SearchStrategy[list[Box]]:
    corner = st.floats(0.0, 1.0)
    sides = st.tuples(corner, corner, corner, corner)
    box = sides.map(lambda s: (min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]), max(s[1], s[3])))
    return st.lists(box, max_size=most)


@given(_boxes(6))
def test_a_crop_lies_in_the_frame_in_its_aspect_and_holds_all(boxes: list[Box]) -> None:
    crop = crop_around(boxes)
    if crop is not None:
        assert _inside(crop, (0.0, 0.0, 1.0, 1.0))
        assert all(_inside(box, crop) for box in boxes)
        assert crop[2] - crop[0] == pytest.approx(crop[3] - crop[1])
        assert 0.25 <= crop[2] - crop[0] <= 0.7 + 1e-9


@pytest.mark.parametrize("boxes", [[], [(0.1, 0.1, 0.9, 0.2)], [(0.0, 0.0, 0.1, 0.1), (0.9, 0.9, 1.0, 1.0)]])
def test_no_crop_when_it_would_not_be_clearly_smaller(boxes: list[Box]) -> None:
    assert crop_around(boxes) is None


@given(_boxes(6))
def test_complexity_is_a_share(boxes: list[Box]) -> None:
    assert 0.0 <= complexity(boxes) <= 1.0


def test_more_smaller_and_wider_spread_is_harder() -> None:
    near, far = (0.3, 0.3, 0.7, 0.9), (0.3, 0.3, 0.32, 0.35)
    away = (0.9, 0.9, 0.92, 0.95)
    assert complexity([]) < complexity([near]) < complexity([far]) < complexity([far, away])


def _inside(box: Box, outer: Box) -> bool:
    slack = 1e-9
    return (
        outer[0] - slack <= box[0] <= box[2] <= outer[2] + slack
        and outer[1] - slack <= box[1] <= box[3] <= outer[3] + slack
    )


LOWER = ((0.0, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0))


def reasons(gate: MotionGate) -> Counter[str]:
    return Counter(one.reason for one in sights(gate, walk((20, 50), 2.0, 60.0, 20, 60)))


def test_what_moves_in_a_mask_opens_no_gate() -> None:
    assert reasons(MotionGate(GateConfig()))["motion"] > 30
    masked = MotionGate(GateConfig(masks=(LOWER,)))
    assert reasons(masked) == {"first": 1, "still": 59}


def test_what_moves_beside_a_mask_opens_it() -> None:
    beside = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.6), (0.0, 0.6))
    assert reasons(MotionGate(GateConfig(masks=(beside,)))) == reasons(MotionGate(GateConfig()))


def test_masks_lie_in_the_frame_although_only_a_part_of_it_is_shown() -> None:
    shown = (0.0, 0.5, 1.0, 1.0)
    upper = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.45), (0.0, 0.45))
    assert reasons(MotionGate(GateConfig(masks=(upper,)), shown)) == reasons(MotionGate(GateConfig(), shown))
    half = ((0.0, 0.8), (1.0, 0.8), (1.0, 1.0), (0.0, 1.0))  # below 0.6 of what is shown
    assert reasons(MotionGate(GateConfig(masks=(half,)), shown))["motion"] == 0


def test_other_masks_count_from_the_next_picture_on() -> None:
    gate = MotionGate(GateConfig())
    gate.set_masks((LOWER,))
    assert reasons(gate)["motion"] == 0
    gate.set_masks(())
    moved = [
        gate.evaluate(image, (100 + n) * FRAME_NS, watching=False)
        for n, image in enumerate(walk((20, 50), 2.0, 60.0, 0, 20))
    ]
    assert any(one.reason == "motion" for one in moved)


def brightness(image: Image, *, full_range: bool) -> Luma:
    """What a decoder has of a picture, with rows that have gaps."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    levels = grey if full_range else 16.0 + grey * 219.0 / 255.0
    rows = np.zeros((HEIGHT, WIDTH + 32), np.uint8)
    rows[:, :WIDTH] = np.rint(levels)
    return Luma(rows[:, :WIDTH], full_range)


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("contrast", [25.0, 40.0])
def test_a_decoders_brightness_shows_the_movement_that_the_picture_shows(
    full_range: bool, contrast: float
) -> None:
    pictures = list(walk((18, 40), 3.0, contrast, 40, 60))
    in_colours, in_grey = MotionGate(GateConfig()), MotionGate(GateConfig())
    seen = sights(in_colours, iter(pictures))
    also = [
        in_grey.evaluate(brightness(image, full_range=full_range), number * FRAME_NS, watching=False)
        for number, image in enumerate(pictures)
    ]
    assert [one.open for one in also[:40]] == [one.open for one in seen[:40]]
    same = sum(one.reason == other.reason for one, other in zip(seen, also, strict=True))
    assert same >= 57
    assert also[-1].reason == "motion"


def test_a_picture_in_colours_after_its_brightness_is_learned_anew() -> None:
    gate, picture = MotionGate(GateConfig()), noisy(scene(), 2.0, 0)
    assert gate.evaluate(brightness(picture, full_range=False), 0, watching=False).reason == "first"
    assert gate.evaluate(brightness(picture, full_range=False), FRAME_NS, watching=False).reason == "still"
    assert gate.evaluate(picture, 2 * FRAME_NS, watching=False).reason == "first"


@pytest.mark.parametrize("full_range", [True, False])
def test_a_view_of_brightness_alone_is_that_of_a_grey_picture(full_range: bool) -> None:
    shown = cv2.cvtColor(cv2.resize(noisy(scene(), 2.0, 0), (4 * WIDTH, 4 * HEIGHT)), cv2.COLOR_BGR2GRAY)
    luma = shown if full_range else np.rint(shown * (219.0 / 255.0) + 16.0)
    in_colours, in_grey = MotionGate(GateConfig()), MotionGate(GateConfig())
    picture, brightness = cv2.merge([shown] * 3), Luma(luma.astype(np.uint8), full_range)
    in_colours.evaluate(picture.astype(np.uint8), 0, watching=False)
    in_grey.evaluate(brightness, 0, watching=False)
    small, detail = in_grey.view(brightness)
    expected_small, expected_detail = in_colours.view(picture.astype(np.uint8))
    assert np.abs(small.astype(int) - expected_small).max() <= 3
    assert np.abs(detail.astype(int) - expected_detail[:, :, 1]).max() <= 3
