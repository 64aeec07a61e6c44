from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.arrivals import MediaClock, PacketClock, ParsedArrivals, ReadPauses

S, MS = 1_000_000_000, 1_000_000
LONGEST_NS = 210 * MS


def test_a_network_that_delays_packets_does_not_bend_the_time() -> None:
    clock, late_ms = PacketClock(), [5, 0, 180, 40, 0, 300, 90, 0]
    times = [
        clock.captured_ns(number * 100 * MS, 10 * S + number * 100 * MS + late * MS)
        for number, late in enumerate(late_ms)
    ]
    steps = [after - before for before, after in pairwise(times[1:])]
    assert all(abs(step - 100 * MS) < MS for step in steps)


def test_pictures_that_come_in_the_order_of_decoding_have_the_times_of_their_showing() -> None:
    clock = PacketClock()
    shown = [0, 300, 100, 200, 600, 400, 500]
    times = [clock.captured_ns(pts * MS, 5 * S + at * 100 * MS) for at, pts in enumerate(shown)]
    assert times[4] > times[6] > times[5] > times[1] > times[3] > times[2]


def test_a_packet_without_a_time_stamp_was_captured_when_it_came() -> None:
    assert PacketClock().captured_ns(None, 7 * S) == 7 * S


@given(st.lists(st.tuples(st.integers(-(10**15), 10**15), st.integers(0, 5 * S)), max_size=50))
def test_no_packet_was_captured_after_it_came_or_long_before(packets: list[tuple[int, int]]) -> None:
    clock, arrived_ns = PacketClock(), 100 * S
    for pts_ns, after_ns in packets:
        arrived_ns += after_ns
        captured_ns = clock.captured_ns(pts_ns, arrived_ns)
        assert arrived_ns - 1.1 * S <= captured_ns <= arrived_ns


def test_sound_has_the_time_of_the_picture_that_it_belongs_to() -> None:
    clock, apart = MediaClock(), []
    for number in range(200):
        at_ns = number * 40 * MS
        heard_ns = clock.captured_ns(1, at_ns, 9 * S + at_ns + 45 * MS, 40 * MS)
        seen_ns = clock.captured_ns(0, at_ns, 9 * S + at_ns + (230 if number % 25 == 0 else 160) * MS)
        apart.append(abs(seen_ns - heard_ns))
    assert max(apart[1:]) < 2 * MS


def test_a_track_that_counts_another_time_counts_for_itself() -> None:
    clock = MediaClock()
    clock.captured_ns(1, 500 * S, 9 * S)
    assert clock.captured_ns(0, 0, 9 * S + 30 * MS) == 9 * S + 30 * MS


def test_the_last_sample_of_a_packet_was_captured_before_it_came() -> None:
    assert MediaClock().captured_ns(0, None, 7 * S, 20 * MS) == 7 * S - 20 * MS
    assert MediaClock().captured_ns(0, 5 * S, 7 * S, 20 * MS) == 7 * S - 20 * MS


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-(10**12), 10**12), st.integers(0, 5 * S), st.integers(0, S)),
        max_size=50,
    )
)
def test_no_packet_of_any_track_was_captured_after_it_came(packets: list[tuple[int, int, int, int]]) -> None:
    clock, arrived_ns = MediaClock(), 100 * S
    for track, pts_ns, after_ns, length_ns in packets:
        arrived_ns += after_ns
        began_ns = clock.captured_ns(track, pts_ns, arrived_ns, length_ns)
        assert arrived_ns - 1.7 * S <= began_ns + length_ns <= arrived_ns


class Camera:
    """Sends a packet each `every_ms`; its time stamps advance by `stamped_ms`. A reader pauses as it is told."""

    def __init__(self, every_ms: float, stamped_ms: float) -> None:
        self.every_ns, self.stamped_ns = round(every_ms * MS), round(stamped_ms * MS)
        self.clock, self.pauses = PacketClock(), ReadPauses()
        self.now_ns, self.number, self.woken = 10 * S, 0, 0
        self.late_ns: list[int] = []

    def read(self, seconds: float) -> None:
        """Read for some time; `late_ns` is from each packet's arrival until it was read, `woken` counts waits."""
        until_ns, self.late_ns, self.woken = self.now_ns + round(seconds * S), [], 0
        while self.now_ns < until_ns:
            pause_ns = self.pauses.next_ns(self.now_ns, LONGEST_NS)
            self.now_ns += pause_ns
            asked_ns, came_ns = self.now_ns, 10 * S + self.number * self.every_ns
            self.woken += (pause_ns > 0) + (came_ns > asked_ns)
            self.now_ns = max(asked_ns, came_ns) + MS // 10
            captured_ns = self.clock.captured_ns(self.number * self.stamped_ns, self.now_ns)
            self.pauses.add(captured_ns, asked_ns, self.now_ns)
            self.late_ns.append(self.now_ns - came_ns)
            self.number += 1


@pytest.mark.parametrize("fps", [10, 15, 25, 30])
def test_a_reader_wakes_five_times_a_second_and_no_packet_waits_longer_than_that(fps: int) -> None:
    camera = Camera(1000 / fps, 1000 / fps)
    camera.read(10.0)
    camera.read(60.0)
    assert camera.woken <= 60 * 6
    assert max(camera.late_ns) < 220 * MS


def test_a_reader_of_a_slow_camera_is_there_when_a_packet_comes() -> None:
    camera = Camera(500, 500)
    camera.read(60.0)
    assert max(camera.late_ns) < 10 * MS


@given(st.floats(20.0, 300.0), st.floats(0.5, 2.0))
def test_packets_do_not_pile_up_whatever_their_time_stamps_say(every_ms: float, factor: float) -> None:
    camera = Camera(every_ms, every_ms * factor)
    camera.read(60.0)
    assert max(camera.late_ns) < 6 * S
    camera.read(120.0)
    assert sum(one > 500 * MS for one in camera.late_ns) < 0.1 * len(camera.late_ns)


def test_nothing_is_known_of_packets_without_time_stamps() -> None:
    assert ReadPauses().next_ns(7 * S, LONGEST_NS) == 0


def test_a_picture_came_when_the_one_before_it_was_given() -> None:
    arrivals = ParsedArrivals(10 * S, cut_off=False)
    assert [arrivals.came_ns(asked_ns, asked_ns + S) for asked_ns in (S, 2 * S, 3 * S)] == [S, 2 * S, 3 * S]


def test_after_an_opening_that_was_cut_off_nobody_knows_when_the_first_picture_came() -> None:
    arrivals = ParsedArrivals(10 * S, cut_off=True)
    assert arrivals.came_ns(S, S + 10) == S, "it was there"
    assert arrivals.came_ns(S + 20, 4 * S) == 4 * S - 1, "the opening had given the one before it too early"
    assert arrivals.came_ns(4 * S, 7 * S) == 4 * S


def test_a_read_gives_a_picture_that_came_in_it_if_none_was_held_back_before() -> None:
    arrivals, awaited = ParsedArrivals(10 * S, cut_off=True), list[bool]()
    for asked_s, read_s in ((1, 11), (11, 19), (19, 25), (25, 35)):
        arrivals.came_ns(asked_s * S, read_s * S)
        awaited.append(arrivals.was_awaited)
    assert awaited == [True, True, False, False]


def test_what_the_opening_has_read_was_not_waited_for_however_busy_the_machine_is() -> None:
    arrivals = ParsedArrivals(10 * S, cut_off=True)
    assert arrivals.came_ns(S, S + 90 * MS) == S
    assert not arrivals.was_awaited
    arrivals.came_ns(S + 90 * MS, 12 * S)
    assert arrivals.was_awaited
