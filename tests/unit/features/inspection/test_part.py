"""Parts from trigger to verdict: real pictures through a real model, with pins that record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("flatbuffers", reason="models are written with flatbuffers")

from agent.comms.messages import InspectionMessage, ModelId, PartVerdict, VerdictMessage
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.vision import VideoPerception
from agent.config import Config, DecodeConfig, PublishConfig, StreamConfig
from agent.config.features import InspectionConfig
from agent.daemon.check_device import device_problems
from agent.daemon.parts import Parts
from agent.daemon.streams.pipeline import VideoPipeline
from agent.errors import CommandError, StorageError
from agent.features.inspection import part, triggers
from agent.features.inspection.part import InspectionPart
from agent.features.inspection.triggers import CounterFile, Inspection
from agent.models.library import open_model
from agent.types import Frame, Lease
from tests.support.belt import belt
from tests.support.doubles import Kept
from tests.support.picture_models import classifier, picture
from tests.support.publishing import wait_for

S = 1_000_000_000


class Pin:
    """A reject output that records when it is switched."""

    def __init__(self) -> None:
        self.switched: list[tuple[bool, float]] = []
        self.is_closed = False

    def set(self, *, active: bool) -> None:
        self.switched.append((active, time.monotonic()))

    def close(self) -> None:
        self.is_closed = True

    @property
    def pulses(self) -> int:
        return sum(active for active, _ in self.switched)


class Line:
    """A source whose frames a test gives one by one, and which triggers in between."""

    def __init__(self, steps: Sequence[str | Callable[[], object]]) -> None:
        self._steps, self.lost, self.given_back, self._seq = list(steps), False, 0, 0

    @property
    def ended(self) -> bool:
        return not self._steps

    def take(self, timeout_s: float) -> Frame | None:
        step = self._steps.pop(0)
        if callable(step):
            step()
            return None
        self._seq += 1
        now = time.monotonic_ns()
        frame = Frame(picture(step), "line", self._seq, now, datetime.now(UTC), "bgr", now)
        return replace(frame, lease=Lease(lambda: self.give_back(frame)))

    def give_back(self, frame: Frame) -> None:
        self.given_back += 1


def inspecting(
    source: Any, vision: Any, reporter: Any, inspection: Inspection, publish: PublishConfig
) -> VideoPipeline:
    parts = Parts()
    parts.attach("inspection", InspectionPart(inspection, vision, reporter, publish))
    return VideoPipeline(source, vision, reporter, parts)


class Station:
    """An inspected stream with a model that tells red, the defect, from green, a good part, and blue."""

    def __init__(self, folder: Path, pin: Pin | None = None, **keys: Any) -> None:
        self.folder, self.kept, self.pin = folder, Kept(), pin
        file = folder / "colours.tflite"
        file.write_bytes(classifier())
        table = {"trigger": "command", "ok_labels": ("green",), "ng_labels": ("red",), "debounce_s": 0.0, **keys}
        config = InspectionConfig(**table)
        stream = StreamConfig(
            source="test:", model=str(file), inspection=config, decode=DecodeConfig(score_threshold=0.35)
        )
        self.vision = VideoPerception("line", stream, open_model(stream.model))
        self.reporter = Reporter(
            Topics("vedette", "press"), "line", PublishConfig(), ModelId("colours", "0"), self.kept, self.kept
        )
        self.inspection = Inspection("line", config, folder, folder / "clips", pin)
        self.inspection.close_s = 20.0

    def run(self, *steps: str | Callable[[], object], stop: threading.Event | None = None) -> Line:
        source = Line(steps)
        pipeline = inspecting(source, self.vision, self.reporter, self.inspection, PublishConfig())
        self.metrics = pipeline.metrics
        pipeline.run(stop or threading.Event())
        self.inspection.close()
        return source

    def announce(self, part: str = "") -> Callable[[], object]:
        return lambda: self.inspection.trigger(part)

    @property
    def verdicts(self) -> list[VerdictMessage]:
        return [
            msgspec.json.decode(body, type=VerdictMessage)
            for topic, body in self.kept.puts
            if topic == "vedette/press/line/verdicts"
        ]

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(one.verdict, one.reason) for one in self.verdicts]

    @property
    def counters(self) -> InspectionMessage:
        return msgspec.json.decode(self.kept.retained["vedette/press/line/inspection"], type=InspectionMessage)

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.folder / "clips" / "line").glob("*.jpg"))


def test_announced_parts_get_a_verdict_each_and_other_pictures_none(tmp_path: Path) -> None:
    line = Station(tmp_path)
    source = line.run(
        *("blue", "blue", line.announce("A-1"), "green", "blue", line.announce("A-2"), "red", "blue")
    )
    assert [(one.part, one.verdict) for one in line.verdicts] == [("A-1", "ok"), ("A-2", "ng")]
    assert line.verdicts[1].reason == "red"
    assert line.verdicts[1].score > 0.6
    assert line.verdicts[1].judged_ms > 0
    assert line.verdicts[1].detections[0].label == "red"
    assert source.given_back == 6
    assert line.metrics.inferences == 3  # the first picture warms the model up


def test_every_picture_is_a_part(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every")
    line.run("green", "red", "blue")
    assert line.told == [("ok", "good"), ("ng", "red"), ("unsure", "not found")]
    names = [one.part for one in line.verdicts]
    assert len(set(names)) == 3
    assert all(name.startswith("line-") for name in names)


def test_counters_tell_verdicts_and_reasons_and_the_newest(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every")
    line.run("green", "red", "blue", "red", "green")
    counters = line.counters
    assert (counters.parts, counters.ok, counters.ng, counters.unsure) == (5, 2, 2, 1)
    assert (counters.reasons, counters.last) == ({"red": 2, "not found": 1}, "ok")


def test_several_pictures_are_joined(tmp_path: Path) -> None:
    line = Station(tmp_path, views=3)
    line.run(
        *(line.announce(), "green", "green", "green"),
        *(line.announce(), "green", "red"),
        *(line.announce(), "green", "blue", "green"),
    )
    assert line.told == [("ok", "good"), ("ng", "red"), ("unsure", "not found")]
    assert [one.views for one in line.verdicts] == [3, 2, 3]


def test_two_parts_in_one_window_leave_the_first_unsure(tmp_path: Path) -> None:
    line = Station(tmp_path, views=2)
    line.run(line.announce("a"), "green", line.announce("b"), "green", "green")
    assert [(one.part, one.verdict, one.reason) for one in line.verdicts] == [
        ("a", "unsure", "overtaken"),
        ("b", "ok", "good"),
    ]


def test_a_part_without_a_picture_is_unsure_at_its_deadline(tmp_path: Path) -> None:
    line = Station(tmp_path, deadline_s=0.05)
    line.run(line.announce(), lambda: time.sleep(0.06), lambda: None)
    assert line.told == [("unsure", "no picture")]
    assert line.verdicts[0].judged_ms >= 50
    assert line.verdicts[0].picture == ""


def test_a_lost_camera_leaves_parts_unsure_at_once(tmp_path: Path) -> None:
    line = Station(tmp_path)
    source = Line(["green", line.announce(), lambda: setattr(source, "lost", True), lambda: None])
    pipeline = inspecting(source, line.vision, line.reporter, line.inspection, PublishConfig())
    pipeline.run(threading.Event())
    assert line.told == [("unsure", "stall")]


def test_a_stop_leaves_parts_unsure(tmp_path: Path) -> None:
    line, stop = Station(tmp_path), threading.Event()
    line.run("green", line.announce("a"), line.announce("b"), stop.set, "green", stop=stop)
    assert [(one.part, one.reason) for one in line.verdicts] == [("a", "shutdown"), ("b", "shutdown")]
    with pytest.raises(CommandError, match="being stopped"):
        line.inspection.trigger("c")


def test_a_bouncing_trigger_is_one_part(tmp_path: Path) -> None:
    line = Station(tmp_path, debounce_s=5.0)
    assert line.inspection.trigger("a") == "a"
    with pytest.raises(CommandError, match="debounce_s"):
        line.inspection.trigger("b")
    line.run("green")
    assert [one.part for one in line.verdicts] == ["a"]


def test_the_picture_of_a_part_that_is_not_ok_is_kept_and_shown(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every")
    line.run("green", "red", "blue")
    assert [Path(one.picture).name for one in line.verdicts if one.picture] == [one.name for one in line.pictures]
    assert [one.name.split("Z-")[1].split("-")[0] for one in line.pictures] == ["ng", "unsure"]
    shown = cv2.imread(str(line.pictures[0]))
    assert shown is not None
    assert np.abs(shown.mean((0, 1)) - picture("red").mean((0, 1))).max() < 6
    assert line.kept.retained["vedette/press/line/snapshot"].startswith(b"\xff\xd8")


def test_of_several_pictures_the_one_with_the_defect_is_kept(tmp_path: Path) -> None:
    line = Station(tmp_path, views=3)
    line.run(line.announce(), "green", "blue", "red")
    (kept,) = line.pictures
    shown = cv2.imread(str(kept))
    assert shown is not None
    assert shown[:, :, 2].mean() > shown[:, :, 0].mean() + 50


def test_no_pictures_are_kept_without_room_for_them(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every", keep_bytes=0)
    line.run("red")
    assert (line.pictures, line.verdicts[0].picture) == ([], "")


def test_sound_parts_are_kept_as_well_where_a_model_is_to_learn_from_them(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every", keep_ok=True, crop=(0.25, 0.0, 0.75, 0.5))
    line.run("green", "red")
    # Both may be of one millisecond, the unit of time in their names.
    assert sorted(one.name.split("Z-")[1].split("-")[0] for one in line.pictures) == ["ng", "ok"]
    shown = cv2.imread(str(line.pictures[0]))
    assert shown is not None
    assert shown.shape == (24, 32, 3)  # what the model was shown
    assert {one.picture for one in line.verdicts} == {str(one) for one in line.pictures}


def test_counters_go_on_after_a_restart(tmp_path: Path) -> None:
    Station(tmp_path, trigger="every").run("green", "red")
    line = Station(tmp_path, trigger="every")
    line.run("green")
    assert (line.counters.ok, line.counters.ng) == (2, 1)


def test_damaged_counters_begin_anew_and_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "inspection-line.json").write_text("{")
    line = Station(tmp_path, trigger="every")
    line.run("green")
    assert line.counters.ok == 1
    assert (tmp_path / "inspection-line.json.damaged").read_text() == "{"


def verdict(part: str = "a", kind: Any = "ng", *, rejected: bool = True) -> PartVerdict:
    return PartVerdict(part, kind, "red", 0.9, 1, datetime.now(UTC), (), rejected)


def test_counters_are_written_now_and_then_and_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = CounterFile(tmp_path / "gone", "line")
    counters.add(verdict())
    due = [counters.is_due]
    monkeypatch.setattr(triggers, "_WRITE_S", 0.0)
    due.append(counters.is_due)
    with pytest.raises(StorageError):
        counters.write()
    due.append(counters.is_due)
    (tmp_path / "gone").mkdir()
    counters.write()
    due.append(counters.is_due)
    assert due == [False, True, True, False]
    assert CounterFile(tmp_path / "gone", "line").counters.ng == 1


def test_a_disk_that_refuses_pictures_keeps_no_counter_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("a file")
    line = Station(tmp_path, trigger="every")
    line.run("red", "red")
    assert "clips" in line.inspection.store.trouble
    assert CounterFile(tmp_path, "line").counters.ng == 2


def test_verdicts_say_if_the_part_was_rejected(tmp_path: Path) -> None:
    pin = Pin()
    line = Station(tmp_path, pin, trigger="every", reject_pulse_s=0.01)
    line.run("green", "red", "blue")
    assert [one.rejected for one in line.verdicts] == [False, True, True]
    assert line.counters.rejected == 2
    assert pin.pulses >= 1
    assert pin.is_closed


def test_without_an_output_nothing_is_rejected(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every")
    line.run("red")
    assert not line.verdicts[0].rejected


def test_pins_trigger_and_reject(tmp_path: Path) -> None:
    gpiozero = pytest.importorskip("gpiozero", reason="pins need gpiozero")
    from gpiozero.pins.mock import MockFactory

    before, gpiozero.Device.pin_factory = gpiozero.Device.pin_factory, MockFactory()
    board = gpiozero.Device.pin_factory
    try:
        line = Station(tmp_path, trigger="gpio:17", reject="gpio:22", reject_pulse_s=0.3)

        def comes() -> None:
            board.pin(17).drive_high()
            board.pin(17).drive_low()

        line.run("green", comes, "red", lambda: wait_for(lambda: board.pin(22).state), "green", comes, "green")
        assert line.told == [("ng", "red"), ("ok", "good")]
        assert not board.pin(22).state
    finally:
        board.reset()
        gpiozero.Device.pin_factory = before


def test_a_part_that_crosses_the_region_is_judged_when_it_is_there(tmp_path: Path) -> None:
    line = Station(
        tmp_path, trigger="region", region=(0.45, 0.3, 0.55, 0.7), ok_labels=(), ng_labels=("nothing",)
    )
    pictures = [belt([]), *(belt([centre]) for centre in np.linspace(-0.3, 1.3, 30)), belt([])]

    class Belt(Line):
        def take(self, timeout_s: float) -> Frame | None:
            self._seq, now = self._seq + 1, time.monotonic_ns()
            self._steps.pop(0)
            return Frame(pictures[self._seq - 1], "line", self._seq, now, datetime.now(UTC), "bgr", now)

    pipeline = inspecting(
        Belt(["green"] * len(pictures)), line.vision, line.reporter, line.inspection, PublishConfig()
    )
    pipeline.run(threading.Event())
    line.inspection.close()
    assert line.told == [("ok", "good")]
    assert pipeline.metrics.inferences == 2  # one to warm up


def test_equal_ids_are_parts_of_their_own(tmp_path: Path) -> None:
    pin = Pin()
    line = Station(tmp_path, pin, reject_pulse_s=0.02)
    line.run(line.announce("LOT7"), "red", line.announce("LOT7"), "green", line.announce("LOT7"), "red")
    assert [(one.part, one.verdict, one.rejected) for one in line.verdicts] == [
        ("LOT7", "ng", True),
        ("LOT7", "ok", False),
        ("LOT7", "ng", True),
    ]


def test_pictures_that_are_parts_and_come_too_fast_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = Station(tmp_path, trigger="every")
    source = Line(["green"] * 4)
    take = source.take

    def dropping(timeout_s: float) -> Frame | None:
        source._seq += 3
        return take(timeout_s)

    source.take = dropping  # type: ignore[method-assign]
    inspecting(source, line.vision, line.reporter, line.inspection, PublishConfig()).run(threading.Event())
    assert sum("faster than they are judged" in one.message for one in caplog.records) == 1


def test_a_threshold_above_the_score_of_a_defect_hides_none(tmp_path: Path) -> None:
    line = Station(tmp_path, trigger="every")
    config = StreamConfig(
        "test:", "x", inspection=line.inspection.config, decode=DecodeConfig(score_threshold=0.99)
    )
    line.vision.configure(config)
    line.run("red")
    assert line.told == [("ng", "red")]


@pytest.mark.parametrize("crop", [(0.0, 0.0, 0.05, 0.05), (0.95, 0.95, 1.0, 1.0), (0.0, 0.95, 1.0, 1.0)])
def test_the_smallest_crop_of_the_smallest_picture_has_a_pixel(crop: Any) -> None:
    for height, width in ((1, 1), (1, 30), (48, 64)):
        found = part._cropped(np.zeros((height, width, 3), np.uint8), crop)
        assert min(found.shape) >= 1


def test_a_pin_belongs_to_one_stream() -> None:
    def stream(**keys: Any) -> StreamConfig:
        return StreamConfig("test:", "nanodet", inspection=InspectionConfig(**keys))

    streams = {"one": stream(trigger="gpio:17", reject="gpio:22"), "two": stream(reject="gpio:22")}
    (problem,) = [one for one in device_problems(Config(streams)) if "gpio" in str(one)]
    assert str(problem) == "gpio:22: stream one uses it already"
    assert getattr(problem, "keys", ()) == ("streams", "two", "inspection", "reject")
