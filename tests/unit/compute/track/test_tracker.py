from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.track.places import DetectionFilters, Lines, Zones
from agent.compute.track.tracker import Tracker
from agent.config import TrackConfig, ZoneConfig
from agent.config.places import FilterConfig, LineConfig
from agent.types import WHOLE, Box, Crossing, Detection, Event
from tests.support.examples import examples

pytestmark = pytest.mark.numerics

START = datetime(2026, 1, 1, tzinfo=UTC)
RIGHT = ZoneConfig("right", ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)))


def person(x: float, y: float = 0.5, w: float = 0.05, h: float = 0.15, score: float = 0.8) -> Detection:
    return Detection("person", score, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))


class Clip:
    """Feeds a tracker frame by frame and keeps its events."""

    def __init__(
        self,
        fps: float = 10.0,
        zones: Sequence[ZoneConfig] = (),
        lines: Sequence[LineConfig] = (),
        filters: Sequence[FilterConfig] = (),
        **config: Any,
    ) -> None:
        more: Any = {"lines": Lines(lines), "filters": DetectionFilters(filters, 0.5)}
        self.tracker = Tracker(TrackConfig(**config), Zones(zones), "front", run="abc123", **more)
        self.events: list[Event] = []
        self.now_s = 0.0
        self._step_s = 1.0 / fps

    def frame(self, *detections: Detection, seen: Box = WHOLE) -> list[Event]:
        at = START + timedelta(seconds=self.now_s)
        events = self.tracker.update(detections, round(self.now_s * 1e9), at, seen)
        self.now_s += self._step_s
        self.events += events
        return events

    def wait(self, seconds: float) -> list[Event]:
        self.now_s += seconds
        events = self.tracker.tick(round(self.now_s * 1e9), START + timedelta(seconds=self.now_s))
        self.events += events
        return events

    def rest(self, seconds: float) -> list[Event]:
        """A picture later, in which nothing moved."""
        self.now_s += seconds
        events = self.tracker.rest(round(self.now_s * 1e9), START + timedelta(seconds=self.now_s))
        self.events += events
        return events

    def finish(self, reason: str = "shutdown") -> list[Event]:
        events = self.tracker.finish(round(self.now_s * 1e9), START + timedelta(seconds=self.now_s), reason)
        self.events += events
        return events


def told(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.reason) for event in events]


def test_runs_tell_their_ids_apart_by_32_random_bits() -> None:
    tracker = Tracker(TrackConfig(min_hits=1), Zones(()), "front")
    (event,) = tracker.update([person(0.3)], 0, START)
    assert re.fullmatch(r"front-[0-9a-f]{8}-1", event.track.id)


def test_a_track_is_announced_at_its_third_detection() -> None:
    clip = Clip()
    assert [told(clip.frame(person(0.3))) for _ in range(4)] == [[], [], [("new", "appeared")], []]
    (track,) = clip.tracker.tracks()
    assert (track.id, track.hits, track.first_seen) == ("front-abc123-1", 4, START)


def test_a_candidate_seen_too_seldom_is_forgotten() -> None:
    clip = Clip(lost_after_s=0.5)
    for _ in range(5):
        clip.frame(person(0.3))
        for _ in range(6):
            clip.frame()
    assert clip.events == []
    assert clip.tracker.boxes(0) == ((), ())


def test_a_candidate_that_two_inferences_miss_is_forgotten() -> None:
    clip = Clip()
    known = []
    for detections in ([person(0.3)], [], [person(0.3)], [], []):
        clip.frame(*detections)
        known.append(len(clip.tracker.boxes(0)[0]))
    assert known == [1, 1, 1, 1, 0]


def test_a_neighbour_does_not_take_over_a_track_that_was_missed() -> None:
    clip = Clip()
    for _ in range(10):
        clip.frame(person(0.3), person(0.36))
    (left, right) = (track.id for track in clip.tracker.tracks())
    for n in range(10):
        clip.frame(person(0.36 - 0.006 * n))
    ids = {track.id: track.last_seen for track in clip.tracker.tracks()}
    assert ids[right] == START + timedelta(seconds=1.9)
    assert ids[left] < ids[right]


def test_a_candidate_is_a_place_to_look_at_and_no_track_yet() -> None:
    clip = Clip()
    clip.frame(person(0.3))
    assert len(clip.tracker.boxes(0)[0]) == 1
    assert (clip.tracker.alive, clip.tracker.tracks(), clip.tracker.counts()) == (0, (), {})


def test_a_candidate_is_worth_another_look_until_a_look_misses_it() -> None:
    clip = Clip()
    watching = [clip.tracker.watching]
    for detections in ([person(0.3)], [], *[[person(0.3)]] * 3, []):
        clip.frame(*detections)
        watching.append(clip.tracker.watching)
    assert watching == [False, True, False, True, True, True, True]


def test_a_track_is_lost_when_not_seen_for_long_enough() -> None:
    clip = Clip(lost_after_s=1.5)
    for _ in range(3):
        clip.frame(person(0.3))
    quiet = [told(clip.frame()) for _ in range(16)]
    assert quiet[:14] == [[]] * 14
    assert quiet[14:] == [[("end", "lost")], []]
    assert clip.events[-1].track.last_seen == START + timedelta(seconds=0.2)


def test_a_track_is_lost_without_any_frame() -> None:
    clip = Clip(lost_after_s=1.5)
    for _ in range(3):
        clip.frame(person(0.3))
    assert clip.wait(1.0) == []
    assert told(clip.wait(0.5)) == [("end", "lost")]


def test_a_gap_keeps_the_id() -> None:
    clip = Clip()
    for n in range(30):
        clip.frame(*[] if n in (8, 9, 17) else [person(0.1 + 0.02 * n)])
    assert [event.kind for event in clip.events].count("new") == 1


@pytest.mark.parametrize("fps", [5.0, 10.0])
@pytest.mark.parametrize("speed", [0.05, 0.3, 0.6])
def test_a_small_fast_thing_keeps_its_id(fps: float, speed: float) -> None:
    clip = Clip(fps)
    for n in range(int(0.9 / speed * fps)):
        clip.frame(person(0.05 + speed * n / fps, w=0.03, h=0.08))
    assert [event.kind for event in clip.events].count("new") == 1


def test_two_who_cross_keep_their_ids() -> None:
    clip = Clip()
    for n in range(60):
        clip.frame(person(0.2 + 0.01 * n, 0.48), person(0.8 - 0.01 * n, 0.56))
    by_id = {track.id: track.box for track in clip.tracker.tracks()}
    first, second = by_id["front-abc123-1"], by_id["front-abc123-2"]
    assert first is not None
    assert second is not None
    assert first[0] > second[0]


def test_labels_do_not_mix() -> None:
    clip = Clip(min_hits=1)
    clip.frame(person(0.3))
    clip.frame(Detection("car", 0.9, person(0.3).box))
    assert clip.tracker.counts() == {"person": 1, "car": 1}


def test_an_update_at_most_every_two_seconds_and_says_why() -> None:
    clip = Clip(update_every_s=2.0, stationary_after_s=0.0)
    for _ in range(25):
        clip.frame(person(0.3))
    for n in range(20):
        clip.frame(person(0.3 + 0.01 * min(n, 10)))
    for _ in range(20):
        clip.frame(person(0.4, score=0.95))
    assert told(clip.events) == [
        ("new", "appeared"),
        ("update", "still here"),
        ("update", "moved"),
        ("update", "clearer"),
    ]


def stand(clip: Clip, seconds: float, *detections: Detection) -> None:
    """Let a model look at each picture for so long."""
    for _ in range(round(seconds * 10)):
        clip.frame(*detections)


def test_a_track_that_stays_at_its_place_is_stationary_and_says_so_once() -> None:
    clip = Clip(stationary_after_s=5.0)
    stand(clip, 3600.0, person(0.3))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary")]
    assert clip.events[-1].track.stationary
    assert clip.tracker.counts() == {"person": 1}


def test_boxes_that_tremble_do_not_make_a_track_move() -> None:
    random = np.random.default_rng(1)
    clip = Clip(stationary_after_s=5.0)
    for _ in range(3000):
        x, y, w, h = random.normal((0.3, 0.5, 0.05, 0.15), (0.003, 0.008, 0.004, 0.012))
        clip.frame(person(x, y, w, h))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary")]


def test_who_walks_slowly_is_not_stationary() -> None:
    clip = Clip(stationary_after_s=5.0, update_every_s=1000.0)
    for n in range(600):
        clip.frame(person(0.1 + 0.001 * n))
    assert told(clip.events) == [("new", "appeared")]


def test_a_stationary_track_that_leaves_its_place_says_so_at_once() -> None:
    clip = Clip(stationary_after_s=5.0, update_every_s=1000.0)
    stand(clip, 10.0, person(0.3))
    for n in range(20):
        clip.frame(person(0.3 + 0.01 * n))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary"), ("update", "moved")]
    assert not clip.events[-1].track.stationary


def test_a_stationary_track_needs_a_look_only_now_and_then() -> None:
    clip = Clip(stationary_after_s=5.0, stationary_check_s=30.0)
    stand(clip, 4.0, person(0.3))
    watching = [clip.tracker.watching]
    stand(clip, 2.0, person(0.3))
    watching.append(clip.tracker.watching)
    now_ns = round(clip.now_s * 1e9)
    assert watching == [True, False]
    assert not clip.tracker.check_due(now_ns + 29 * 10**9)
    assert clip.tracker.check_due(now_ns + 30 * 10**9)
    assert [len(boxes) for boxes in clip.tracker.boxes(now_ns)] == [0, 1]
    assert [len(boxes) for boxes in clip.tracker.boxes(now_ns + 30 * 10**9)] == [1, 0]


def test_a_stationary_track_that_nobody_looks_at_does_not_end() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    stand(clip, 6.0, person(0.3))
    assert clip.wait(1000.0) == []
    assert told(clip.finish()) == [("end", "shutdown")]
    assert clip.events[-1].track.last_seen == START + timedelta(seconds=5.9)


def test_a_stationary_track_that_left_was_seen_until_then() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    stand(clip, 6.0, person(0.3))
    clip.rest(20.0)
    left_s = clip.now_s
    stand(clip, 2.0)
    assert told(clip.events)[-1] == ("end", "lost")
    assert clip.events[-1].track.last_seen == START + timedelta(seconds=left_s)


def test_a_stationary_track_that_was_missed_is_watched_until_it_is_found() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    stand(clip, 6.0, person(0.3))
    clip.wait(30.0)
    watching = []
    for detections in ([], [person(0.3)]):
        clip.frame(*detections)
        watching.append(clip.tracker.watching)
    assert watching == [True, False]
    assert clip.tracker.alive == 1


def test_a_stationary_track_that_is_gone_is_lost_after_the_usual_time() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    stand(clip, 6.0, person(0.3))
    clip.wait(30.0)
    ends = [told(clip.frame()) for _ in range(12)]
    assert ends.index([("end", "lost")]) in (9, 10)


def test_a_stationary_track_tells_that_it_is_still_there_only_on_request() -> None:
    clip = Clip(stationary_after_s=5.0, stationary_update_s=60.0)
    stand(clip, 200.0, person(0.3))
    assert told(clip.events)[2:] == [("update", "still here")] * 3


def test_a_stationary_track_behind_somebody_who_passes_is_not_lost() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    parked = Detection("car", 0.8, (0.4, 0.4, 0.6, 0.6))
    stand(clip, 6.0, parked)
    for n in range(25):
        clip.frame(person(0.38 + 0.01 * n, 0.5, 0.1, 0.2))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary"), ("new", "appeared")]
    assert clip.tracker.counts() == {"car": 1, "person": 1}
    assert clip.tracker.check_due(round(clip.now_s * 1e9))


def test_a_stationary_track_behind_something_that_stays_is_lost() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    stand(clip, 6.0, Detection("car", 0.8, (0.4, 0.4, 0.6, 0.6)))
    stand(clip, 4.0, Detection("truck", 0.8, (0.4, 0.3, 0.7, 0.6)))
    assert clip.tracker.counts() == {"car": 0, "truck": 1}


def test_a_stationary_track_that_is_called_otherwise_at_times_is_one_track() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    box = (0.4, 0.4, 0.6, 0.6)
    stand(clip, 6.0, Detection("car", 0.6, box))
    for n in range(600):
        clip.frame(Detection("truck", 0.6, box), *[Detection("car", 0.6, box)] * (n % 15 == 0))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary")]
    assert not clip.tracker.watching


def test_a_stationary_track_that_is_always_called_otherwise_ends_and_begins_under_that_name() -> None:
    clip = Clip(stationary_after_s=5.0, lost_after_s=1.0)
    box = (0.4, 0.4, 0.6, 0.6)
    stand(clip, 6.0, Detection("car", 0.6, box))
    stand(clip, 33.0, Detection("truck", 0.6, box))
    assert clip.tracker.counts() == {"car": 0, "truck": 1}
    assert [event.kind for event in clip.events] == ["new", "update", "new", "end"]


def test_other_zones_make_a_stationary_track_due_for_a_check() -> None:
    clip = Clip(stationary_after_s=5.0, min_hits=1)
    stand(clip, 6.0, person(0.7))
    clip.tracker.set_places(Zones([RIGHT]), Lines())
    assert clip.tracker.check_due(round(clip.now_s * 1e9))
    assert told(clip.frame(person(0.7))) == [("update", "zone")]


def test_a_verdict_on_the_whole_picture_is_stationary_too() -> None:
    clip = Clip(stationary_after_s=5.0)
    stand(clip, 60.0, Detection("good", 0.9))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary")]
    assert not clip.tracker.watching


def test_without_a_time_nothing_is_stationary() -> None:
    clip = Clip(stationary_after_s=0.0)
    stand(clip, 60.0, person(0.3))
    assert clip.tracker.watching
    assert {reason for _, reason in told(clip.events)} == {"appeared", "still here"}


def test_a_change_of_zones_is_told_at_the_third_detection_inside() -> None:
    clip = Clip(zones=[RIGHT], min_hits=1)
    kinds = [told(clip.frame(person(0.44 + 0.02 * n))) for n in range(7)]
    assert kinds == [[("new", "appeared")], [], [], [], [], [("update", "zone")], []]
    assert clip.events[-1].track.zones == ("right",)
    assert clip.tracker.tracks()[0].zones == ("right",)


def test_trembling_on_a_border_is_no_change_of_zones() -> None:
    clip = Clip(zones=[RIGHT], min_hits=1)
    for n in range(19):
        clip.frame(person(0.5 + 0.004 * (-1) ** (n + 1)))
    assert told(clip.events) == [("new", "appeared")]


def test_a_track_that_appears_in_a_zone_is_announced_in_it() -> None:
    clip = Clip(zones=[RIGHT])
    stand(clip, 1.0, person(0.7))
    assert told(clip.events) == [("new", "appeared")]
    assert clip.events[0].track.zones == ("right",)


def test_zones_drawn_anew_count_from_one_detection_on() -> None:
    clip = Clip(min_hits=1, stationary_after_s=5.0)
    stand(clip, 6.0, person(0.7))
    clip.tracker.set_places(Zones([RIGHT]), Lines())
    assert told(clip.frame(person(0.7))) == [("update", "zone")]
    clip.tracker.set_places(Zones([]), Lines())
    assert told(clip.frame(person(0.7))) == [("update", "zone")]
    assert clip.tracker.tracks()[0].zones == ()


def test_who_loiters_is_told_when_the_time_is_over_although_nothing_moves() -> None:
    clip = Clip(zones=[replace(RIGHT, loitering_s=30.0)], stationary_after_s=5.0)
    stand(clip, 10.0, person(0.7))
    assert told(clip.events) == [("new", "appeared"), ("update", "stationary")]
    assert told(clip.rest(19.0)) == []
    assert told(clip.rest(1.5)) == [("update", "zone")]
    assert clip.tracker.zone_counts() == {("right", "person"): 1}


def test_who_passes_through_does_not_loiter() -> None:
    clip = Clip(zones=[replace(RIGHT, loitering_s=3.0)])
    for n in range(100):
        clip.frame(person(0.4 + 0.2 * math.sin(n / 4.0)))
    assert {reason for _, reason in told(clip.events)} <= {"appeared", "moved"}


MIDDLE = LineConfig("middle", ((0.5, 0.0), (0.5, 1.0)))


def test_who_crosses_a_line_is_told_once_with_the_direction() -> None:
    clip = Clip(lines=[MIDDLE])
    for n in range(30):
        clip.frame(person(0.35 + 0.01 * n))
    (crossed,) = [event for event in clip.events if event.reason == "line"]
    assert (crossed.kind, crossed.track.crossed) == ("update", (Crossing("middle", "out"),))
    assert clip.finish()[0].track.crossed == (Crossing("middle", "out"),)


def test_a_line_crossed_before_the_track_is_announced_is_told_after_that() -> None:
    clip = Clip(lines=[MIDDLE])
    for x in (0.42, 0.6, 0.75):
        clip.frame(person(x, w=0.2))
    assert told(clip.events) == [("new", "appeared"), ("update", "line")]
    assert [event.track.crossed for event in clip.events] == [(), (Crossing("middle", "out"),)]


def test_only_a_track_that_was_sure_once_is_announced() -> None:
    clip = Clip(filters=[FilterConfig(("person",), 0.3, start_score=0.7)])
    for score in (0.4, 0.5, 0.6, 0.4, 0.69):
        clip.frame(person(0.3, score=score))
    assert clip.events == []
    assert told(clip.frame(person(0.3, score=0.7))) == [("new", "appeared")]
    assert told(clip.frame(person(0.3, score=0.3))) == []
    assert clip.tracker.alive == 1


def test_a_doubtful_object_that_stands_still_takes_no_more_inferences_than_a_sure_one() -> None:
    clip = Clip(filters=[FilterConfig(start_score=0.7)], stationary_after_s=5.0, stationary_check_s=30.0)
    stand(clip, 6.0, person(0.3, score=0.5))
    assert not clip.tracker.watching
    assert not clip.tracker.confirming
    assert clip.events == []


def test_only_moving_announces_a_parked_car_when_it_drives_off() -> None:
    clip = Clip(only_moving=True, stationary_after_s=5.0, stationary_update_s=1.0)
    car = replace(person(0.3, w=0.2), label="car")
    stand(clip, 60.0, car)
    assert (clip.events, clip.tracker.counts(), clip.tracker.watching) == ([], {}, False)
    for n in range(20):
        clip.frame(replace(person(0.3 + 0.01 * n, w=0.2), label="car"))
    assert told(clip.events)[0] == ("new", "appeared")
    clip.events.clear()
    stand(clip, 60.0, replace(person(0.5, w=0.2), label="car"))
    assert told(clip.events) == [("update", "moved"), ("update", "stationary")]


def test_only_moving_leaves_out_what_trembles() -> None:
    clip = Clip(only_moving=True)
    noise = np.random.default_rng(1).normal(0.0, 0.005, (600, 4))
    for dx0, dy0, dx1, dy1 in noise:
        clip.frame(Detection("person", 0.8, (0.3 + dx0, 0.3 + dy0, 0.4 + dx1, 0.6 + dy1)))
    assert clip.events == []


def test_what_lies_outside_the_crop_is_not_missed() -> None:
    clip = Clip(lost_after_s=0.5)
    for _ in range(3):
        clip.frame(person(0.2), person(0.8))
    for _ in range(20):
        clip.frame(person(0.8), seen=(0.5, 0.25, 1.0, 0.75))
    assert clip.tracker.alive == 2
    for _ in range(6):
        clip.frame(person(0.8))
    assert clip.tracker.alive == 1


def test_what_lies_inside_the_crop_is_missed() -> None:
    clip = Clip(lost_after_s=0.5)
    for _ in range(3):
        clip.frame(person(0.8))
    for _ in range(6):
        clip.frame(seen=(0.5, 0.25, 1.0, 0.75))
    assert clip.tracker.alive == 0


def test_a_model_slower_than_the_time_to_be_lost_still_keeps_a_track() -> None:
    clip = Clip(fps=0.5, lost_after_s=1.5)
    for _ in range(6):
        clip.frame(person(0.3))
    assert [event.kind for event in clip.events].count("new") == 1
    clip.frame()
    assert clip.tracker.alive == 0


def test_verdicts_on_the_whole_picture_are_one_track_per_label() -> None:
    clip = Clip()
    for _ in range(5):
        clip.frame(Detection("good", 0.9), Detection("good", 0.6), Detection("bad", 0.1))
    assert clip.tracker.counts() == {"good": 1, "bad": 1}
    assert [track.score for track in clip.tracker.tracks()] == [0.9, 0.1]
    clip.frame(Detection("bad", 0.6), Detection("bad", 0.9))
    assert clip.tracker.tracks()[1].score == 0.9


def test_a_verdict_is_not_missed_by_a_look_at_a_crop() -> None:
    clip = Clip(lost_after_s=0.5, min_hits=1)
    clip.frame(Detection("good", 0.9))
    for _ in range(10):
        clip.frame(seen=(0.0, 0.0, 0.5, 0.5))
    assert clip.tracker.alive == 1


def test_finish_ends_every_track_with_its_reason_and_goes_on_with_new_ids() -> None:
    clip = Clip(min_hits=1)
    clip.frame(person(0.3), person(0.7))
    assert told(clip.finish("stall")) == [("end", "stall")] * 2
    assert clip.finish() == []
    assert clip.tracker.counts() == {"person": 0}
    clip.frame(person(0.3))
    assert [track.id for track in clip.tracker.tracks()] == ["front-abc123-3"]


def test_ids_are_unique_over_restarts() -> None:
    runs = {Tracker(TrackConfig(), Zones(()), "front")._prefix for _ in range(20)}
    assert len(runs) == 20


_detection = st.builds(
    Detection,
    st.sampled_from(["person", "car", "dog"]),
    st.floats(0.0, 1.0),
    st.one_of(
        st.none(),
        st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0, 0.2), st.floats(0, 0.2)).map(
            lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3])
        ),
    ),
)
_crop = st.sampled_from([WHOLE, (0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)])
_step: st.SearchStrategy[tuple[str, list[Detection], Box, float]] = st.one_of(
    st.tuples(st.just("frame"), st.lists(_detection, max_size=5), _crop, st.floats(0.0, 2.0)),
    st.tuples(st.just("tick"), st.just([]), st.just(WHOLE), st.floats(0.0, 2.0)),
    st.tuples(st.just("finish"), st.just([]), st.just(WHOLE), st.just(0.0)),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(_step, max_size=25), st.integers(1, 4), st.sampled_from([0.0, 0.3, 10.0]))
def test_every_new_has_exactly_one_end_and_counts_add_up(
    steps: list[tuple[str, list[Detection], Box, float]], min_hits: int, stationary_s: float
) -> None:
    clip = Clip(min_hits=min_hits, zones=[RIGHT], update_every_s=0.5, stationary_after_s=stationary_s)
    alive: dict[str, str] = {}
    ever: set[str] = set()
    for what, detections, seen, seconds in [*steps, ("finish", [], WHOLE, 0.0)]:
        clip.now_s += seconds
        if what == "frame":
            events = clip.frame(*detections, seen=seen)
        else:
            events = clip.wait(0.1) if what == "tick" else clip.finish()
        for event in events:
            _follow(event, alive, ever)
        assert clip.tracker.alive == len(alive) == len(clip.tracker.tracks())
        assert {track.id for track in clip.tracker.tracks()} == set(alive)
        assert +Counter(clip.tracker.counts()) == Counter(alive.values())
        assert min(clip.tracker.counts().values(), default=0) >= 0
        if clip.tracker.alive and not any(track.stationary for track in clip.tracker.tracks()):
            assert clip.tracker.watching
        standing = Counter((zone, track.label) for track in clip.tracker.tracks() for zone in track.zones)
        assert clip.tracker.zone_counts() == standing
    assert alive == {}


def _follow(event: Event, alive: dict[str, str], ever: set[str]) -> None:
    track = event.track
    if event.kind == "new":
        assert track.id not in ever
        ever.add(track.id)
        alive[track.id] = track.label
    else:
        assert track.id in alive
    if event.kind == "end":
        del alive[track.id]
    assert track.best_score >= track.score
    assert track.first_seen <= track.last_seen


def test_labels_without_end_take_no_memory_without_end() -> None:
    clip = Clip(min_hits=1, lost_after_s=0.1)
    for number in range(3000):
        clip.frame(Detection(f"text {number}", 0.9))
    alive = {label: count for label, count in clip.tracker.counts().items() if count}
    assert set(alive) == {track.label for track in clip.tracker.tracks()}
    assert len(clip.tracker.counts()) <= 1000
