from __future__ import annotations

from collections.abc import Callable
from itertools import count

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.gate.motion import MotionGate
from agent.config import GateConfig
from agent.features.condition.camera import CameraCondition, describe_move
from agent.features.condition.view import Displacement, LearnedView, PackedView, describe, match, search
from agent.types import Image
from tests.support.staged_camera import HEIGHT, WIDTH, StagedCamera

pytestmark = pytest.mark.numerics

Take = Callable[[int], Image]


class Watched:
    """A camera whose pictures pass the gate and are watched, on a made clock."""

    def __init__(self, condition: CameraCondition | None = None, seed: int = 0, fps: float = 2.0) -> None:
        self.camera = StagedCamera(seed)
        self.condition = condition or CameraCondition()
        self._gate, self._fps = MotionGate(GateConfig()), fps
        self.now_s = 0.0

    def show(self, seconds: float, take: Take | None = None) -> list[str]:
        """Show pictures for a while; return the problems at its end."""
        end_s = self.now_s + seconds
        for number in count():
            if self.now_s >= end_s:
                return list(self.condition.problems)
            picture = self.camera.picture() if take is None else take(number)
            at_ns = round(self.now_s * 1e9)
            self._gate.evaluate(picture, at_ns, watching=False)
            self.condition.update(at_ns, lambda picture=picture: self._gate.view(picture))  # type: ignore[misc]
            self.now_s += 1.0 / self._fps
        raise AssertionError

    def of(self, view: Image, gain: float = 1.0, noise: float = 2.0) -> Take:
        """Return what takes pictures of another view."""
        return lambda _: self.camera.picture(view, gain, noise)

    def moved(self, right: float = 0.0, down: float = 0.0, degrees: float = 0.0) -> Take:
        return self.of(self.camera.view(right, down, degrees))


def settled() -> Watched:
    watched = Watched()
    assert watched.show(40) == []
    return watched


def blur(view: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(view, (0, 0), sigma), np.uint8)


def hand() -> Image:
    """Something smooth near the lens."""
    return np.linspace(70, 130, WIDTH, dtype=np.uint8)[None, :].repeat(HEIGHT, 0)


def test_a_dark_camera_is_told_within_half_a_minute_and_ends_in_the_morning() -> None:
    watched = Watched()
    assert watched.show(15, watched.of(watched.camera.view(), 0.02)) == []
    assert watched.show(15, watched.of(watched.camera.view(), 0.02)) == ["dark"]
    assert watched.show(300, watched.of(watched.camera.view(), 0.02)) == ["dark"]
    assert watched.show(20) == []


def test_head_lights_in_the_dark_end_nothing() -> None:
    watched = Watched()
    night = watched.camera.picture(gain=0.02)
    lit = night.copy()
    lit[100:140, 50:200] = 255

    def passing(number: int) -> Image:
        return lit if number % 60 < 10 else night

    watched.show(30, lambda _: night)
    assert watched.show(100, passing) == ["dark"]


@pytest.mark.parametrize("clock", [False, True])
def test_one_picture_again_and_again_is_frozen_also_with_a_clock_in_it(clock: bool) -> None:
    watched = settled()
    kept = watched.camera.picture()

    def take(number: int) -> Image:
        picture = kept.copy()
        if clock:
            cv2.putText(
                picture, f"12:00:{number // 2:02d}", (5, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255)
            )
        return picture

    assert watched.show(30, take) == []
    assert watched.show(20, take) == ["frozen"]
    assert watched.show(10) == []


def test_a_quiet_scene_with_noise_is_not_frozen() -> None:
    watched = settled()
    assert watched.show(100, watched.of(watched.camera.view(), 1.0, 0.7)) == []


@pytest.mark.parametrize("apart_s", [3, 5, 10])
def test_a_place_without_noise_in_which_a_leaf_moves_is_not_frozen_also_of_a_slow_camera(apart_s: int) -> None:
    watched, random = Watched(fps=1.0 / apart_s), np.random.default_rng(7)
    still = watched.camera.picture(noise=0.0)

    def take(_: int) -> Image:
        picture, y, x = still.copy(), random.integers(HEIGHT - 8), random.integers(WIDTH - 8)
        picture[y : y + 8, x : x + 8] ^= 32
        return picture

    for _ in range(20):
        assert watched.show(10.0 * apart_s, take) == []


def test_one_picture_of_a_slow_camera_is_frozen_after_as_many_as_another_camera_shows_in_40_s() -> None:
    watched = Watched(fps=0.125)
    kept = watched.camera.picture()
    assert watched.show(80, lambda _: kept) == []
    assert watched.show(20, lambda _: kept) == ["frozen"]


@pytest.mark.parametrize("sigma", [2.5, 5.0])
def test_a_camera_out_of_focus_is_blurred_until_it_is_sharp(sigma: float) -> None:
    watched = settled()
    assert watched.show(30, watched.of(blur(watched.camera.view(), sigma))) == ["blurred"]
    assert watched.show(20) == []


def test_a_camera_that_was_never_sharp_is_not_blurred() -> None:
    watched = Watched()
    assert watched.show(120, watched.of(blur(watched.camera.view(), 4.0))) == []


@pytest.mark.parametrize("strip", [0, WIDTH // 10])
def test_a_hand_on_the_lens_covers_it_also_if_a_strip_is_left(strip: int) -> None:
    watched = settled()
    covered = hand()
    covered[:, :strip] = watched.camera.view()[:, :strip]
    assert watched.show(25, watched.of(covered)) == ["covered"]
    assert watched.show(20) == []


@pytest.mark.parametrize("place", [(0.08, 0.0), (-0.15, 0.1), (0.0, -0.2)])
def test_a_shifted_camera_has_moved_and_is_back_when_it_is_put_back(place: tuple[float, float]) -> None:
    watched = settled()
    assert watched.show(30, watched.moved(*place)) == ["moved"]
    assert watched.condition.moved
    assert watched.show(60, watched.moved(*place)) == ["moved"]
    assert watched.show(20) == []
    assert not watched.condition.moved


@pytest.mark.parametrize("degrees", [5.0, -10.0, 16.0])
def test_a_turned_camera_is_tilted(degrees: float) -> None:
    watched = settled()
    assert watched.show(30, watched.moved(degrees=degrees)) == ["tilted"]


def test_how_far_it_has_moved_is_told() -> None:
    watched = settled()
    watched.show(30, watched.moved(0.125, -0.1))
    assert watched.condition.problems == {"moved": "12% right, 10% up"}
    assert describe_move(Displacement(0.0, 0.0, 6.0, 1.0)) == "6° anticlockwise"


def test_a_camera_that_looks_elsewhere_has_moved() -> None:
    watched = settled()
    elsewhere = StagedCamera(9).view()
    assert watched.show(30, watched.of(elsewhere)) == []
    assert watched.show(25, watched.of(elsewhere)) == ["moved"]
    assert watched.condition.problems["moved"] == "another view"


def test_a_slow_camera_is_watched_too() -> None:
    watched = Watched(fps=0.25)
    assert watched.show(120) == []
    assert watched.show(60, watched.moved(0.15)) == ["moved"]


@settings(max_examples=8, deadline=None)
@given(st.floats(0.25, 1.6), st.integers(0, 3))
def test_no_change_of_light_is_a_problem(gain: float, seed: int) -> None:
    watched = Watched(seed=seed)
    watched.show(40)
    assert watched.show(60, watched.of(watched.camera.view(), gain)) == []


def test_what_fills_half_of_the_view_is_no_problem() -> None:
    watched = settled()
    truck = watched.camera.view()
    truck[40:, 30:200] = StagedCamera(5).view()[40:, 30:200]
    assert watched.show(200, watched.of(truck)) == []
    assert watched.show(60) == []


def test_light_from_elsewhere_is_no_problem() -> None:
    watched = settled()
    negative = (255 - watched.camera.view()) // 2 + 20
    assert watched.show(150, watched.of(np.asarray(negative, np.uint8), 1.0, 6.0)) == []


def test_the_view_of_a_moved_camera_can_be_accepted() -> None:
    watched = settled()
    watched.show(30, watched.moved(0.15))
    watched.condition.accept()
    assert watched.show(60, watched.moved(0.15)) == []
    assert watched.show(30) == ["moved"]


def test_zones_that_are_drawn_anew_accept_the_view() -> None:
    watched = Watched(CameraCondition("drive"))
    watched.show(40)
    watched.show(30, watched.moved(0.15))
    watched.condition.set_zones("drive")
    assert watched.show(1, watched.moved(0.15)) == ["moved"]
    watched.condition.set_zones("drive, drawn anew")
    assert watched.show(1, watched.moved(0.15)) == []


def test_a_view_is_accepted_after_an_hour_only_without_zones() -> None:
    free, bound = Watched(fps=0.1), Watched(CameraCondition("drive"), fps=0.1)
    for watched in (free, bound):
        watched.show(200)
        assert watched.show(3500, watched.moved(0.15)) == ["moved"]
    assert free.show(300, free.moved(0.15)) == []
    assert bound.show(300, bound.moved(0.15)) == ["moved"]


def test_a_camera_that_moved_while_nobody_looked_is_told_after_a_restart() -> None:
    before = settled()
    memory = before.condition.remember()
    after = Watched(CameraCondition("", memory))
    assert after.show(30, after.moved(0.15)) == ["moved"]


def test_a_moved_camera_is_still_moved_after_a_restart() -> None:
    before = settled()
    before.show(30, before.moved(0.15))
    after = Watched(CameraCondition("", before.condition.remember()))
    assert list(after.condition.problems) == ["moved"]
    assert after.show(20) == []


def test_zones_that_were_drawn_anew_meanwhile_accept_the_view() -> None:
    before = Watched(CameraCondition("drive"))
    before.show(40)
    before.show(30, before.moved(0.15))
    after = Watched(CameraCondition("drawn anew", before.condition.remember()))
    assert after.show(60, after.moved(0.15)) == []


def test_nothing_is_remembered_of_the_first_seconds() -> None:
    watched = Watched()
    watched.show(10)
    memory = watched.condition.remember()
    assert (memory.view, memory.moved) == (None, "")


def test_an_accepted_view_is_no_longer_remembered_as_moved() -> None:
    before = Watched(CameraCondition("drive"))
    before.show(40)
    before.show(30, before.moved(0.15))
    before.condition.accept()
    before.show(3, before.moved(0.15))
    after = Watched(CameraCondition("drive", before.condition.remember()))
    assert list(after.condition.problems) == []
    assert after.show(60, after.moved(0.15)) == []


@pytest.mark.parametrize(
    "packed",
    [
        PackedView(bytes(96 * 72 * 2 - 1), bytes(2 * 217), 20),
        PackedView(bytes(96 * 72 * 2), bytes(2), 20),
        PackedView(bytes(96 * 72 * 2), bytes(433), 20),
    ],
)
def test_a_damaged_memory_is_refused(packed: PackedView) -> None:
    with pytest.raises(ValueError, match=r"reshape|size"):
        LearnedView.unpack(packed)


def test_another_resolution_of_the_same_view_is_no_problem() -> None:
    watched = settled()

    def larger(_: int) -> Image:
        return np.asarray(cv2.resize(watched.camera.picture(), (2 * WIDTH, 2 * HEIGHT)), np.uint8)

    assert watched.show(120, larger) == []


def test_another_format_is_learned_anew() -> None:
    watched = settled()
    wide = watched.camera.view()[: HEIGHT // 2]
    assert watched.show(120, watched.of(wide)) == []


def test_delays_start_anew_after_a_pause() -> None:
    watched = settled()
    watched.show(18, watched.of(watched.camera.view(), 0.02))
    watched.condition.pause()
    assert watched.show(16, watched.of(watched.camera.view(), 0.02)) == []
    assert watched.show(8, watched.of(watched.camera.view(), 0.02)) == ["dark"]


def test_a_moved_camera_in_the_dark_is_both() -> None:
    watched = settled()
    watched.show(30, watched.moved(0.15))
    assert sorted(watched.show(30, watched.of(watched.camera.view(0.15), 0.02))) == ["dark", "moved"]


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.integers(0, 5))
def test_a_shift_is_found_where_it_is(right: float, down: float, seed: int) -> None:
    camera = StagedCamera(seed)
    learned, now = (
        describe(view, camera.picture(view)).field for view in (camera.view(), camera.view(right, down))
    )
    best = search(learned, now)
    assert best.match >= 0.7
    assert best.degrees == 0.0
    assert best.right == pytest.approx(-right, abs=0.015)
    assert best.down == pytest.approx(-down, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.integers(51, 99))
def test_views_of_different_places_do_not_match(one: int, other: int) -> None:
    fields = [describe(StagedCamera(seed).view(), StagedCamera(seed).picture()).field for seed in (one, other)]
    assert match(fields[0], fields[1]) < 0.3
    assert match(fields[0], fields[0]) == 1.0
