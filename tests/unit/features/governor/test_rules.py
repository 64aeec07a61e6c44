"""The governor: who gives way to whom, when it comes back, and what it says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.comms.mqtt.link import LinkLoad
from agent.config.features import GovernorConfig, StreamBudget
from agent.features.governor.part import find_shortages
from agent.features.governor.readings import BoardReading, Readings, StreamReading, VariantCost
from agent.features.governor.rules import Governor
from agent.features.governor.steps import CHANGES_PER_MINUTE, CONFIGURED, Decision
from agent.storage.spool.spool import DiskLoad

FULL = StreamBudget()
SIZES = (VariantCost(), VariantCost("320", 0.6), VariantCost("256", 0.4))
IDLE, BUSY = BoardReading(cores=4, idle=0.9), BoardReading(cores=4, idle=0.0, others=0.6)
CALM = StreamReading(
    fps=10.0, fps_now=10.0, open_share=1.0, inferred_fps=10.0, latency_ms=40.0, cost_ms=50.0, variants=SIZES
)
FULLY = BoardReading(cores=4, idle=0.0)
FRONT = replace(CALM, priority=80, min_fps=8.0, max_latency_ms=200.0)
YARD, BACK = CALM, replace(CALM, priority=20)
STREAMS = {"front": FRONT, "yard": YARD, "back": BACK}
STARVED = {**STREAMS, "front": replace(FRONT, inferred_fps=7.0)}
HUNGRY = {**STREAMS, "front": replace(FRONT, inferred_fps=3.0)}

DEFAULT, WELL, CONNECTED = GovernorConfig(), DiskLoad(), LinkLoad(connected=True)


class Course:
    """A governor and its clock. Keeps every decision and change."""

    def __init__(self, config: GovernorConfig = DEFAULT) -> None:
        self.governor = Governor(config)
        self.now_s = 100.0
        self.decisions: list[Decision] = []
        self.changed: list[tuple[float, str, str]] = []

    def run(
        self,
        seconds: int,
        streams: dict[str, StreamReading],
        board: BoardReading = IDLE,
        disk: DiskLoad = WELL,
        link: LinkLoad = CONNECTED,
        memory_free: float | None = None,
    ) -> Decision:
        """Pass so many seconds with the same readings; return the last decision."""
        for _ in range(seconds):
            self.now_s += 1.0
            shortages = find_shortages(memory_free, disk, link)
            decision = self.governor.decide(Readings(self.now_s, board, streams, shortages))
            self.decisions.append(decision)
            self.changed += [(self.now_s, one.stream, one.text) for one in decision.changes]
        return self.decisions[-1]


def test_nothing_changes_while_every_promise_is_kept() -> None:
    course = Course()
    decision = course.run(100, STREAMS, BUSY)
    assert decision.budgets == dict.fromkeys(STREAMS, FULL)
    assert (course.changed, decision.reduced, decision.unmet) == ([], {}, {})


def test_streams_without_a_promise_are_left_alone_however_slow_they_are() -> None:
    course = Course()
    slow = replace(YARD, inferred_fps=0.5, latency_ms=5000.0)
    course.run(60, {"yard": slow, "back": slow}, BUSY)
    assert course.changed == []


def test_the_least_important_stream_gives_way_first() -> None:
    course = Course()
    decision = course.run(3, STARVED, BUSY)
    assert [stream for _, stream, _ in course.changed] == ["back"]
    assert decision.budgets["back"].stride == 2
    assert "front infers 7.0 of 8 pictures per second" in decision.reduced["back"]
    assert decision.budgets["front"] == decision.budgets["yard"] == FULL


def test_one_bad_window_changes_nothing() -> None:
    course = Course()
    for _ in range(10):
        course.run(1, STARVED, BUSY)
        course.run(3, STREAMS, BUSY)
    assert course.changed == []


def test_a_promise_far_from_kept_takes_all_that_others_can_give_and_a_smaller_size() -> None:
    decision = Course().run(3, HUNGRY, BUSY)
    assert {name: (b.stride, b.variant) for name, b in decision.budgets.items()} == {
        "front": (1, "320"),
        "yard": (5, "256"),
        "back": (5, "256"),
    }


def test_a_latency_that_is_not_kept_is_a_broken_promise_too() -> None:
    course = Course()
    course.run(3, {**STREAMS, "front": replace(FRONT, latency_ms=230.0)}, BUSY)
    assert course.changed[0][1] == "back"
    assert "front takes 230 of 200 ms" in course.changed[0][2]


def test_streams_of_one_priority_give_way_to_each_other_but_never_below_their_own_promise() -> None:
    promised = replace(CALM, min_fps=8.0)
    course = Course()
    decision = course.run(10, {"one": replace(promised, inferred_fps=4.0), "two": promised, "three": CALM}, BUSY)
    assert decision.budgets["three"].stride > 1
    assert decision.budgets["two"].stride == 1


def test_a_more_important_stream_never_gives_way() -> None:
    broken = replace(BACK, min_fps=8.0, inferred_fps=2.0, variants=SIZES[:1])
    course = Course()
    decision = course.run(30, {"front": FRONT, "back": broken}, replace(BUSY, others=0.1))
    assert decision.budgets["front"] == FULL
    assert decision.unmet == {"back": "infers 2.0 of 8 pictures per second: this board is too slow for it"}


def test_what_cannot_be_kept_says_who_uses_the_processors() -> None:
    alone = {"front": replace(FRONT, inferred_fps=2.0, variants=SIZES[:1])}
    assert Course().run(5, alone, BUSY).unmet["front"].endswith("other programs use 60% of the processors")
    assert Course().run(5, alone, FULLY).unmet["front"].endswith("this board is too slow for it")
    limited = replace(BUSY, quota=0.5)
    told = "the daemon may use 0.5 processors alone (CPUQuota)"
    assert Course().run(5, alone, limited).unmet["front"].endswith(told)
    told = "its inferences take too long, though 90% of the processors are idle"
    assert Course().run(5, alone, IDLE).unmet["front"].endswith(told)
    slowed = replace(BUSY, slowed="the firmware reports: under-voltage")
    assert Course().run(5, alone, slowed).unmet["front"].endswith("the firmware reports: under-voltage")


def test_a_stream_takes_a_smaller_size_itself_when_no_other_can_give_way() -> None:
    course = Course()
    decision = course.run(4, {"front": replace(FRONT, inferred_fps=7.0)}, BUSY)
    assert decision.budgets["front"].variant == "320"
    assert decision.budgets["front"].stride == 1


def test_a_size_that_may_no_longer_be_used_is_forgotten() -> None:
    course = Course()
    assert course.run(20, HUNGRY, BUSY).budgets["back"].variant == "256"
    chosen = {**HUNGRY, "back": replace(BACK, variants=(VariantCost(), VariantCost("160", 0.2)))}
    assert course.run(1, chosen, BUSY).budgets["back"].variant in ("", "160")


def test_a_new_promise_shortens_the_streams_own_stride() -> None:
    course = Course()
    assert course.run(20, HUNGRY, BUSY).budgets["back"].stride == 5
    promised = {**HUNGRY, "back": replace(BACK, priority=90, min_fps=4.0, inferred_fps=2.0)}
    assert course.run(6, promised, BUSY).budgets["back"].stride == 2


def test_everything_is_back_within_ten_seconds_of_idle_processors() -> None:
    course = Course()
    course.run(20, HUNGRY, BUSY)
    decision = course.run(10, STREAMS, IDLE)
    assert decision.budgets == dict.fromkeys(STREAMS, FULL)
    assert decision.reduced == {}


def test_nothing_comes_back_while_the_processors_are_busy() -> None:
    course = Course()
    before = course.run(20, HUNGRY, BUSY)
    assert course.run(60, STREAMS, BUSY).budgets == before.budgets


def test_the_most_important_comes_back_first_where_there_is_room_for_one() -> None:
    course = Course()
    course.run(20, HUNGRY, BUSY)
    room = BoardReading(cores=4, idle=0.25, others=0.5)  # 0.68 of a core besides the reserve
    decision = course.run(5, STREAMS, room)
    assert decision.budgets["yard"].stride < decision.budgets["back"].stride


def test_what_came_back_too_early_waits_longer_each_time() -> None:
    course = Course(GovernorConfig())
    comes_back = []
    for _ in range(6):
        course.run(20, STARVED, BUSY)
        began_s = course.now_s
        for _ in range(400):
            if course.run(1, STREAMS, IDLE).budgets["back"] == FULL:
                break
        comes_back.append(course.now_s - began_s)
    assert comes_back[-1] > 2.0 * comes_back[0]


def test_a_stream_is_tried_with_more_after_two_quiet_minutes_beside_a_lasting_load() -> None:
    course = Course()
    before = course.run(20, HUNGRY, BUSY)
    after = course.run(140, STREAMS, BUSY)
    assert (before.budgets["front"].variant, after.budgets["front"].variant) == ("256", "320")
    assert after.budgets["back"] == before.budgets["back"]


def test_heat_is_prevented_by_the_load_that_leads_to_it_least_important_first() -> None:
    warm = replace(IDLE, idle=0.5, celsius=70.0, limit_c=77.0, settles_c=85.0, limit_in_s=60.0)
    course = Course()
    decision = course.run(1, STREAMS, warm)
    assert decision.budgets["back"].stride > 1
    assert decision.budgets["front"] == FULL
    assert "would reach 77 °C in 60 s" in decision.reduced["back"]


def test_equal_streams_share_the_reduction_because_of_heat() -> None:
    hot = replace(IDLE, idle=0.5, celsius=78.0, limit_c=77.0)
    decision = Course().run(1, dict.fromkeys(("one", "two", "three"), CALM), hot)
    assert {budget.stride for budget in decision.budgets.values()} <= {1, 2}
    assert sum(budget.stride == 2 for budget in decision.budgets.values()) >= 2


def test_heat_that_stays_is_told() -> None:
    hot = replace(IDLE, celsius=79.0, limit_c=77.0)
    decision = Course().run(300, {"one": CALM}, hot)
    assert decision.unmet[""] == "the board is at 79 °C, and nothing is left that could give way"


def test_an_unknown_or_cold_temperature_changes_nothing() -> None:
    course = Course()
    course.run(30, STREAMS, IDLE)
    course.run(30, STREAMS, replace(IDLE, celsius=40.0, limit_in_s=20.0))
    assert course.changed == []


def test_nothing_comes_back_to_a_warm_board_whose_temperature_cannot_be_foreseen() -> None:
    course = Course()
    before = course.run(1, STREAMS, replace(IDLE, celsius=78.0, limit_c=77.0))
    assert course.run(300, STREAMS, replace(IDLE, celsius=74.0, limit_c=77.0)).budgets == before.budgets
    cold = course.run(30, STREAMS, replace(IDLE, celsius=55.0, limit_c=77.0))
    assert cold.budgets == dict.fromkeys(STREAMS, FULL)


def test_a_slow_disk_takes_clips_first_and_then_syncs_events_together() -> None:
    recorded = {"front": replace(FRONT, has_clips=True), "back": replace(BACK, has_clips=True)}
    course = Course()
    decision = course.run(180, recorded, IDLE, DiskLoad(commit_ms=900.0))
    assert course.changed[0][1] == "back"
    assert decision.budgets["back"].clips_share == decision.budgets["front"].clips_share == 0.2
    assert decision.sync_every_s == 2.0
    assert {budget.stride for budget in decision.budgets.values()} == {1}
    assert course.run(120, recorded).sync_every_s == 0.0
    assert course.decisions[-1].budgets == dict.fromkeys(recorded, FULL)


def test_short_memory_takes_pictures_of_clips() -> None:
    recorded = {"front": replace(FRONT, has_clips=True), "back": replace(BACK, has_clips=True)}
    course = Course()
    decision = course.run(3, recorded, memory_free=0.03)
    assert [(stream, text) for _, stream, text in course.changed] == [
        ("back", "clips with 50% of their pictures: 3% of the memory are free")
    ]
    assert decision.budgets["front"] == FULL
    assert course.run(60, recorded).budgets == dict.fromkeys(recorded, FULL)


def test_a_low_battery_takes_all_that_is_not_promised_until_the_supply_is_back() -> None:
    course = Course(GovernorConfig(save_below_percent=30.0))
    assert course.run(5, STREAMS, replace(IDLE, battery_percent=31.0)).changes == ()
    decision = course.run(1, STREAMS, replace(IDLE, battery_percent=29.0))
    assert [(b.stride, b.variant) for b in decision.budgets.values()] == [(1, "256"), (5, "256"), (5, "256")]
    assert "29 % of the battery are left" in decision.reduced["front"]
    assert course.run(10, STREAMS, IDLE).budgets == dict.fromkeys(STREAMS, FULL)
    assert Course().run(5, STREAMS, replace(IDLE, battery_percent=1.0)).changes == ()


def test_a_slow_network_takes_samples_then_snapshots_in_the_configured_order() -> None:
    shown = {"front": replace(FRONT, has_samples=True, has_snapshots=True)}
    slow = LinkLoad(connected=True, unsent_bytes=200_000)
    course = Course()
    first = course.run(3, shown, link=slow).budgets["front"]
    assert (first.samples_every_s, first.snapshot_factor) == (1.0, 1.0)
    last = course.run(60, shown, link=slow).budgets["front"]
    assert (last.samples_every_s, last.snapshot_factor, last.snapshot_quality) == (5.0, 10.0, 40)
    other = Course(GovernorConfig(order=("snapshots", "samples")))
    assert other.run(3, shown, link=slow).budgets["front"].snapshot_factor == 3.0


def test_what_is_short_again_at_once_comes_back_later_each_time() -> None:
    shown = {"front": replace(FRONT, has_samples=True)}
    slow = LinkLoad(connected=True, unsent_bytes=200_000)
    course, pauses = Course(), []
    for _ in range(5):
        while not course.run(1, shown, link=slow).budgets["front"].samples_every_s:
            pass
        began_s = course.now_s
        while course.run(1, shown).budgets["front"].samples_every_s:
            pass
        pauses.append(course.now_s - began_s)
    assert all(later > earlier for earlier, later in pairwise(pauses))
    course.run(3, shown, link=slow)
    course.run(1000, shown)
    assert course.decisions[-1].budgets["front"] == FULL


def test_a_network_that_is_away_is_not_slow() -> None:
    shown = {"front": replace(FRONT, has_samples=True)}
    course = Course()
    course.run(60, shown, link=LinkLoad(connected=False, unsent_bytes=1 << 30, oldest_s=1e6))
    assert course.changed == []


ENCODED = {"front": replace(FRONT, has_decoding=True), "back": replace(BACK, has_decoding=True)}
ENCODED_HUNGRY = {**ENCODED, "front": replace(FRONT, inferred_fps=3.0)}


def test_a_stride_stays_where_key_frames_alone_do_not_limit_the_inferences() -> None:
    course = Course()
    every = {**ENCODED_HUNGRY, "back": replace(ENCODED["back"], handled_fps=10.0)}
    assert course.run(20, every, BUSY).budgets["back"].stride == 5
    assert course.decisions[-1].budgets["back"].decode == "keyframes"
    some = {**ENCODED_HUNGRY, "back": replace(ENCODED["back"], handled_fps=4.0)}
    assert course.run(1, some, BUSY).budgets["back"].stride == 2
    few = {**ENCODED_HUNGRY, "back": replace(ENCODED["back"], handled_fps=1.0)}
    assert course.run(1, few, BUSY).budgets["back"].stride == 1


def test_a_less_important_camera_has_its_key_frames_decoded_after_it_infers_as_little_as_it_can() -> None:
    course = Course()
    decision = course.run(20, ENCODED_HUNGRY, BUSY)
    told = [text for _, stream, text in course.changed if stream == "back"]
    assert told[0].startswith("one picture in 5 is inferred, size 256: ")
    assert told[1].startswith("key frames alone are decoded, size 256: front infers 3.0 of 8")
    assert (decision.budgets["back"].decode, decision.budgets["back"].stride) == ("keyframes", 1)
    assert decision.budgets["front"].decode == ""
    assert "key frames alone are decoded" in decision.reduced["back"]
    assert course.run(60, ENCODED).budgets == dict.fromkeys(ENCODED, FULL)


def test_cameras_of_one_priority_keep_their_pictures() -> None:
    equal = {name: replace(one, priority=50) for name, one in ENCODED_HUNGRY.items()}
    assert Course().run(60, equal, BUSY).budgets["back"].decode == ""


def test_decoding_does_not_come_back_while_no_processor_is_idle() -> None:
    course = Course()
    course.run(20, ENCODED_HUNGRY, BUSY)
    assert course.run(60, ENCODED, BUSY).budgets["back"].decode == "keyframes"


def test_what_the_order_leaves_out_is_never_reduced() -> None:
    kept = Course(GovernorConfig(order=("samples",)))
    decision = kept.run(60, HUNGRY, replace(BUSY, celsius=90.0, limit_c=77.0), DiskLoad(commit_ms=5000.0))
    assert decision.budgets == dict.fromkeys(HUNGRY, FULL)
    assert "front" in decision.unmet


def test_what_a_reload_takes_out_of_the_order_comes_back() -> None:
    recorded = {"front": replace(FRONT, has_clips=True), "back": replace(BACK, has_clips=True)}
    course = Course()
    assert course.run(30, {**recorded, "front": replace(FRONT, inferred_fps=2.0)}, BUSY).reduced.keys() == {
        "front",
        "back",
    }
    course.governor.configure(GovernorConfig(order=("samples",)))
    assert course.run(1, recorded, BUSY).budgets == dict.fromkeys(recorded, FULL)


def test_a_camera_that_gives_less_than_is_promised_breaks_nothing() -> None:
    course = Course()
    assert course.run(60, {**STREAMS, "front": replace(FRONT, fps_now=4.0, inferred_fps=3.8)}, BUSY).unmet == {}
    assert course.changed == []


def test_a_stream_that_is_lost_for_some_time_keeps_what_was_decided() -> None:
    course = Course()
    before = course.run(20, HUNGRY, BUSY).budgets["back"]
    known = frozenset(HUNGRY)
    for _ in range(20):
        course.now_s += 1.0
        away = course.governor.decide(Readings(course.now_s, BUSY, {"front": FRONT}, known=known))
    assert set(away.budgets) == {"front"}
    assert course.run(1, STREAMS, BUSY).budgets["back"] == before


def test_an_order_without_inferences_is_named_where_nothing_gives_way() -> None:
    course = Course(GovernorConfig(order=("clips",)))
    assert course.run(5, HUNGRY, BUSY).unmet["front"].endswith("`governor.order` lets no inference give way")


def test_a_broken_promise_of_any_stream_shortens_its_own_stride_first() -> None:
    course = Course()
    assert course.run(20, HUNGRY, BUSY).budgets["back"].stride == 5
    promised = {**HUNGRY, "back": replace(BACK, min_fps=8.0, inferred_fps=2.0)}
    assert course.run(2, promised, BUSY).budgets["back"].stride == 1
    assert course.decisions[-1].unmet.keys() <= {"front"}


def test_a_camera_that_becomes_slower_is_not_left_below_two_inferences_per_second() -> None:
    course = Course()
    assert course.run(20, HUNGRY, BUSY).budgets["back"].stride == 5
    assert course.run(1, {**HUNGRY, "back": replace(BACK, fps=9.5)}, BUSY).budgets["back"].stride == 5
    slower = {**HUNGRY, "back": replace(BACK, fps=4.0)}
    assert course.run(1, slower, BUSY).budgets["back"].stride == 5, "it may be read too late"
    assert course.run(1, slower, IDLE).budgets["back"].stride == 2


def test_a_lower_max_stride_counts_at_once_and_is_told() -> None:
    course = Course()
    course.run(20, HUNGRY, BUSY)
    course.governor.configure(GovernorConfig(max_stride=2))
    assert course.run(1, HUNGRY, BUSY).budgets["back"].stride == 2
    assert (course.now_s, "back", f"one picture in 2 is inferred, size 256: {CONFIGURED}") in course.changed


def test_what_a_reload_gives_back_is_told() -> None:
    course = Course()
    course.run(20, HUNGRY, BUSY)
    course.governor.configure(GovernorConfig(order=("clips",)))
    assert course.run(1, HUNGRY, BUSY).reduced == {}
    assert (course.now_s, "back", f"everything again: {CONFIGURED}") in course.changed


def test_a_promise_is_broken_until_it_is_kept_whatever_can_give_way() -> None:
    course = Course()
    alone = {"front": replace(FRONT, inferred_fps=7.0, variants=SIZES[:1])}
    assert "front" in course.run(5, alone, BUSY).unmet
    more = course.run(1, {**alone, "back": BACK}, BUSY)
    assert ("front" in more.unmet, "front" in more.broken) == (False, True)
    assert course.run(1, STREAMS, IDLE).broken == {}


def test_a_replaced_promise_is_broken_only_after_some_time() -> None:
    course, alone = Course(), replace(FRONT, inferred_fps=3.0, variants=SIZES[:1])
    assert "front" in course.run(5, {"front": alone}, IDLE).unmet
    other = {"front": replace(alone, min_fps=6.0)}
    assert ("front" in course.run(1, other, IDLE).unmet, "front" in course.run(1, other, IDLE).unmet) == (
        False,
        True,
    )


@pytest.mark.parametrize(
    ("newest", "lasting", "is_broken"),
    [(4.5, None, False), (4.5, 4.9, False), (4.5, 4.7, True), (4.0, 4.9, True), (5.0, 4.0, False)],
    ids=["a picture less", "once", "for ten seconds", "much less", "kept again"],
)
def test_a_picture_less_breaks_a_rate_only_if_it_lasts(
    newest: float, lasting: float | None, is_broken: bool
) -> None:
    promised = replace(FRONT, min_fps=5.0, inferred_fps=newest, inferred_lately=lasting, fps_lately=10.0)
    assert ("front" in Course().run(1, {"front": promised}, IDLE).broken) is is_broken


def test_a_camera_that_gives_less_than_promised_is_named() -> None:
    slow = {"front": replace(FRONT, fps=4.0, fps_now=4.0, inferred_fps=2.0, variants=SIZES[:1])}
    told = Course().run(5, slow, BUSY).unmet["front"]
    assert told.startswith("infers 2.0 of 8 pictures per second, of 4 that its camera gives: ")


def test_a_battery_that_goes_up_and_down_changes_nothing_again() -> None:
    course = Course(GovernorConfig(save_below_percent=20.0))
    for percent in (19.0, 20.0, 22.0, 19.0, 24.0):
        course.run(5, STREAMS, replace(IDLE, battery_percent=percent))
    assert len({at for at, _, _ in course.changed}) == 1
    assert course.run(10, STREAMS, replace(IDLE, battery_percent=25.0)).reduced == {}


def test_a_governor_that_is_switched_off_gives_everything_back() -> None:
    course = Course()
    course.run(10, HUNGRY, BUSY)
    course.governor.configure(GovernorConfig(enabled=False))
    assert course.run(1, HUNGRY, BUSY).budgets == dict.fromkeys(HUNGRY, FULL)
    assert course.run(60, HUNGRY, BUSY).changes == ()


def test_events_are_synced_at_once_again_when_the_governor_is_switched_off() -> None:
    course = Course()
    assert course.run(30, STREAMS, disk=DiskLoad(commit_ms=900.0)).sync_every_s > 0.0
    course.governor.configure(GovernorConfig(enabled=False))
    decision = course.run(1, STREAMS)
    assert decision.sync_every_s == 0.0
    assert "each event is synced at once again: the governor is off" in [one.text for one in decision.changes]


WEAK = replace(IDLE, slowed="the firmware reports: under-voltage")
PLAIN = {"yard": replace(CALM, variants=SIZES[:1]), "back": replace(BACK, variants=SIZES[:1])}


def test_a_supply_that_bears_less_than_everything_is_tried_ever_more_rarely() -> None:
    course, weak_at = Course(), []
    decision = course.run(1, PLAIN)
    for _ in range(3600):
        load = sum(1 / budget.stride for budget in decision.budgets.values())
        weak_at += [course.now_s] if load > 1.4 else []
        decision = course.run(1, PLAIN, WEAK if load > 1.4 else IDLE)
    assert len(weak_at) < 0.03 * 3600, "seconds"
    tried = [at for before, at in pairwise(weak_at) if at - before > 5.0]
    assert 2 <= len(tried) <= 8
    assert all(later >= earlier for earlier, later in pairwise(b - a for a, b in pairwise(tried)))


def test_streams_come_back_one_step_at_a_time_after_a_weak_supply() -> None:
    course = Course()
    course.run(30, PLAIN, WEAK)
    began = len(course.changed)
    course.run(200, PLAIN, IDLE)
    back = course.changed[began:]
    assert len(back) == len({at for at, _, _ in back}) > 2
    assert course.decisions[-1].budgets == dict.fromkeys(PLAIN, FULL)


def test_a_weak_supply_is_used_although_the_most_important_stream_would_be_too_much() -> None:
    course, streams = Course(), {**PLAIN, "front": replace(CALM, priority=80, cost_ms=90.0, variants=SIZES[:1])}
    decision, loads = course.run(1, streams), []
    for _ in range(4 * 3600):
        cost = {name: streams[name].cost_ms / decision.budgets[name].stride for name in streams}
        loads.append(sum(cost.values()))
        decision = course.run(1, streams, WEAK if loads[-1] > 115.0 else IDLE)
    lately = loads[3600:]
    assert sum(load > 115.0 for load in lately) < 60, "seconds of three hours"
    assert sum(lately) / len(lately) > 0.85 * 115.0


def test_a_promise_far_from_kept_has_all_of_equal_streams_in_few_decisions() -> None:
    course = Course()
    equal = replace(CALM, priority=80, has_clips=True, variants=SIZES[:1])
    hungry = {"front": replace(FRONT, inferred_fps=4.0, variants=SIZES[:1]), "a": equal, "b": equal, "c": equal}
    decision = course.run(5, hungry, FULLY)
    assert {decision.budgets[name].clips_share for name in "abc"} == {0.2}
    assert {decision.budgets[name].stride > 2 for name in "abc"} == {True}


def test_a_promise_that_stays_broken_takes_all_after_two_decisions() -> None:
    decision = Course().run(9, STARVED, BUSY)
    assert {decision.budgets[name].stride for name in ("yard", "back")} == {5}


def test_a_stream_that_its_own_size_holds_up_takes_a_smaller_one_and_nothing_from_others() -> None:
    course, decision = Course(), None
    for _ in range(3600):
        small = decision is not None and decision.budgets["front"].variant == "320"
        front = replace(FRONT, inferred_fps=10.0, latency_ms=100.0 if small else 250.0)
        decision = course.run(1, {**STREAMS, "front": front}, IDLE)
    assert {name for _, name, _ in course.changed} == {"front"}
    assert len(course.changed) < 30, "it is tried ever more rarely"


def test_what_others_gave_in_vain_beside_idle_processors_comes_back() -> None:
    alone = replace(FRONT, inferred_fps=7.0, variants=SIZES[:1])
    course = Course()
    assert course.run(20, {**STREAMS, "front": alone}, IDLE).reduced
    decision = course.run(180, {**STREAMS, "front": alone}, IDLE)
    assert decision.reduced == {}
    assert decision.unmet["front"].endswith("its inferences take too long, though 90% of the processors are idle")
    assert course.run(60, STREAMS, IDLE).unmet == {}
    assert course.run(5, STARVED, BUSY).reduced, "once kept, it is helped again"


def test_key_frames_and_clips_are_tried_beside_a_load_that_stays_too() -> None:
    course, clips = Course(), {**ENCODED, "back": replace(ENCODED["back"], has_clips=True, variants=SIZES[:1])}
    course.run(30, {**clips, "front": replace(FRONT, inferred_fps=3.0)}, BUSY)
    assert course.decisions[-1].budgets["back"].decode == "keyframes"
    course.run(1800, clips, BUSY)
    assert course.decisions[-1].budgets["back"] == FULL


def test_clips_that_the_disk_took_come_back_though_a_promise_has_taken_some_before() -> None:
    course, shown = Course(), {"front": FRONT, "back": replace(BACK, has_clips=True, variants=SIZES[:1])}
    course.run(2, {**shown, "front": replace(FRONT, inferred_fps=7.0)}, BUSY)
    assert course.decisions[-1].budgets["back"].clips_share == 0.5
    course.run(3, shown, BUSY, DiskLoad(commit_ms=900.0))
    assert course.decisions[-1].budgets["back"].clips_share == 0.2
    decision = course.run(60, shown, BUSY)
    assert decision.budgets["back"].clips_share == 0.5
    assert "disk" not in decision.reduced["back"]


def test_a_camera_that_gives_less_than_it_seemed_to_shortens_its_own_stride() -> None:
    course = Course()
    low = replace(IDLE, battery_percent=10.0)
    course.governor.configure(GovernorConfig(save_below_percent=20.0))
    mid = replace(CALM, min_fps=5.0, fps=10.0, fps_lately=10.0, inferred_fps=5.0, variants=SIZES[:1])
    assert course.run(2, {"mid": mid, "low": BACK}, low).budgets["mid"].stride == 2
    began = len(course.changed)
    slower = replace(mid, fps_now=9.3, fps_lately=9.3, inferred_fps=4.65, inferred_lately=4.65)
    assert course.run(3, {"mid": slower, "low": BACK}, IDLE).budgets["mid"].stride == 1
    assert {name for _, name, _ in course.changed[began:]} == {"mid"}
    kept = replace(slower, inferred_fps=9.3, inferred_lately=9.3)
    assert course.run(60, {"mid": kept, "low": BACK}, low).budgets["mid"].stride == 1, "the battery knows, too"


def test_a_stride_that_a_promise_shortens_does_not_replace_the_reason_of_what_is_left() -> None:
    course = Course()
    course.run(10, HUNGRY, BUSY)
    promised = {**STREAMS, "back": replace(BACK, min_fps=3.0, variants=SIZES[:1])}
    decision = course.run(2, promised, BUSY)
    assert decision.budgets["back"].stride == 3
    assert decision.reduced["back"].endswith("front infers 3.0 of 8 pictures per second")


def test_each_decision_has_one_line_for_a_stream() -> None:
    course = Course()
    course.run(60, {**ENCODED_HUNGRY, "back": replace(ENCODED["back"], has_clips=True)}, BUSY)
    assert len(course.changed) == len({(at, name) for at, name, _ in course.changed})


def test_memory_is_freed_by_all_cameras_of_one_priority_together() -> None:
    cameras = {f"c{number}": replace(CALM, has_clips=True) for number in range(8)}
    assert {one.clips_share for one in Course().run(6, cameras, memory_free=0.03).budgets.values()} == {0.2}


def lasting(what: str) -> dict[str, object]:
    return {
        "link": {"link": LinkLoad(connected=True, oldest_s=3.0)},
        "memory": {"memory_free": 0.04},
        "disk": {"disk": DiskLoad(commit_ms=900.0)},
    }[what]  # type: ignore[return-value]


@pytest.mark.parametrize("what", ["link", "memory", "disk"])
def test_inferences_come_back_whatever_else_is_short(what: str) -> None:
    course, shown = Course(), {**STREAMS, "yard": replace(YARD, has_samples=True, has_clips=True)}
    short = lasting(what)
    course.run(10, {**shown, "front": replace(FRONT, inferred_fps=7.0)}, **{"board": BUSY, **short})  # type: ignore[arg-type]
    assert course.decisions[-1].budgets["back"].stride > 1
    course.run(90, shown, **{"board": IDLE, **short})  # type: ignore[arg-type]
    assert {one.stride for one in course.decisions[-1].budgets.values()} == {1}
    yard = course.decisions[-1].budgets["yard"]
    assert yard != FULL, "what is short has taken something and keeps it"


def test_what_the_network_took_comes_back_while_a_promise_stays_broken_or_the_battery_is_low() -> None:
    slow = LinkLoad(connected=True, oldest_s=8.0)
    shown = {"front": replace(FRONT, inferred_fps=3.0, has_samples=True, variants=SIZES[:1])}
    course = Course()
    assert course.run(15, shown, BUSY, link=slow).budgets["front"].samples_every_s
    assert not course.run(120, shown, BUSY).budgets["front"].samples_every_s
    low = replace(IDLE, battery_percent=15.0)
    course = Course(GovernorConfig(save_below_percent=20.0))
    calm = {"front": replace(FRONT, has_samples=True)}
    decision = course.run(15, {**calm, "back": BACK}, low, link=slow)
    assert decision.budgets["front"].samples_every_s
    assert decision.reduced["back"].endswith(", size 256: 15 % of the battery are left")
    decision = course.run(120, {**calm, "back": BACK}, low)
    assert not decision.budgets["front"].samples_every_s
    assert decision.reduced.keys() == {"back", "front"}
    assert all(why.endswith(": 15 % of the battery are left") for why in decision.reduced.values())


def test_clips_that_gave_way_to_a_promise_come_back_only_where_there_is_time_for_them() -> None:
    full, course = replace(BACK, has_clips=True, variants=SIZES[:1]), Course()
    barely = replace(IDLE, idle=0.02)
    decision, broken = course.run(1, {"front": FRONT, "back": full}, barely), 0
    for _ in range(600):
        short = decision.budgets["back"].clips_share == 1.0
        broken += short
        front = replace(FRONT, inferred_fps=7.0 if short else 8.5, variants=SIZES[:1])
        decision = course.run(1, {"front": front, "back": full}, barely)
    assert broken < 30, "seconds, of trials every two minutes"
    assert course.run(60, {"front": FRONT, "back": full}, IDLE).budgets["back"] == FULL


def test_heat_is_not_kept_waiting_by_a_slow_network() -> None:
    shown = {name: replace(one, has_samples=True, has_snapshots=True) for name, one in STREAMS.items()}
    course = Course()
    course.run(17, shown, link=LinkLoad(connected=True, oldest_s=8.0))
    hot = replace(IDLE, celsius=82.0, limit_c=77.0, settles_c=85.0)
    assert course.run(2, shown, hot).budgets["back"].stride > 1


def test_a_relapse_while_nothing_may_change_costs_one_pause() -> None:
    course = Course()
    for second in range(200):
        hogged = 20 <= second < 30 or 31 <= second < 66
        helped = bool(course.decisions) and course.decisions[-1].budgets["back"].stride > 1
        front = replace(FRONT, inferred_fps=7.0 if hogged and not helped else 10.0)
        link = LinkLoad(connected=True, oldest_s=8.0 if second < 13 else 0.0)
        course.run(1, {**STREAMS, "front": front}, BUSY if hogged else IDLE, link=link)
    assert course.decisions[-1].budgets["back"] == FULL


@pytest.mark.parametrize(
    ("streams", "config"),
    [
        ({}, DEFAULT),
        ({"yard": replace(YARD, open_share=0.0, inferred_fps=None)}, DEFAULT),
        (PLAIN, GovernorConfig(max_stride=1)),
    ],
    ids=["no stream", "closed gates", "no stride"],
)
def test_heat_that_no_stream_can_lower_says_so(streams: dict[str, StreamReading], config: GovernorConfig) -> None:
    hot = replace(IDLE, celsius=79.0, limit_c=77.0, settles_c=79.0)
    unmet = Course(config).run(1, streams, hot).unmet
    assert unmet == {"": "the board is at 79 °C, and nothing is left that could give way"}


def test_what_streams_have_given_for_heat_is_judged_after_some_time() -> None:
    course, hot = Course(), replace(IDLE, celsius=90.0, limit_c=77.0, settles_c=120.0)
    while course.run(1, PLAIN, hot).budgets["yard"].stride < 5:
        assert course.decisions[-1].unmet == {}
    assert course.decisions[-1].unmet == {}
    assert course.run(30, PLAIN, hot).unmet == {
        "": "the board is at 90 °C, and nothing is left that could give way"
    }


def test_a_low_limit_lets_streams_come_back_to_a_board_that_is_cooler() -> None:
    course = Course()
    course.run(30, PLAIN, replace(IDLE, celsius=41.0, limit_c=40.0, settles_c=41.0))
    assert course.decisions[-1].reduced
    cool = replace(IDLE, celsius=30.0, limit_c=40.0, settles_c=30.0)
    assert course.run(300, PLAIN, cool).budgets == dict.fromkeys(PLAIN, FULL)


def test_a_promise_of_the_cameras_whole_rate_is_broken_by_a_lasting_lack() -> None:
    whole = replace(FRONT, min_fps=10.0, variants=SIZES[:1], max_latency_ms=0.0, fps_lately=10.0)
    assert Course().run(5, {"front": replace(whole, inferred_fps=8.7, inferred_lately=8.7)}, BUSY).unmet
    slower = replace(whole, fps_now=8.7, fps_lately=8.7, inferred_fps=8.7, inferred_lately=8.7)
    assert not Course().run(5, {"front": slower}, BUSY).broken


def test_a_stream_that_is_gone_is_forgotten() -> None:
    course = Course()
    course.run(10, HUNGRY, BUSY)
    assert set(course.run(1, {"front": FRONT}, BUSY).budgets) == {"front"}
    assert course.run(1, STREAMS, BUSY).budgets["back"] == FULL


boards = st.builds(
    BoardReading,
    cores=st.integers(1, 8),
    idle=st.floats(0.0, 1.0),
    others=st.floats(0.0, 1.0),
    celsius=st.none() | st.floats(-300.0, 200.0),
    limit_c=st.floats(60.0, 90.0),
    settles_c=st.none() | st.floats(0.0, 200.0),
    limit_in_s=st.none() | st.floats(0.0, 1e4),
    slowed=st.sampled_from(["", "throttled"]),
    battery_percent=st.none() | st.floats(0.0, 100.0),
)
readings = st.builds(
    StreamReading,
    priority=st.integers(0, 100),
    min_fps=st.sampled_from([0.0, 5.0, 20.0]),
    max_latency_ms=st.sampled_from([0.0, 100.0]),
    fps=st.floats(0.0, 60.0),
    fps_now=st.floats(0.0, 60.0),
    open_share=st.floats(0.0, 1.0),
    inferred_fps=st.none() | st.floats(0.0, 60.0),
    latency_ms=st.none() | st.floats(0.0, 1e4),
    cost_ms=st.floats(0.0, 500.0),
    variants=st.sampled_from([SIZES, SIZES[:1]]),
    has_samples=st.booleans(),
    has_snapshots=st.booleans(),
    has_clips=st.booleans(),
    has_decoding=st.booleans(),
)
memories = st.none() | st.floats(0.0, 1.0)
disks = st.builds(DiskLoad, st.none() | st.floats(0.0, 1e4), st.floats(0.0, 100.0), st.floats(0.0, 100.0))
links = st.builds(LinkLoad, st.booleans(), st.integers(0, 1 << 30), st.floats(0.0, 1e6))
moments = st.tuples(
    st.floats(0.1, 30.0), boards, st.dictionaries(st.sampled_from("abcd"), readings), memories, disks, links
)


_FOR_HEAT = 4
"""Decisions of a minute because of heat or a weak supply, at most: one every 20 s."""


@settings(max_examples=60, deadline=None)
@given(st.lists(moments, max_size=80))
def test_whatever_is_read_budgets_stay_within_their_bounds_and_changes_are_few(
    course: list[tuple[float, BoardReading, dict[str, StreamReading], float | None, DiskLoad, LinkLoad]],
) -> None:
    governor, now_s, changed_at = Governor(GovernorConfig(save_below_percent=20.0)), 0.0, []
    for passed_s, board, streams, memory, disk, link in course:
        now_s += passed_s
        decision = governor.decide(Readings(now_s, board, streams, find_shortages(memory, disk, link)))
        assert set(decision.budgets) == set(streams)
        for name, budget in decision.budgets.items():
            assert 1 <= budget.stride <= GovernorConfig().max_stride
            assert budget.variant in ("", *(one.name for one in SIZES))
            assert (name in decision.reduced) is (budget != FULL)
        changed_at += [now_s] if any(not one.text.endswith(CONFIGURED) for one in decision.changes) else []
        assert all(bool(change.text) for change in decision.changes)
    for at in changed_at:
        assert sum(at <= other < at + 60.0 for other in changed_at) <= CHANGES_PER_MINUTE + _FOR_HEAT


def test_a_temperature_that_vanishes_from_a_hot_board_gives_nothing_back_for_ten_minutes() -> None:
    course = Course()
    before = course.run(5, STREAMS, replace(IDLE, celsius=84.0, limit_c=77.0))
    assert before.reduced
    assert course.run(590, STREAMS, IDLE).budgets == before.budgets
    assert course.run(30, STREAMS, IDLE).reduced == {}


def test_heat_is_not_over_while_nothing_is_known_of_it() -> None:
    course, hot = Course(), replace(IDLE, celsius=79.0, limit_c=77.0, settles_c=79.0)
    assert course.run(1, PLAIN, hot).broken == {"": "the board is at 79 °C"}
    assert course.run(300, PLAIN, IDLE).broken == {"": "the board is at 79 °C"}
    assert course.run(400, PLAIN, IDLE).broken == {}
