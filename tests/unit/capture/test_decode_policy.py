from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.decode_policy import BurstThinner, DecodeLimits, DecodePolicy, DecodeStep, PacketFacts
from agent.capture.source import DecodeChoice, DecodeMode, Demand

S = 1_000_000_000
QUIET, ALL, MOVED = Demand(DecodeMode.PACKETS), Demand(), Demand(moved=True)
FPS = 10


class Encoder:
    """A camera that gives a packet each 100 ms, whose sizes vary by 3 %, or by `noise`."""

    def __init__(self, gop: int = 20, seed: int = 0, noise: float = 0.03) -> None:
        self.gop, self.number, self.noise = gop, 0, noise
        self._random = np.random.default_rng(seed)

    def packet(self, factor: float = 1.0) -> PacketFacts:
        keyframe = self.gop > 0 and self.number % self.gop == 0
        size = (100_000 if keyframe else 2_000 * factor) * self._random.normal(1.0, self.noise)
        self.number += 1
        return PacketFacts(max(1, round(size)), keyframe, False, self.number * S // FPS)


def run(
    policy: DecodePolicy[int], encoder: Encoder, seconds: float, demand: Demand = QUIET, factor: float = 1.0
) -> list[DecodeStep[int]]:
    """Give a policy the packets of some seconds, each by its number; return what is decoded."""
    steps: list[DecodeStep[int]] = []
    for _ in range(round(seconds * FPS)):
        number = encoder.number
        steps += policy.add(number, encoder.packet(factor), demand)
    return steps


def settled(gop: int = 20, limits: DecodeLimits | None = None) -> tuple[DecodePolicy[int], Encoder]:
    policy, encoder = DecodePolicy[int](limits=limits), Encoder(gop)
    run(policy, encoder, 600.0)
    return policy, encoder


def test_while_nothing_happens_a_key_frame_is_decoded_now_and_then() -> None:
    policy, encoder = settled()
    steps = run(policy, encoder, 64.0)
    assert policy.mode == DecodeMode.PACKETS
    assert 7 <= len(steps) <= 9
    assert all(step.alone and step.packet % 20 == 0 for step in steps)


@pytest.mark.parametrize("gop", [10, 30, 50, 53, 54, 60, 70, 80, 110])
def test_key_frames_of_any_distance_are_decoded_alone_and_never_twelve_seconds_apart(gop: int) -> None:
    policy, encoder = settled(gop)
    steps = run(policy, encoder, 120.0)
    assert all(step.alone for step in steps)
    assert max(after.packet - before.packet for before, after in pairwise(steps)) < 12 * FPS


def test_larger_packets_have_everything_decoded_from_the_last_key_frame_on() -> None:
    policy, encoder = settled()
    run(policy, encoder, 0.5)
    begin = encoder.number
    steps = run(policy, encoder, 1.0, factor=1.5)
    assert policy.mode == DecodeMode.FULL
    assert [step.packet for step in steps] == list(range(begin - begin % 20, encoder.number))
    assert [step.restart for step in steps] == [True] + [False] * (len(steps) - 1)


def test_it_is_noticed_within_three_packets() -> None:
    policy, encoder = settled()
    run(policy, encoder, 0.1)
    steps = run(policy, encoder, 0.3, factor=1.5)
    assert policy.mode == DecodeMode.FULL
    assert steps


def test_after_quiet_only_key_frames_are_decoded_again() -> None:
    policy, encoder = settled()
    run(policy, encoder, 0.5, factor=1.5)
    run(policy, encoder, 5.0, MOVED, factor=1.5)
    assert policy.mode.name == "FULL"
    run(policy, encoder, 5.0)
    assert policy.mode.name == "PACKETS"


def test_where_sizes_scatter_too_much_to_show_anybody_everything_is_decoded() -> None:
    policy, encoder = DecodePolicy[int](), Encoder(noise=0.3)
    run(policy, encoder, 30.0)
    begin = encoder.number
    steps = run(policy, encoder, 60.0)
    assert [step.packet for step in steps] == list(range(begin, encoder.number))


def test_it_is_decoded_on_demand_again_when_the_noise_ends() -> None:
    policy, encoder = DecodePolicy[int](), Encoder(noise=0.3)
    run(policy, encoder, 60.0)
    encoder.noise = 0.03
    run(policy, encoder, 60.0)
    assert len(run(policy, encoder, 60.0)) <= 20


def test_whoever_saves_has_key_frames_decoded_also_in_noise() -> None:
    policy, encoder = DecodePolicy[int]("saving"), Encoder(noise=0.3)
    run(policy, encoder, 60.0)
    assert len(run(policy, encoder, 60.0)) <= 120


def test_sizes_that_fall_for_seconds_after_each_key_frame_are_no_reason() -> None:
    policy, encoder = DecodePolicy[int](), Encoder(gop=80)
    for number in range(6000):
        policy.add(number, encoder.packet(1.0 + np.exp(-(number % 80) / 20.0)), QUIET)
        assert number < 300 or policy.mode is not DecodeMode.FULL


def test_an_alarm_without_motion_is_over_within_three_seconds() -> None:
    policy, encoder = settled()
    run(policy, encoder, 0.5)
    run(policy, encoder, 0.3, factor=1.5)
    assert policy.mode is DecodeMode.FULL
    run(policy, encoder, 3.0)
    assert policy.mode is not DecodeMode.FULL


def test_a_demand_keeps_everything_decoded() -> None:
    policy, encoder = settled()
    steps = run(policy, encoder, 600.0, ALL)
    numbers = [step.packet for step in steps]
    assert numbers == list(range(numbers[0], encoder.number))


def test_motion_that_no_packet_has_shown_has_every_key_frame_decoded() -> None:
    policy, encoder = settled()
    run(policy, encoder, 1.0, MOVED)
    run(policy, encoder, 10.0)
    assert policy.mode.name == "KEYFRAMES"
    keyframes = [step for step in run(policy, encoder, 60.0) if step.alone]
    assert len(keyframes) >= 25
    run(policy, encoder, 600.0)
    assert policy.mode.name == "PACKETS"


def test_false_alarms_become_rarer() -> None:
    policy, encoder, random = *settled(), np.random.default_rng(1)
    alarms = []
    for _ in range(2):
        count = 0
        for _ in range(3000):
            before = policy.mode
            factor = 1.4 if random.random() < 0.05 else 1.0
            policy.add(encoder.number, encoder.packet(factor), QUIET)
            count += policy.mode is DecodeMode.FULL and before is not DecodeMode.FULL
        alarms.append(count)
    assert alarms[1] < alarms[0] / 2


def test_a_camera_without_key_frames_is_looked_at_every_twelve_seconds() -> None:
    policy, encoder = settled(gop=0)
    steps = run(policy, encoder, 60.0)
    numbers = [step.packet for step in steps]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "each picture needs the one before"
    assert not any(step.restart for step in steps)
    assert encoder.number - numbers[-1] <= 12 * FPS


def test_pictures_without_any_prediction_are_looked_at_five_times_a_second() -> None:
    policy, encoder = settled(gop=1)
    assert 45 <= len(run(policy, encoder, 10.0)) <= 50


def test_key_frames_alone_are_decoded_on_request_whatever_happens() -> None:
    policy = DecodePolicy[int]("keyframes")
    steps = run(policy, Encoder(), 20.0, MOVED, factor=3.0)
    assert [step.packet for step in steps] == list(range(0, 200, 20))


def test_everything_is_decoded_on_request() -> None:
    policy = DecodePolicy[int]("full")
    assert [step.packet for step in run(policy, Encoder(), 20.0)] == list(range(200))


Packets = Sequence[tuple[int, bool, int, Demand]]
packets = st.lists(
    st.tuples(
        st.integers(1, 400_000),
        st.booleans(),
        st.sampled_from([0, 1, 40, 66, 100, 3_000, 20_000]),
        st.sampled_from([QUIET, QUIET, QUIET, Demand(DecodeMode.KEYFRAMES), ALL, MOVED]),
    ),
    max_size=400,
)
CHOICES: list[DecodeChoice] = ["auto", "saving"]
LIMITS = DecodeLimits(start_s=0.5, bytes=1_000_000, packets=60)


def replayed(
    given_packets: Packets, policy: DecodePolicy[int]
) -> Iterator[tuple[PacketFacts, Demand, list[DecodeStep[int]]]]:
    at_ns = S
    for number, (size, keyframe, after_ms, demand) in enumerate(given_packets):
        at_ns += after_ms * 1_000_000
        facts = PacketFacts(size, keyframe, False, at_ns)
        yield facts, demand, policy.add(number, facts, demand)


@settings(max_examples=200)
@given(packets, st.sampled_from(CHOICES))
def test_a_decoder_gets_each_packet_after_the_one_before_it_or_a_key_frame(
    given_packets: Packets, choice: DecodeChoice
) -> None:
    policy, decoded = DecodePolicy[int](choice, LIMITS), -1
    for _, _, steps in replayed(given_packets, policy):
        for step in steps:
            if step.restart:
                assert given_packets[step.packet][1], "it begins with a key frame"
            else:
                assert step.packet == decoded + 1, "nothing between is missing"
            decoded = -2 if step.alone else step.packet


@settings(max_examples=200)
@given(packets, st.sampled_from(CHOICES))
def test_while_everything_is_decoded_nothing_is_left_out_up_to_now(
    given_packets: Packets, choice: DecodeChoice
) -> None:
    policy = DecodePolicy[int](choice, LIMITS)
    for number, (_, demand, steps) in enumerate(replayed(given_packets, policy)):
        if demand.mode is DecodeMode.FULL:
            assert policy.mode == DecodeMode.FULL
        if policy.mode is DecodeMode.FULL:
            assert steps[-1].packet == number
            assert not steps[-1].alone


NOTHING = Demand(DecodeMode.NOTHING)


@settings(max_examples=200)
@given(packets, st.lists(st.booleans(), max_size=400))
def test_nothing_is_decoded_for_who_only_hears_and_pictures_begin_with_a_key_frame(
    given_packets: Packets, hears: Sequence[bool]
) -> None:
    policy, limits = DecodePolicy[int](limits=LIMITS), LIMITS
    only = [*hears, *[False] * len(given_packets)]
    mixed = [(*one[:3], NOTHING if only[at] else one[3]) for at, one in enumerate(given_packets)]
    waits, since_ns = False, 0
    for facts, demand, steps in replayed(mixed, policy):
        if demand is NOTHING:
            assert steps == []
            assert policy.kept_bytes == 0
            waits, since_ns = True, facts.at_ns
        elif waits:
            is_patient = facts.at_ns - since_ns < limits.blind_s * S
            assert bool(steps) == (facts.keyframe or not is_patient)
            assert all(step.restart for step in steps[:1])
            waits = not steps


@settings(max_examples=200)
@given(packets, st.sampled_from(CHOICES))
def test_memory_is_bounded(given_packets: Packets, choice: DecodeChoice) -> None:
    policy = DecodePolicy[int](choice, LIMITS)
    for facts, _, _ in replayed(given_packets, policy):
        assert policy.kept_bytes <= LIMITS.bytes + facts.size


@settings(max_examples=100)
@given(packets)
def test_after_a_while_of_quiet_little_is_decoded(given_packets: Packets) -> None:
    policy, at_ns = DecodePolicy[int]("saving", LIMITS), S
    for facts, _, _ in replayed(given_packets, policy):
        at_ns = facts.at_ns
    for number in range(30):
        policy.add(number, PacketFacts(2_000, number == 0, False, at_ns + number * S // 10), QUIET)
    assert policy.mode != DecodeMode.FULL


def test_a_burst_is_thinned_and_ends_with_the_present() -> None:
    thinner = BurstThinner(every_s=0.2, most=5)
    thinner.begin(10 * S, 14 * S)
    handed_on = [at for at in range(10 * S, 15 * S, S // 10) if thinner.passes(at)]
    assert [at for at in handed_on if at < 14 * S] == [10 * S + one * 8 * S // 10 for one in range(5)]
    assert [at for at in handed_on if at >= 14 * S] == list(range(14 * S, 15 * S, S // 10))
    assert thinner.is_late(13 * S)
    assert not thinner.is_late(14 * S)


LITTLE = Demand(most=DecodeMode.KEYFRAMES)


def test_key_frames_alone_are_decoded_as_long_as_no_more_is_allowed() -> None:
    policy, encoder = settled()
    steps = run(policy, encoder, 20.0, LITTLE, factor=3.0)
    assert [step.packet % 20 for step in steps] == [0] * 10
    assert all(step.alone and step.restart for step in steps)
    assert policy.mode is DecodeMode.KEYFRAMES


def test_everything_since_the_key_frame_is_decoded_when_more_is_allowed_again() -> None:
    policy, encoder = settled()
    run(policy, encoder, 10.0, LITTLE)
    run(policy, encoder, 0.7, LITTLE)
    first = encoder.number
    steps = run(policy, encoder, 1.0, ALL)
    assert steps[0].restart
    assert steps[0].packet == first - first % 20
    assert [step.packet for step in steps] == list(range(first - first % 20, first + 10))


def test_a_camera_without_key_frames_is_kept_in_bounds_also_then() -> None:
    limits = DecodeLimits(bytes=60_000)
    policy, encoder = settled(limits=limits)
    encoder.gop = 0
    for _ in range(1000):
        policy.add(encoder.number, encoder.packet(), LITTLE)
        assert policy.kept_bytes <= limits.bytes + 10_000


def test_after_a_key_frame_that_gave_no_picture_everything_is_decoded_for_a_minute() -> None:
    policy, encoder = settled()
    while not (steps := run(policy, encoder, 1.0 / FPS)) or not steps[0].alone:
        pass
    policy.mark_check(encoder.number * S // FPS, succeeded=False)
    assert len(run(policy, encoder, 58.0)) >= 58 * FPS
    run(policy, encoder, 10.0)
    assert policy.mode is DecodeMode.PACKETS


@pytest.mark.parametrize("gop", [1, 20, 70])
def test_the_length_of_a_group_is_known_from_its_end_on(gop: int) -> None:
    policy, encoder = DecodePolicy[int](), Encoder(gop)
    run(policy, encoder, gop / FPS)
    assert policy.group == 0 or gop == 1
    run(policy, encoder, 1.0 / FPS)
    assert policy.group == gop


def test_key_frames_alone_are_not_enough_where_they_give_no_picture() -> None:
    policy, encoder = settled()
    keys = Demand(most=DecodeMode.KEYFRAMES)
    policy.mark_check(encoder.number * S // FPS, succeeded=False)
    assert len(run(policy, encoder, 3.0, keys)) >= 3 * FPS
    run(policy, encoder, 60.0, keys)
    assert policy.mode is DecodeMode.KEYFRAMES
