from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.capture.arrivals import MediaClock, PacketClock

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
