from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.comms.messages import ModelId
from agent.comms.reporter import Reporter
from agent.comms.topics import Topics
from agent.compute.vision import VideoPerception
from agent.config import GateConfig, PublishConfig, StreamConfig, TrackConfig, ZoneConfig
from agent.config.features import ConditionConfig
from agent.daemon.parts import Parts, StreamContext
from agent.daemon.streams.pipeline import VideoPipeline
from agent.daemon.streams.services import StreamServices
from agent.features import is_watched
from agent.features.condition.part import FOLDER, StreamCondition, open_part
from agent.models.library import open_model
from agent.types import Event, Frame, Image, Track
from tests.support.doubles import FrameList, Kept, person_model, snapshots
from tests.support.staged_camera import StagedCamera

BEGAN = datetime(2026, 11, 28, 12, tzinfo=UTC)
EVERYWHERE = ZoneConfig("drive", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
NARROW = ZoneConfig("drive", ((0.4, 0.0), (1.0, 0.0), (1.0, 1.0), (0.4, 1.0)))


def config(folder: Path, source: str = "v4l2:/dev/video0", **fields: Any) -> StreamConfig:
    return StreamConfig(source, str(person_model(folder)), track=TrackConfig(min_hits=1), **fields)


def context(config: StreamConfig, vision: VideoPerception, reporter: Reporter, state: Path) -> StreamContext:
    kept = Kept()
    services = StreamServices(Topics("vedette", "porch"), kept, kept)
    return StreamContext("front", config, vision, reporter, services, state)


class Runs:
    """Runs of one camera that sees a person, one after the other, each with what the last has kept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.camera, self.kept = folder, StagedCamera(), Kept()
        self._at_s = 0.0

    def run(self, config: StreamConfig, *views: tuple[int, Image]) -> tuple[str, ...]:
        """Show views for so many seconds each, one picture a second; return the problems at the end."""
        vision = VideoPerception("front", config, open_model(config.model))
        publish = config.publish
        reporter = Reporter(Topics("vedette", "porch"), "front", publish, ModelId("", ""), self.kept, self.kept)
        condition = open_part(context(config, vision, reporter, self.folder), Parts())
        assert condition is not None
        parts = snapshots(vision, reporter, publish, condition=condition)
        VideoPipeline(FrameList(self._frames(views)), vision, reporter, parts).run(threading.Event())
        problems = condition.problems
        parts.close()
        for thread in threading.enumerate():
            if thread.name == "condition-front":
                thread.join()
        return problems

    def _frames(self, views: tuple[tuple[int, Image], ...]) -> Iterator[Frame]:
        for seconds, view in views:
            for _ in range(seconds):
                self._at_s += 1.0
                picture = self.camera.picture(view)
                at = BEGAN + timedelta(seconds=self._at_s)
                yield Frame(picture, "front", 0, round(self._at_s * 1e9), at)

    @property
    def stored(self) -> Path:
        return self.folder / FOLDER / "front.json"


def test_cameras_and_microphones_are_watched_and_files_are_not(tmp_path: Path) -> None:
    assert is_watched(config(tmp_path))
    assert is_watched(config(tmp_path, "rtsp://camera.local/one"))
    assert is_watched(config(tmp_path, "mic:default"))
    assert not is_watched(config(tmp_path, "file:clip.mp4"))
    assert not is_watched(config(tmp_path, "test:"))
    assert is_watched(config(tmp_path, "test:", condition=ConditionConfig(enabled=True)))
    assert not is_watched(config(tmp_path, condition=ConditionConfig(enabled=False)))


def test_a_track_that_lives_while_the_camera_moves_leaves_its_zone_and_ends(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    usual, moved = runs.camera.view(), runs.camera.view(0.15)
    assert runs.run(
        config(tmp_path, zones=(EVERYWHERE,), publish=PublishConfig(only_zones=True)), (40, usual), (40, moved)
    ) == ("moved",)
    new, left, *_, end = runs.kept.events()
    assert (new.kind, new.track.zones) == ("new", ("drive",))
    assert (left.kind, left.reason, left.track.zones) == ("update", "stationary", ("drive",))
    assert (end.kind, end.track.zones) == ("end", ())
    assert len({event.track.id for event in runs.kept.events()}) == 1
    assert runs.kept.retained["vedette/porch/front/zone/drive/count/person"] == b"0"


def test_only_zones_are_silent_while_the_camera_is_out_of_place_also_after_a_restart(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    usual, moved = runs.camera.view(), runs.camera.view(0.15)
    watched = config(tmp_path, zones=(EVERYWHERE,), publish=PublishConfig(only_zones=True))
    runs.run(watched, (40, usual), (40, moved))
    before = len(runs.kept.events())
    assert runs.run(watched, (30, moved)) == ("moved",)
    assert runs.kept.events()[before:] == []
    assert runs.run(watched, (30, usual)) == ()
    assert runs.kept.events()[-1].track.zones == ("drive",)


def test_zones_that_were_drawn_anew_are_used(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    usual, moved = runs.camera.view(), runs.camera.view(0.15)
    runs.run(config(tmp_path, zones=(EVERYWHERE,)), (40, usual), (40, moved))
    assert runs.run(config(tmp_path, zones=(NARROW,)), (60, moved)) == ()


def test_another_source_is_learned_anew(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.run(config(tmp_path), (40, runs.camera.view()))
    assert runs.stored.is_file()
    assert runs.run(config(tmp_path, "v4l2:/dev/video2"), (60, runs.camera.view(0.15))) == ()


def test_a_gate_that_is_off_changes_nothing(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert runs.run(
        config(tmp_path, gate=GateConfig(motion=False)), (40, runs.camera.view()), (30, runs.camera.view(0.15))
    ) == ("moved",)


def test_a_damaged_file_is_learned_anew_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = Runs(tmp_path)
    runs.stored.parent.mkdir()
    runs.stored.write_text('{"looks": [{"field": "AA=="}]}')
    with caplog.at_level(logging.WARNING):
        assert runs.run(config(tmp_path), (40, runs.camera.view())) == ()
    assert [str(runs.stored) in message for message in caplog.messages] == [True]


def test_what_was_learned_is_small(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.run(config(tmp_path), (40, runs.camera.view()))
    assert runs.stored.stat().st_size < 40_000


def test_a_model_that_gives_one_answer_to_everything_is_told(tmp_path: Path) -> None:
    from tests.support.tflite_builder import constant_model

    outputs = {"scores": np.full((1, 100), 0.01, np.float32)}
    (tmp_path / "stuck.tflite").write_bytes(constant_model(outputs, (1, 32, 32, 3)))
    labels = ", ".join(f'"l{number}"' for number in range(100))
    (tmp_path / "stuck.toml").write_text(f'[output]\ndecoder = "classify"\nlabels = [{labels}]\n')
    runs = Runs(tmp_path)
    stuck = StreamConfig("v4l2:/dev/video0", str(tmp_path / "stuck.toml"), gate=GateConfig(motion=False))
    passing = [(1, StagedCamera(seed % 5).view(0.01 * seed)) for seed in range(50)]
    assert "constant" in runs.run(stuck, *passing)


def test_drift_of_the_answers_is_told_and_kept_over_a_restart(tmp_path: Path) -> None:
    kept, watched = Kept(), config(tmp_path)
    reporter = Reporter(Topics("vedette", "porch"), "front", watched.publish, ModelId("", ""), kept, kept)
    vision = VideoPerception("front", watched, open_model(watched.model))

    def days(condition: StreamCondition, first: int, *scores: float) -> None:
        for day, score in enumerate(scores, first):
            track = Track("t", "person", score, score, 3, BEGAN, BEGAN)
            condition.observe([Event("end", track, "lost")] * 30)
            condition.poll(day * 86_400 * 10**9, BEGAN + timedelta(days=day))

    def opened() -> StreamCondition:
        found = open_part(context(watched, vision, reporter, tmp_path), Parts())
        assert found is not None
        return found

    before = opened()
    days(before, 0, *[0.7, 0.71] * 5, *[0.5] * 4)
    assert before.trouble == "the model's answers have changed (scores 0.50 instead of 0.71)"
    before.close()
    after = opened()
    days(after, 0, 0.5)
    assert after.trouble.startswith("the model's answers have changed")
    after.accept()
    days(after, 1, 0.5)
    assert after.trouble == ""
    after.close()
    vision.close()
