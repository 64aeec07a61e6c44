from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from agent.capture.source import Demand
from agent.comms.messages import DetectionsMessage, ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.drawing import annotate, label_place, title_width
from agent.compute.vision import VideoPerception
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig, TrackConfig, ZoneConfig
from agent.config.features import StreamBudget
from agent.config.places import FilterConfig, LineConfig, PrivacyMask
from agent.daemon.parts import StreamPart
from agent.daemon.streams.pipeline import VideoPipeline
from agent.errors import BackendError, ConfigError, ModelError
from agent.features.snapshots.part import cropped
from agent.models.library import open_model
from agent.types import Frame, Image, StreamResult, Track
from tests.support.doubles import FrameList, Kept, frames, person_model, snapshots
from tests.support.tflite_builder import constant_model

RIGHT = ZoneConfig("right", ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)))
LEFT = ZoneConfig("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))


def make_pipeline(
    folder: Path, kept: Kept, publish: PublishConfig | None = None, **config: Any
) -> tuple[VideoPerception, Reporter]:
    fields = {"gate": GateConfig(motion=False), "track": TrackConfig(min_hits=2), **config}
    stream = StreamConfig(source="test:", model=str(person_model(folder)), **fields)
    vision = VideoPerception("front", stream, open_model(stream.model))
    topics = Topics("vedette", "porch")
    return vision, Reporter(topics, "front", publish or PublishConfig(), ModelId("person", "0"), kept, kept)


def run(
    folder: Path, kept: Kept, source: FrameList, publish: PublishConfig | None = None, **config: Any
) -> VideoPipeline:
    vision, reporter = make_pipeline(folder, kept, publish, **config)
    pipeline = VideoPipeline(source, vision, reporter, snapshots(vision, reporter, publish or PublishConfig()))
    pipeline.run(threading.Event())
    return pipeline


def test_a_person_is_announced_and_ended_when_the_clip_is_over(tmp_path: Path) -> None:
    kept, source = Kept(), FrameList(frames(5))
    pipeline = run(tmp_path, kept, source)
    assert kept.kinds() == ["new", "end"]
    new, end = kept.events()
    assert (new.track.label, new.track.box, new.device, new.stream) == (
        "person",
        (0.25, 0.25, 0.5, 0.75),
        "porch",
        "front",
    )
    assert end.reason == "ended"
    assert source.given_back == 5
    assert (pipeline.metrics.frames, pipeline.metrics.inferences) == (5, 5)


def test_every_event_tells_its_latency_by_stage(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(3)))
    latency = kept.events()[0].latency_ms
    stages = (latency.queue, latency.gate, latency.prepare, latency.infer, latency.decode, latency.track)
    assert latency.total == pytest.approx(sum(stages), abs=0.01)
    assert latency.queue > 0


def test_the_count_goes_up_and_down_and_is_told_once(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(6)))
    counts = [value for topic, value in kept.history if topic == "vedette/porch/front/count/person"]
    assert counts == [b"1", b"0"]


def test_each_zone_counts_who_stands_in_it(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(6)), zones=(RIGHT, LEFT))
    zones = [(topic, value) for topic, value in kept.history if "/zone/" in topic]
    assert zones == [("vedette/porch/front/zone/left/count/person", value) for value in (b"1", b"0")]


def test_a_snapshot_is_a_jpeg_of_the_event(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(4)))
    assert kept.retained["vedette/porch/front/snapshot"].startswith(b"\xff\xd8")


def test_what_is_switched_off_is_not_published(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(4)), PublishConfig(events=False, counts=False, snapshot=False))
    assert (kept.puts, kept.retained, kept.sent) == ([], {}, [])


def test_detections_are_sent_for_every_inference(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(3)), PublishConfig(detections=True))
    sent = [msgspec.json.decode(body, type=DetectionsMessage) for _, body in kept.sent]
    assert [message.seq for message in sent] == [0, 1, 2]
    assert sent[0].detections[0].label == "person"


def test_a_stall_ends_tracks_at_once(tmp_path: Path) -> None:
    kept, source = Kept(), FrameList(frames(3))
    source.lost = True
    vision, reporter = make_pipeline(tmp_path, kept)
    pipeline = VideoPipeline(source, vision, reporter, snapshots(vision, reporter, PublishConfig()))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    pipeline.run(stop)
    assert kept.kinds() == ["new", "end"]
    assert kept.events()[1].reason == "stall"


def test_a_stop_ends_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    vision, reporter = make_pipeline(tmp_path, kept)
    stop = threading.Event()
    source = FrameList(frames(50))
    monkeypatch.setattr(source, "give_back", lambda frame: stop.set() if frame.seq == 3 else None)
    VideoPipeline(source, vision, reporter, snapshots(vision, reporter, PublishConfig())).run(stop)
    assert kept.kinds() == ["new", "end"]
    assert kept.events()[1].reason == "shutdown"


def test_a_failing_inference_still_ends_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    vision, reporter = make_pipeline(tmp_path, kept)
    calls = iter(range(100))
    real = vision.session.invoke

    def invoke() -> None:
        if next(calls) == 3:
            raise BackendError("gone")
        real()

    monkeypatch.setattr(vision.session, "invoke", invoke)
    with pytest.raises(BackendError, match="gone"):
        VideoPipeline(FrameList(frames(10)), vision, reporter, snapshots(vision, reporter, PublishConfig())).run(
            threading.Event()
        )
    assert kept.kinds() == ["new", "end"]


def test_only_zones_leaves_out_what_stands_elsewhere(tmp_path: Path) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(4)), PublishConfig(only_zones=True), zones=(RIGHT,))
    assert kept.kinds() == []
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(4)), PublishConfig(only_zones=True), zones=(LEFT,))
    assert kept.kinds() == ["new", "end"]
    assert kept.events()[0].track.zones == ("left",)


def test_a_closed_gate_saves_the_inference(tmp_path: Path) -> None:
    kept = Kept()
    config: dict[str, Any] = {
        "gate": GateConfig(max_idle_s=100.0, hold_s=0.0),
        "decode": DecodeConfig(labels=("cat",)),
    }
    with pytest.raises((ConfigError, ModelError)):
        run(tmp_path, kept, FrameList(frames(2)), **config)
    blind: dict[str, Any] = {
        "gate": GateConfig(max_idle_s=100.0, hold_s=0.0),
        "decode": DecodeConfig(score_threshold=1.0),
    }
    pipeline = run(tmp_path, kept, FrameList(frames(20)), **blind)
    assert pipeline.metrics.frames == 20
    assert pipeline.metrics.inferences <= 2


def test_one_thing_that_stands_still_costs_two_messages_and_a_look_now_and_then(tmp_path: Path) -> None:
    kept = Kept()
    an_hour = frames(7200, every_s=0.5)
    pipeline = run(tmp_path, kept, FrameList(an_hour), gate=GateConfig(), track=TrackConfig())
    assert [(event.kind, event.reason) for event in kept.events()] == [
        ("new", "appeared"),
        ("update", "stationary"),
        ("end", "ended"),
    ]
    assert pipeline.metrics.inferences < 150
    assert kept.history[0] == ("vedette/porch/front/count/person", b"1")


def test_seen_without_events_reports_nothing(tmp_path: Path) -> None:
    from agent.types import StageTimes

    kept = Kept()
    _, reporter = make_pipeline(tmp_path, kept)
    frame = frames(1)[0]
    reporter.report(frame.seq, frame.captured_at, StreamResult([], None, StageTimes()), "cpu", "full")
    assert kept.puts == []


@pytest.mark.parametrize("decoder", ["regression", "raw"])
def test_numbers_are_measured_and_no_tracks(tmp_path: Path, decoder: str) -> None:
    manifest = f'[output]\ndecoder = "{decoder}"\n'
    (tmp_path / "gauge.tflite").write_bytes(
        constant_model({"reading": np.array([[42.5]], np.float32)}, (1, 8, 8, 3))
    )
    (tmp_path / "gauge.toml").write_text(f"{manifest}[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n")
    config = StreamConfig("test:", str(tmp_path / "gauge.toml"), gate=GateConfig(motion=False))
    vision, kept = VideoPerception("front", config, open_model(config.model)), Kept()
    publish = PublishConfig(detections=True)
    reporter = Reporter(Topics("vedette", "porch"), "front", publish, ModelId("gauge", "0"), kept, kept)
    VideoPipeline(FrameList(frames(5)), vision, reporter, snapshots(vision, reporter, publish)).run(
        threading.Event()
    )
    assert kept.puts == []
    sent = [msgspec.json.decode(body, type=DetectionsMessage) for _, body in kept.sent]
    assert [one.detections[0].values for one in sent] == [(42.5,)] * 5
    values = [body for topic, body in kept.history if topic == "vedette/porch/front/value/value"]
    assert values == ([b"42.5"] if decoder == "regression" else [])


def test_a_text_is_an_event_and_part_of_no_topic(tmp_path: Path) -> None:
    steps = np.eye(4, dtype=np.float32)[[0, 3, 1, 2, 3]][None]
    (tmp_path / "plate.tflite").write_bytes(constant_model({"text": steps}, (1, 8, 8, 3)))
    labels = '[output]\ndecoder = "ctc"\nlabels = ["#", "/", "+"]\n'
    (tmp_path / "plate.toml").write_text(f"{labels}[input]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n")
    config = StreamConfig("test:", str(tmp_path / "plate.toml"), gate=GateConfig(motion=False))
    vision, kept = VideoPerception("front", config, open_model(config.model)), Kept()
    reporter = Reporter(Topics("vedette", "porch"), "front", PublishConfig(), ModelId("plate", "0"), kept, kept)
    VideoPipeline(FrameList(frames(5)), vision, reporter, snapshots(vision, reporter, PublishConfig())).run(
        threading.Event()
    )
    assert [(event.kind, event.track.label) for event in kept.events()] == [("new", "#/+"), ("end", "#/+")]
    assert {topic for topic, _ in kept.history} == {"vedette/porch/front/snapshot"}


def test_a_budget_makes_snapshots_small_unless_they_are_asked_for(tmp_path: Path) -> None:
    kept, noise = Kept(), np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    vision, reporter = make_pipeline(tmp_path, kept)
    source = FrameList([replace(one, pixels=noise) for one in frames(4)])
    pipeline = VideoPipeline(source, vision, reporter, snapshots(vision, reporter, PublishConfig()))
    pipeline.set_budget(StreamBudget(snapshot_quality=40))
    pipeline.parts.request_picture()
    pipeline.run(threading.Event())
    asked, best = (body for topic, body in kept.history if topic.endswith("/snapshot"))
    widths = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in (asked, best)]
    assert [picture.shape[:2] for picture in widths if picture is not None] == [(480, 640), (360, 480)]
    assert len(best) < len(asked) / 3


def test_a_budget_of_samples_is_kept_and_the_newest_is_sent_while_the_source_gives_nothing(
    tmp_path: Path,
) -> None:
    kept, source = Kept(), FrameList(frames(3))
    source.lost = True
    publish = PublishConfig(detections=True)
    vision, reporter = make_pipeline(tmp_path, kept, publish)
    pipeline, stop = (
        VideoPipeline(source, vision, reporter, snapshots(vision, reporter, publish)),
        threading.Event(),
    )
    pipeline.set_budget(StreamBudget(samples_every_s=0.2))
    threading.Timer(1.0, stop.set).start()
    pipeline.run(stop)
    assert [msgspec.json.decode(body)["seq"] for _, body in kept.sent] == [0, 2]


ACROSS = LineConfig("across", ((0.0, 0.5), (1.0, 0.5)))


def snapshot(folder: Path, size: tuple[int, int] = (480, 640), **publish: Any) -> Image:
    kept, white = Kept(), np.full((*size, 3), 255, np.uint8)
    source = FrameList([replace(one, pixels=white.copy()) for one in frames(4)])
    places = {"zones": (LEFT,), "lines": (ACROSS,)}
    run(folder, kept, source, PublishConfig(snapshot_every_s=60.0, **publish), **places)
    encoded = np.frombuffer(kept.retained["vedette/porch/front/snapshot"], np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def ink(picture: Image) -> int:
    """Number of pixels that are not white."""
    return int(np.count_nonzero(picture.min(axis=2) < 200))


def test_a_clean_snapshot_shows_the_picture_alone(tmp_path: Path) -> None:
    assert ink(snapshot(tmp_path, snapshot_boxes=False)) == 0
    assert ink(snapshot(tmp_path)) > 0


def test_a_snapshot_shows_zones_and_lines_if_asked_to(tmp_path: Path) -> None:
    plain, with_places = snapshot(tmp_path), snapshot(tmp_path, snapshot_zones=True)
    assert ink(plain[236:244, 400:]) == 0
    assert ink(with_places[236:244, 400:]) > 0
    assert ink(with_places) > ink(plain)


def test_a_cropped_snapshot_shows_the_object_and_little_else(tmp_path: Path) -> None:
    # Of 640×480, the person is 160×240 pixels, with 0.15 × 240 on each side.
    assert snapshot(tmp_path, snapshot_crop=True).shape[:2] == (312, 232)


def test_a_snapshot_shows_its_time_if_asked_to(tmp_path: Path) -> None:
    timed = snapshot(tmp_path, snapshot_boxes=False, snapshot_time=True)
    assert ink(timed[:40]) > 0
    assert ink(timed[80:]) == 0


def test_the_time_covers_nothing_of_a_small_cropped_snapshot_and_is_whole(tmp_path: Path) -> None:
    # Of 160×120, the person is 40×60 pixels: the part alone would be narrower than the time.
    crop, size = {"snapshot_crop": True, "snapshot_quality": 100}, (120, 160)
    alone, timed = snapshot(tmp_path, size, **crop), snapshot(tmp_path, size, **crop, snapshot_time=True)
    wide, bar = title_width("2026-11-30 00:00:00"), timed.shape[0] - alone.shape[0]
    assert alone.shape[1] < wide == timed.shape[1]
    assert ink(timed[:bar]) > 0.6 * wide * bar
    assert ink(timed[bar:]) == pytest.approx(ink(alone), rel=0.1), "the box and its label, all of them"


def test_the_label_of_a_small_object_is_whole_in_a_cropped_snapshot() -> None:
    at, picture = datetime(2026, 11, 30, tzinfo=UTC), np.full((360, 640, 3), 255, np.uint8)
    for box in ((0.5, 0.5, 0.52, 0.55), (0.97, 0.0, 1.0, 0.05), (0.0, 0.9, 0.02, 1.0)):
        small = Track("1", "delivery van", 0.87, 0.87, 3, at, at, box)
        marked, place = annotate(picture, [small], order="bgr"), label_place(picture, small)
        assert ink(cropped(marked, [box], [place])) == ink(marked)


def test_a_snapshot_has_the_quality_that_is_asked_for(tmp_path: Path) -> None:
    sizes = []
    for quality in (30, 80, 95):
        kept, noise = Kept(), np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
        source = FrameList([replace(one, pixels=noise.copy()) for one in frames(4)])
        run(tmp_path, kept, source, PublishConfig(snapshot_quality=quality))
        sizes.append(len(kept.retained["vedette/porch/front/snapshot"]))
    assert sizes == sorted(sizes)
    assert sizes[2] > 1.5 * sizes[1] > 3 * sizes[0] / 2


@pytest.mark.parametrize(
    ("one", "kinds"),
    [
        (FilterConfig(("person",), max_area=0.1), []),
        (FilterConfig(("person",), min_area=0.1), ["new", "end"]),
        (FilterConfig(start_score=0.95), []),
        (FilterConfig(masks=(((0.0, 0.7), (0.5, 0.7), (0.5, 0.9), (0.0, 0.9)),)), []),
        (FilterConfig(masks=(((0.0, 0.2), (0.5, 0.2), (0.5, 0.7), (0.0, 0.7)),)), ["new", "end"]),
    ],
)
def test_what_a_filter_stops_gives_no_events(tmp_path: Path, one: FilterConfig, kinds: list[str]) -> None:
    kept = Kept()
    run(tmp_path, kept, FrameList(frames(5)), filters=(one,))
    assert kept.kinds() == kinds


def test_what_a_filter_stops_is_no_detection(tmp_path: Path) -> None:
    kept = Kept()
    run(
        tmp_path,
        kept,
        FrameList(frames(2)),
        PublishConfig(detections=True),
        filters=(FilterConfig(max_area=0.1),),
    )
    sent = [msgspec.json.decode(body, type=DetectionsMessage) for _, body in kept.sent]
    assert [message.detections for message in sent] == [[], []]


def test_a_filter_may_let_a_weaker_detection_pass_than_the_stream(tmp_path: Path) -> None:
    strict: dict[str, Any] = {"decode": DecodeConfig(score_threshold=0.99)}
    for filters, kinds in (((), []), ((FilterConfig(("person",), 0.3),), ["new", "end"])):
        kept = Kept()
        run(tmp_path, kept, FrameList(frames(5)), filters=filters, **strict)
        assert kept.kinds() == kinds


def test_a_snapshot_writes_nothing_into_a_picture_that_others_have(tmp_path: Path) -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    shared = [replace(one, pixels=white, shared=True) for one in frames(4)]
    publish = PublishConfig(snapshot_boxes=False, snapshot_crop=True, snapshot_time=True, snapshot_zones=True)
    run(tmp_path, Kept(), FrameList(shared), publish, zones=(LEFT,), lines=(ACROSS,))
    plain = PublishConfig(snapshot_boxes=False, snapshot_time=True)
    run(tmp_path, Kept(), FrameList(shared), plain)
    assert white.min() == 255


def test_a_snapshot_is_made_before_the_clips_may_give_the_frame_back(tmp_path: Path) -> None:
    """A camera reads its next picture, without masks, into the memory of a frame that was given back."""

    class Clips(StreamPart):
        def process(self, item: Any, result: StreamResult) -> None:
            item.keep()
            item.release()  # it was encoded at once

    class Camera(FrameList):
        def give_back(self, frame: Frame) -> None:
            frame.image[:] = 255

    kept, given = Kept(), frames(4)
    own = [replace(frame, pixels=np.zeros((240, 320, 3), np.uint8)) for frame in given]
    vision, reporter = make_pipeline(tmp_path, kept)
    VideoPipeline(Camera(own), vision, reporter, snapshots(vision, reporter, PublishConfig(), clips=Clips())).run(
        threading.Event()
    )
    jpeg = kept.retained["vedette/porch/front/snapshot"]
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shown is not None
    assert shown[:20, :20].max() < 8


@pytest.mark.parametrize(
    ("config", "exact"),
    [
        ({}, False),
        ({"crop": (0.0, 0.0, 0.5, 1.0)}, True),
        ({"gate": GateConfig(crop=True)}, True),
        ({"privacy": (PrivacyMask("door", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0))),)}, True),
    ],
)
def test_pictures_must_be_exact_where_parts_of_them_are_looked_at(
    tmp_path: Path, config: dict[str, Any], exact: bool
) -> None:
    kept = Kept()
    vision, reporter = make_pipeline(tmp_path, kept, **config)
    pipeline, demands = (
        VideoPipeline(FrameList(frames(3)), vision, reporter, snapshots(vision, reporter, PublishConfig())),
        list[Demand](),
    )
    pipeline.on_demand = demands.append
    pipeline.run(threading.Event())
    assert {demand.exact for demand in demands} == {exact}
