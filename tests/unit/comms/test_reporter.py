from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.messages import DetectionsMessage, EventMessage, ModelId
from agent.comms.reporter import EventCounts, Reporter
from agent.comms.topics import Topics
from agent.config import PublishConfig
from agent.config.features import StreamBudget
from agent.types import Detection, Event, EventKind, OpenTrack, StageTimes, StreamResult, Track
from tests.support.doubles import Kept

NOW = datetime.now(UTC)


def reporter(kept: Kept, config: PublishConfig) -> Reporter:
    return Reporter(Topics("vedette", "porch"), "front", config, ModelId("person", "0"), kept, kept)


def event(kind: EventKind, *zones: str, track: str = "front-1") -> Event:
    return Event(kind, Track(track, "person", 0.9, 0.9, 3, NOW, NOW, zones=zones), "because")


def report(kept: Kept, config: PublishConfig, *events: Event) -> list[str]:
    speaking = reporter(kept, config)
    for one in events:
        speaking.events([one], NOW, StageTimes(), "cpu", "full")
    return kept.kinds()


def test_a_count_that_stays_is_not_repeated() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig())
    for counts in ({"cat": 1, "dog": 0}, {"cat": 1, "dog": 0}, {"cat": 2, "dog": 0}):
        speaking.counts(counts, {})
    assert [body for _, body in kept.history] == [b"1", b"0", b"2"]


def test_a_zone_that_a_thing_has_left_is_at_nought_again() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig())
    for zones in ({("yard", "cat"): 0}, {("yard", "cat"): 1}, {("yard", "cat"): 1, ("road", "cat"): 1}, {}, {}):
        speaking.counts({}, zones)
    yard, road = "vedette/porch/front/zone/yard/count/cat", "vedette/porch/front/zone/road/count/cat"
    assert kept.history == [(yard, b"0"), (yard, b"1"), (road, b"1"), (yard, b"0"), (road, b"0")]


def test_counted_is_what_was_there_once() -> None:
    speaking = reporter(Kept(), PublishConfig())
    speaking.counts({"cat": 0, "dog": 1}, {("yard", "dog"): 1, ("road", "dog"): 0})
    speaking.counts({"cat": 0, "dog": 0}, {})
    assert speaking.counted_labels == (("", "dog"), ("yard", "dog"))


def test_a_picture_that_was_not_inferred_is_told_as_predicted() -> None:
    kept, found = Kept(), [Detection("person", 0.9, (0.1, 0.1, 0.2, 0.2))]
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.report(1, NOW, StreamResult([], found, StageTimes()), "cpu", "full")
    speaking.report(2, NOW, StreamResult([], None, StageTimes(), found), "cpu", "full")
    speaking.report(3, NOW, StreamResult([], None, StageTimes()), "cpu", "full")
    told = [msgspec.json.decode(body, type=DetectionsMessage) for _, body in kept.sent]
    assert [(one.seq, one.predicted, one.detections) for one in told] == [(1, False, found), (2, True, found)]


def test_without_zones_everything_is_told() -> None:
    assert report(Kept(), PublishConfig(), event("new"), event("update"), event("end")) == [
        "new",
        "update",
        "end",
    ]


def test_with_only_zones_a_track_begins_where_it_first_stands_in_one() -> None:
    walk = (event("new"), event("update"), event("update", "yard"), event("update"), event("end"))
    assert report(Kept(), PublishConfig(only_zones=True), *walk) == ["new", "update", "end"]


def test_with_only_zones_a_track_that_never_stood_in_one_is_not_told() -> None:
    assert report(Kept(), PublishConfig(only_zones=True), event("new"), event("update"), event("end")) == []


def test_with_only_zones_a_track_ends_once() -> None:
    walk = (event("new", "yard"), event("end", "yard"), event("end", "yard"))
    assert report(Kept(), PublishConfig(only_zones=True), *walk) == ["new", "end"]


def test_no_events_is_none_at_all() -> None:
    assert report(Kept(), PublishConfig(events=False), event("new")) == []


def test_the_crash_end_of_an_open_track_is_its_end_and_an_end_takes_it_back() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig())
    for one in (
        event("new"),
        event("new", track="front-2"),
        event("update", "yard"),
        event("end", track="front-2"),
    ):
        speaking.events([one], NOW, StageTimes(), "cpu", "full")
    assert kept.crash_ends["front-2"] is None
    will = msgspec.json.decode(kept.crash_ends["front-1"] or b"", type=EventMessage)
    assert (will.kind, will.reason, will.track.zones) == ("end", "restart", ("yard",))
    assert will.id not in {told.id for told in kept.events()}


def test_closing_ends_what_is_open_and_takes_nothing_more() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig())
    for one in (event("new"), event("new", track="front-2"), event("end", track="front-2")):
        speaking.events([one], NOW, StageTimes(), "cpu", "full")
    speaking.counts({"person": 1}, {("yard", "person"): 1})
    speaking.close("shutdown")
    speaking.events([event("update"), event("end")], NOW, StageTimes(), "cpu", "full")
    told = [(message.kind, message.track.id, message.reason) for message in kept.events()]
    assert told[-1] == ("end", "front-1", "shutdown")
    assert [kind for kind, _, _ in told] == ["new", "new", "end", "end"]
    assert set(kept.retained.values()) == {b"0"}


def test_detections_do_not_wait_for_the_events_of_their_frame() -> None:
    order: list[str] = []

    class Ordered(Kept):
        def put(self, topic: str, body: bytes, track: OpenTrack | None = None) -> None:
            order.append(topic.rpartition("/")[2])

        def send(self, topic: str, payload: bytes) -> None:
            order.append(topic.rpartition("/")[2])

    seen = StreamResult(events=[event("new")], detections=[], stages=StageTimes())
    reporter(Ordered(), PublishConfig(detections=True)).report(1, NOW, seen, "cpu", "full")
    assert order == ["detections", "events"]


def test_detections_go_straight_to_the_broker() -> None:
    kept = Kept()
    seen = StreamResult([], [Detection("dog", 0.5)], StageTimes())
    reporter(kept, PublishConfig(detections=True)).report(77, NOW, seen, "cpu", "full")
    ((topic, body),) = kept.sent
    assert (topic, msgspec.json.decode(body)["seq"], kept.puts) == ("vedette/porch/front/detections", 77, [])


def test_after_a_stop_only_ends_and_counts_of_nothing_are_published() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.events([event("new")], NOW, StageTimes(), "cpu", "full")
    speaking.counts({"person": 1}, {("yard", "person"): 1})
    speaking.stop()
    before = len(kept.history)
    late = StreamResult(
        [event("update"), event("new", track="front-2")], [Detection("person", 0.9)], StageTimes()
    )
    speaking.report(2, NOW, late, "cpu", "full")
    speaking.counts({"person": 2, "dog": 1}, {("yard", "person"): 2})
    speaking.snapshot(b"late")
    assert (kept.kinds(), kept.sent, kept.history[before:]) == (["new"], [], [])
    speaking.events([event("end"), event("end", track="front-2")], NOW, StageTimes(), "cpu", "full")
    speaking.counts({"person": 0}, {})
    assert kept.kinds() == ["new", "end"]
    assert [body for _, body in kept.history[before:]] == [b"0", b"0"]


def test_after_it_is_closed_nothing_is_published() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.counts({"person": 1}, {})
    speaking.close("shutdown")
    before = len(kept.history)
    speaking.counts({"person": 0, "dog": 0}, {})
    speaking.snapshot(b"late")
    speaking.report(2, NOW, StreamResult([event("new")], [Detection("person", 0.9)], StageTimes()), "cpu", "full")
    assert (kept.kinds(), kept.sent, kept.history[before:]) == ([], [], [])


def test_measurements_are_set_when_they_have_changed_by_a_step_and_not_too_often() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(values_every_s=1.0))
    for now_s, value in ((0.0, 20.0), (0.5, 25.0), (1.0, 20.4), (1.5, 21.0), (2.0, 21.0), (3.5, 20.7)):
        speaking.values({"oil level": value}, 0.5, now_s)
    topic = "vedette/porch/front/value/oil_level"
    assert kept.history == [(topic, b"20"), (topic, b"21")]


def test_the_last_measurement_is_set_when_it_is_due_and_unknown_after_a_stop() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(values_every_s=1.0))
    for now_s, value in ((0.0, 1.0), (0.1, 2.0), (0.2, 1000016.33)):
        speaking.values({"level": value}, 0.05, now_s)
    topic = "vedette/porch/front/value/level"
    assert kept.history == [(topic, b"1")]
    speaking.values({}, 0.05, 1.1)
    assert kept.retained[topic] == b"1000016.33"
    speaking.values({"level": 3.0}, 0.05, 1.2)
    speaking.values({}, 0.05, float("inf"))
    assert kept.retained[topic] == b"3"
    speaking.stop()
    assert kept.retained[topic] == b""
    speaking.values({"level": 90.0}, 0.5, 99.0)
    assert kept.retained[topic] == b""


def test_measurements_are_not_set_where_nothing_is_to_be_retained() -> None:
    kept = Kept()
    reporter(kept, PublishConfig(counts=False)).values({"level": 1.0}, 0.0, 0.0)
    assert kept.history == []


@given(st.lists(st.floats(0.0, 3.0), max_size=50), st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_samples_are_never_closer_than_allowed_and_the_newest_is_never_lost(
    pauses: list[float], every_s: float
) -> None:
    kept, now_s, times = Kept(), [0.0], list[float]()
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.set_budget(StreamBudget(samples_every_s=every_s))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("agent.comms.reporter.time.monotonic", lambda: now_s[0])
        for number, pause_s in enumerate(pauses):
            now_s[0] += pause_s
            speaking.report(number, NOW, StreamResult([], [], StageTimes()), "cpu", "full")
            times += [now_s[0]] * (len(kept.sent) - len(times))
        now_s[0] += every_s
        speaking.send_due_sample()
        times += [now_s[0]] * (len(kept.sent) - len(times))
    numbers = [msgspec.json.decode(body)["seq"] for _, body in kept.sent]
    assert all(later - earlier >= every_s - 1e-9 for earlier, later in pairwise(times))
    assert numbers == sorted(set(numbers))
    assert not pauses or numbers[-1] == len(pauses) - 1


def test_a_budget_limits_samples_and_no_events() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.set_budget(StreamBudget(samples_every_s=60.0))
    for number in range(5):
        result = StreamResult([event("new", track=f"front-{number}")], [], StageTimes())
        speaking.report(number, NOW, result, "cpu", "full")
    assert (len(kept.sent), len(kept.puts)) == (1, 5)
    speaking.set_budget(StreamBudget())
    speaking.send_due_sample()
    assert [msgspec.json.decode(body)["seq"] for _, body in kept.sent] == [0, 4]


def test_a_sample_that_waits_when_the_stream_stops_is_not_sent() -> None:
    kept = Kept()
    speaking = reporter(kept, PublishConfig(detections=True))
    speaking.set_budget(StreamBudget(samples_every_s=60.0))
    for number in range(2):
        speaking.report(number, NOW, StreamResult([], [], StageTimes()), "cpu", "full")
    speaking.stop()
    speaking.set_budget(StreamBudget())
    speaking.send_due_sample()
    assert len(kept.sent) == 1


def counted(counts: EventCounts, config: PublishConfig, *events: Event) -> dict[tuple[str, EventKind], int]:
    kept = Kept()
    Reporter(
        Topics("vedette", "porch"), "front", config, ModelId("person", "0"), kept, kept, None, counts
    ).events(events, NOW, StageTimes(), "cpu", "full")
    return counts.all()


def test_events_that_are_published_are_counted_by_label_and_kind() -> None:
    counts = EventCounts()
    shown = event("new"), event("update"), event("update"), event("end"), event("end", track="front-2")
    assert counted(counts, PublishConfig(), *shown) == {
        ("person", "new"): 1,
        ("person", "update"): 2,
        ("person", "end"): 1,
    }
    assert counted(EventCounts(), PublishConfig(events=False), event("new")) == {}
    assert counted(EventCounts(), PublishConfig(only_zones=True), event("new")) == {}


def test_texts_that_a_model_reads_are_counted_without_their_words() -> None:
    counts = EventCounts()
    counts.hides_labels = True
    assert counted(counts, PublishConfig(), event("new")) == {("text", "new"): 1}


def test_only_so_many_labels_are_counted_apart() -> None:
    counts = EventCounts()
    for number in range(200):
        track = Track("a", f"{number} " * 100, 0.9, 0.9, 3, NOW, NOW)
        counts.add(Event("new", track, "because"))
    assert len(counts.all()) == 65
    assert counts.all()["other", "new"] == 200 - 64
    assert max(len(label) for label, _ in counts.all()) <= 64
