"""The ring of packets, and their time stamps."""

from __future__ import annotations

import threading
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.storage.clips.packets import PacketRing, PacketTimeline, TimedPacket
from agent.types import MediaPacket, MediaTrack
from tests.support.clip_pictures import SECOND
from tests.support.publishing import wait_for

VIDEO = MediaTrack("video", "h264", (1, 1000), b"", 64, 48)
SOUND = MediaTrack("sound", "aac", (1, 48000), b"", rate_hz=48000, channels=1)
END = 1 << 62


def picture(at_s: float, size: int = 10, *, key: bool = False, ms: int | None = None) -> MediaPacket:
    """A picture captured then, whose time stamp is the same or another one."""
    stamp = round(at_s * 1000) if ms is None else ms
    return MediaPacket(VIDEO, bytes(size), stamp, stamp, 0, key, round(at_s * SECOND))


def sound(at_s: float, ticks: int | None = None) -> MediaPacket:
    stamp = round(at_s * 48000) if ticks is None else ticks
    return MediaPacket(SOUND, bytes(5), stamp, stamp, 1024, True, round(at_s * SECOND))


def times(ring: PacketRing) -> list[float]:
    return [found.packet.captured_ns / SECOND for found in ring.between(0, END)]


def filled(ring: PacketRing, until: int, group: int = 4) -> None:
    """One picture a second; each fourth is a key frame."""
    for at in range(until):
        ring.add(picture(at, key=at % group == 0))


STEPS = st.lists(
    st.tuples(st.integers(-2, 30), st.integers(0, 400), st.booleans(), st.booleans(), st.integers(0, 9)),
    max_size=60,
)


@given(STEPS, st.integers(0, 20), st.integers(100, 2000))
def test_it_holds_whole_groups_and_never_more_than_it_may(
    steps: list[tuple[int, int, bool, bool, int]], tenths: int, max_bytes: int
) -> None:
    ring, now = PacketRing(tenths / 10, max_bytes), 100
    held: int | None = None
    for passed, size, key, heard, what in steps:
        now += passed
        ring.add(sound(now / 10) if heard else picture(now / 10, size, key=key))
        if what == 0:
            ring.hold(held := max(0, ring.next_seq - 3))
        elif what == 1:
            ring.hold(held := None)
        kept = ring.between(0, END)
        assert ring.bytes == sum(len(found.packet.data) for found in kept) <= max_bytes
        assert [found.seq for found in kept] == list(range(ring.next_seq - len(kept), ring.next_seq))
        is_written = held is not None and kept and kept[0].seq <= held
        assert not kept or kept[0].opens_group or is_written, "only what is written is dropped of a group"
        assert_playable(kept)


def assert_playable(packets: list[TimedPacket]) -> None:
    """Each part begins with a key frame, and decoding time rises in each of its tracks."""
    for before, after in pairwise(packets):
        if after.part != before.part:
            assert after.part > before.part
            assert after.opens_group
    for track in ("video", "sound"):
        own = [one for one in packets if one.packet.track.kind == track]
        assert all(b.dts_ns > a.dts_ns for a, b in pairwise(own) if a.part == b.part)
    assert all(one.pts_ns >= one.dts_ns and one.duration_ns > 0 for one in packets)


@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 40))
def test_with_room_it_holds_its_seconds_and_the_whole_group_in_which_they_begin(
    seconds: int, group: int, count: int
) -> None:
    ring = PacketRing(float(seconds), 1 << 20)
    filled(ring, count, group)
    newest = (count - 1) // group * group
    begin = max(0, newest - seconds - 1) // group * group
    assert times(ring) == [float(at) for at in range(begin, count)]


def test_a_clip_begins_at_the_key_frame_before_its_time() -> None:
    ring = PacketRing(100.0, 1 << 20)
    assert ring.start(0) == 0, "with what comes"
    filled(ring, 10)
    assert [ring.start(round(at * SECOND)) for at in (-1, 0.5, 4, 7.9, 9)] == [0, 0, 4, 4, 8]


def test_what_is_still_to_be_written_does_not_become_too_old() -> None:
    ring = PacketRing(1.0, 10_000)
    filled(ring, 4)
    ring.hold(2)
    for at in range(4, 20):
        ring.add(picture(at, key=at % 4 == 0))
    assert times(ring) == [float(at) for at in range(20)]
    ring.hold(None)
    assert times(ring) == [float(at) for at in range(12, 20)]
    assert ring.lost == 0


def test_what_was_to_be_written_and_had_to_go_is_counted_in_whole_groups() -> None:
    ring = PacketRing(100.0, 100)
    ring.hold(0)
    filled(ring, 15)
    assert times(ring) == [float(at) for at in range(8, 15)]
    assert ring.lost == 8


def test_a_group_larger_than_everything_is_not_kept_and_the_next_one_is() -> None:
    ring = PacketRing(1.0, 100)
    ring.add(picture(0, key=True))
    ring.add(picture(1, 101))
    assert (times(ring), ring.bytes) == ([], 0)
    ring.add(picture(2))
    assert times(ring) == [], "what follows cannot be decoded"
    ring.add(picture(3, key=True))
    assert times(ring) == [3.0]


def test_what_was_there_before_an_outage_begins_no_clip() -> None:
    ring = PacketRing(100.0, 1 << 20)
    filled(ring, 10)
    assert ring.start(70 * SECOND) == ring.next_seq, "with what comes"
    ring.add(picture(100, key=True))
    assert ring.start(70 * SECOND) == 10, "with the first picture after it"
    assert ring.start(9 * SECOND) == 8


def test_a_group_larger_than_everything_goes_on_while_it_is_written() -> None:
    ring = PacketRing(1.0, 100)
    ring.add(picture(0, key=True))
    ring.hold(0)
    seen = list[int]()
    for at in range(1, 40):
        ring.add(picture(at))
        if at % 5 == 0:
            new = ring.between(seen[-1] + 1 if seen else 0, END)
            seen += [one.seq for one in new]
            ring.hold(seen[-1] + 1)
        assert ring.bytes <= 100
    assert seen == list(range(36))
    assert ring.lost == 0
    assert ring.start(END) == ring.next_seq, "what is left of it cannot be decoded"
    ring.hold(None)
    assert (times(ring), ring.bytes) == ([], 0)


def test_of_a_group_that_is_too_large_only_what_is_not_written_is_lost() -> None:
    ring = PacketRing(1.0, 100)
    ring.add(picture(0, key=True))
    ring.hold(0)
    for at in range(1, 5):
        ring.add(picture(at))
    ring.hold(3)
    for at in range(5, 25):
        ring.add(picture(at))
    ring.add(picture(25, key=True))
    assert ring.lost == 22
    assert times(ring) == [25.0]


def test_a_replay_waits_for_the_disk() -> None:
    ring = PacketRing(1.0, 100, patient=True)
    ring.add(picture(0, key=True))
    ring.hold(0)

    def give() -> None:
        for at in range(1, 20):
            ring.add(picture(at, key=True))

    giver = threading.Thread(target=give, daemon=True)
    giver.start()
    wait_for(lambda: len(times(ring)) == 10)
    giver.join(0.2)
    assert giver.is_alive()
    while giver.is_alive():
        ring.hold(ring.next_seq)
        giver.join(0.01)
    assert ring.lost == 0
    assert ring.newest_ns == 19 * SECOND


def test_time_goes_on_when_no_picture_comes() -> None:
    ring = PacketRing(1.0, 100)
    assert (ring.now_ns(), ring.newest_ns) == (-1, -1)
    ring.add(picture(5, key=True))
    wait_for(lambda: ring.now_ns() > 5.02 * SECOND)
    assert ring.newest_ns == 5 * SECOND


def stamped(*packets: MediaPacket) -> list[tuple[int, float]]:
    """Part and decoding time, s, of those that can be used."""
    clock = PacketTimeline()
    found = [clock.stamp(one, 0) for packet in packets for one in clock.ready(packet)]
    return [(one.part, round(one.dts_ns / SECOND, 3)) for one in found if one is not None]


def test_a_missing_time_stamp_follows_from_those_before() -> None:
    without = [msgspec.structs.replace(picture(at / 10), pts=None, dts=None) for at in (3, 4)]
    packets = [picture(0.1, key=True), picture(0.2), *without, picture(0.5)]
    assert stamped(*packets) == [(0, 0.1), (0, 0.2), (0, 0.3), (0, 0.4), (0, 0.5)]


def test_a_first_key_frame_without_a_time_stamp_gets_the_one_before_the_next_picture() -> None:
    first, other = (msgspec.structs.replace(picture(at, key=True), pts=None, dts=None) for at in (50, 51))
    second, third = picture(50.1, ms=3100), picture(50.2, ms=6100)
    assert stamped(first) == []
    assert stamped(first, sound(50.05), second, third) == [(0, 3.06), (0, 3.1), (0, 6.1)]
    lasting = msgspec.structs.replace(first, duration=66)
    assert stamped(lasting, second) == [(0, 3.034), (0, 3.1)]
    assert stamped(first, other) == [(0, 50.0), (0, 51.0)], "this camera gives none"
    again = msgspec.structs.replace(picture(52, key=True), track=msgspec.structs.replace(VIDEO))
    assert stamped(first, again) == [(0, 52.0)], "the connection broke at once"


def test_a_time_stamp_that_goes_back_a_little_is_put_right() -> None:
    packets = picture(0.1, key=True), picture(0.2), picture(0.3, ms=200), picture(0.4, ms=150), picture(0.5)
    assert stamped(*packets) == [(0, 0.1), (0, 0.2), (0, 0.201), (0, 0.202), (0, 0.5)]


@pytest.mark.parametrize("jumps_to_ms", [-3_600_000, 0, 3_600_000], ids=["back", "to the start", "ahead"])
def test_time_stamps_that_jump_begin_a_new_part_at_the_next_key_frame(jumps_to_ms: int) -> None:
    packets = [picture(60 + at / 10, key=at % 4 == 0, ms=60_000 + at * 100) for at in range(6)]
    packets += [picture(61 + at / 10, key=at == 2, ms=jumps_to_ms + at * 100) for at in range(4)]
    before, after = stamped(*packets)[:6], stamped(*packets)[6:]
    assert before == [(0, 60 + at / 10) for at in range(6)]
    assert after == [(1, jumps_to_ms / 1000 + at / 10) for at in (2, 3)]


def test_a_camera_that_was_silent_goes_on_with_its_own_time_stamps() -> None:
    assert stamped(picture(0, key=True), picture(30.0, ms=30_000)) == [(0, 0.0), (0, 30.0)]


def test_another_connection_is_another_part() -> None:
    again = msgspec.structs.replace(VIDEO)
    packets = [picture(1, key=True), msgspec.structs.replace(picture(2, key=True), track=again)]
    assert [part for part, _ in stamped(*packets)] == [0, 1]


def test_sound_is_on_the_clock_of_the_pictures() -> None:
    assert stamped(picture(10, key=True), sound(10.02)) == [(0, 10.0), (0, 10.02)]


def test_sound_that_counts_from_another_moment_is_placed_by_when_it_came() -> None:
    assert stamped(picture(100, key=True), sound(100.02, ticks=0), sound(100.04, ticks=960)) == [
        (0, 100.0),
        (0, 100.02),
        (0, 100.04),
    ]


def test_sound_before_the_first_key_frame_is_of_no_use() -> None:
    assert stamped(sound(1), picture(1.1), picture(1.2, key=True)) == [(0, 1.2)]


def test_a_picture_that_is_given_with_the_next_one_is_no_jump() -> None:
    ring = PacketRing(100.0, 1 << 20)
    ring.add(picture(0, key=True))
    ring.add(picture(9, ms=70))
    ring.add(picture(9.1, ms=9000))
    ring.add(picture(9.2, ms=9070))
    assert len({found.part for found in ring.between(0, END)}) == 1
    ring.add(picture(9.3, ms=28_000))
    assert ring.unusable == 1, "time stamps that jump after a pause"


def test_pictures_far_apart_that_came_during_the_opening_and_are_read_at_once_after_it_are_one_part() -> None:
    opened = [picture(30 + at / 100, key=at % 3 == 0, ms=7000 * at) for at in range(5)]
    then = [picture(35 + 7 * at, key=at % 3 == 1, ms=35_000 + 7000 * at) for at in range(3)]
    assert stamped(*opened, *then) == [(0, 7.0 * at) for at in range(8)]
    jumped = picture(49.1, ms=73_000), picture(49.2, key=True, ms=73_100)
    assert stamped(*opened, *then, *jumped)[8:] == [(1, 73.1)]
