"""A single stream: real modules, a constant model, and sinks that record."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from agent.comms.topics import Topics
from agent.compute.infer import tensors, vetting
from agent.compute.infer.vetting import Vetting
from agent.compute.vision import VideoPerception
from agent.config import (
    CaptureConfig,
    ClipsConfig,
    DecodeConfig,
    GateConfig,
    SelectionConfig,
    StorageConfig,
    StreamConfig,
    TrackConfig,
    ZoneConfig,
)
from agent.config.features import InspectionConfig
from agent.daemon.autoselect import AutoBackend, VettingRecord
from agent.daemon.overrides import settings_of
from agent.daemon.streams import perception
from agent.daemon.streams.services import StreamServices
from agent.daemon.streams.stream import Stream
from agent.errors import BackendError, ModelError, SourceError
from agent.models import library
from agent.models.findings import findings_of
from agent.storage.clips.recorder import Recorder
from agent.types import Clip, Frame, StreamResult
from tests.support.doubles import Kept, person_model
from tests.support.mosquitto import free_port
from tests.support.picture_models import classifier
from tests.support.publishing import wait_for
from tests.support.sizes import LEFT, RIGHT, sizes_model
from tests.support.tflite_builder import Op, T, crashing_model, write

_WALK = "test:?size=64x48&fps=50"


def stream(
    folder: Path, kept: Kept, source: str = _WALK, restart_s: tuple[float, float] = (0.3, 60.0), **fields: Any
) -> Stream:
    fields = {"model": str(person_model(folder)), "track": TrackConfig(min_hits=2), **fields}
    services = StreamServices(
        Topics("vedette", "porch"), kept, kept, restart_first_s=restart_s[0], restart_last_s=restart_s[1]
    )
    return Stream("front", StreamConfig(source=source, **fields), services)


@contextmanager
def running(made: Stream) -> Iterator[Stream]:
    made.prepare()
    made.start()
    try:
        yield made
    finally:
        made.ask_to_stop()
        assert made.join(60.0)


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Errors that the next frames of any stream meet, one each."""
    errors: list[Exception] = []
    real = VideoPerception.process

    def look(self: VideoPerception, frame: Frame) -> StreamResult:
        if errors and self.tracker.alive:
            raise errors.pop(0)
        return real(self, frame)

    monkeypatch.setattr(VideoPerception, "process", look)
    return errors


def test_a_clip_runs_to_its_end(tmp_path: Path) -> None:
    kept = Kept()
    with running(stream(tmp_path, kept, f"{_WALK}&frames=20&pace=fast")) as made:
        wait_for(lambda: made.finished)
    assert (made.status, made.metrics.frames, made.has_result) == (("ended", ""), 20, True)
    assert kept.kinds() == ["new", "end"]
    assert kept.retained["vedette/porch/front/count/person"] == b"0"


@contextmanager
def without_collector() -> Iterator[None]:
    """Nothing is freed that still refers to itself in a circle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interpreter(session: Any) -> Any:
    """Return the interpreter of a stream that shares its session with nobody."""
    pool = session._session._pool
    shared = pool.take()
    pool.give_back(shared)
    return shared._interpreter


def large_parts(made: Stream) -> dict[str, weakref.ref[Any]]:
    """Return the large objects of a stream that runs."""
    assert made._perception is not None
    assert made.parts.get("clips") is not None
    session = made._perception.session
    parts = {
        "model": made.model,
        "session": session,
        "interpreter": interpreter(session),
        "gate and buffers": made._perception,
        "pipeline": made.run.pipeline,
        "clips": made.parts.get("clips"),
        "footage": made.parts.get("clips")._ring,
    }
    return {name: weakref.ref(part) for name, part in parts.items()}


def alive(parts: dict[str, weakref.ref[Any]]) -> list[str]:
    return [name for name, part in parts.items() if part() is not None]


def run_and_record(made: Stream, kept: Kept, saved: list[Clip]) -> dict[str, weakref.ref[Any]]:
    """Run a stream that records a clip, and stop it. Return its large objects; only the model is still alive."""
    with running(made):
        wait_for(lambda: "new" in kept.kinds() and made.parts.get("clips") is not None)
        made.parts.get("clips").record(1.0)
        parts = large_parts(made)
        assert alive(parts) == list(parts)
    wait_for(lambda: saved)
    wait_for(lambda: alive(parts) == ["model"])
    assert (made.has_result, made.metrics.frames > 0, made.health().frames > 0) == (True, True, True)
    return parts


def test_a_stream_that_has_stopped_frees_what_is_large_at_once(tmp_path: Path) -> None:
    kept, saved = Kept(), list[Clip]()
    recorder = Recorder(tmp_path / "clips", StorageConfig(clips_keep_free_bytes=0), saved.append)
    chooser = AutoBackend(SelectionConfig(after_s=3600.0), tmp_path)
    config = StreamConfig(
        source=_WALK, model=str(person_model(tmp_path)), track=TrackConfig(min_hits=2), clips=ClipsConfig()
    )
    services = StreamServices(
        Topics("vedette", "porch"), kept, kept, chooser.open, lambda _: SimpleNamespace(recorder=recorder)
    )
    with without_collector():
        parts = run_and_record(Stream("front", config, services), kept, saved)
        wait_for(lambda: not alive(parts))
    chooser.close()
    recorder.close(5.0)


def test_a_stream_that_breaks_and_starts_again_frees_what_it_had(tmp_path: Path, breaks: list[Exception]) -> None:
    kept = Kept()
    with without_collector(), running(stream(tmp_path, kept)) as made:
        wait_for(lambda: made.has_result)
        assert made._perception is not None
        first = weakref.ref(made._perception.session)
        breaks.append(BackendError("it has broken"))
        wait_for(lambda: made.state == "failed")
        wait_for(lambda: first() is None)
        wait_for(lambda: made.state == "running" and made.has_result)


def test_a_model_that_is_still_being_tried_is_opened_by_the_streams_own_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 0.0)
    made = stream(tmp_path, Kept(), model=str(person_model(tmp_path, score=0.91)))
    made.prepare()
    assert made.status[0] == "starting"
    made.start()
    wait_for(lambda: made.has_result)
    made.ask_to_stop()
    assert made.join(60.0)


def test_one_that_crashes_the_runtime_then_fails_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 0.0)
    monkeypatch.setattr(vetting, "KNOWN", {})
    (tmp_path / "bad.tflite").write_bytes(crashing_model())
    (tmp_path / "bad.toml").write_text('name = "bad"\n[output]\ndecoder = "classify"\n')
    made = stream(tmp_path, Kept(), model=str(tmp_path / "bad.toml"))
    with running(made):
        wait_for(lambda: made.finished)
        assert made.state == "failed"
        assert "(SIGSEGV)" in made.detail


def test_a_model_that_takes_long_to_open_holds_nobody_but_its_own_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 0.1)
    tensors = [T(f"t{n}", (1, 2_000_000)) for n in range(1501)]
    steps = [Op("LOGISTIC", (n,), (n + 1,)) for n in range(1500)]
    path = tmp_path / "slow.tflite"
    path.write_bytes(write(tensors, steps, (0,), (1500,)))
    made = stream(tmp_path, Kept(), model=str(path))
    began = time.monotonic()
    made.prepare()
    assert (made.status[0], made.model) == ("starting", None)
    assert settings_of(made.config).variants == ()
    assert findings_of(made.config).labels == ()
    made.start()
    assert time.monotonic() - began < 50.0  # the trial of this model takes minutes
    made.ask_to_stop()


def test_a_model_whose_shapes_only_the_runtime_tells_is_opened_by_the_streams_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 0.01)
    path = tmp_path / "open.tflite"
    path.write_bytes(classifier("int8", shape=(), described=True) + b"another")
    made = stream(tmp_path, Kept(), model=str(path))
    made.prepare()
    assert (made.status[0], made.model) == ("starting", None)
    made.start()
    wait_for(lambda: made.has_result)
    assert settings_of(made.config).variants == ("full",)
    assert not made.model_changed
    made.ask_to_stop()
    assert made.join(60.0)


def test_that_such_a_model_runs_is_remembered_from_one_start_to_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 60.0)  # a busy machine may need longer than a daemon waits
    path, kept, topics = tmp_path / "kept.tflite", Kept(), Topics("vedette", "porch")
    path.write_bytes(classifier("int8", shape=(), described=True) + b"kept")
    caplog.set_level("INFO")
    for _ in range(2):
        for known in (vetting.KNOWN, tensors._results, library._completions):
            known.clear()  # as in a process that has just started
        record = Vetting(VettingRecord(tmp_path / "state"))
        made = Stream("front", StreamConfig(_WALK, str(path)), StreamServices(topics, kept, kept, vetting=record))
        made.prepare()
        made.discard()
        assert made.model is not None
    assert caplog.text.count("new model, testing it") == 1


def test_a_stop_ends_its_tracks(tmp_path: Path) -> None:
    kept = Kept()
    with running(stream(tmp_path, kept)):
        wait_for(lambda: kept.kinds() == ["new"])
    assert kept.events()[-1].reason == "shutdown"


def test_health_tells_rates_since_the_last_look(tmp_path: Path) -> None:
    with running(stream(tmp_path, Kept())) as made:
        wait_for(lambda: made.metrics.frames > 5)
        health = made.health()
        assert (health.state, health.tracks, health.model, health.backend, health.variant) == (
            "running",
            1,
            "person",
            "cpu",
            "full",
        )
        assert health.fps > 0
        assert health.frames > 5
        made.health()
        assert made.health().fps < 1000


def test_health_before_the_first_frame_is_all_zero(tmp_path: Path) -> None:
    health = stream(tmp_path, Kept()).health()
    assert (health.state, health.fps, health.infer_ms, health.frames, health.model) == ("starting", 0, 0, 0, "")


def test_a_disabled_stream_is_over_and_opens_no_model(tmp_path: Path) -> None:
    made = stream(tmp_path, Kept(), enabled=False, model="nobody has it")
    with running(made):
        assert made.finished
        assert made.status == ("disabled", "")


@pytest.mark.parametrize(
    ("fields", "kind", "why"),
    [
        ({"model": "nanodett"}, ModelError, "did you mean 'nanodet'"),
        ({"source": "tset:"}, SourceError, "tset"),
    ],
)
def test_what_cannot_work_fails_before_it_starts(
    tmp_path: Path, fields: dict[str, Any], kind: type[Exception], why: str
) -> None:
    made = stream(tmp_path, Kept(), **fields)
    with pytest.raises(kind, match=why):
        made.prepare()
    made.start()
    assert made.finished
    assert made.state == "failed"
    assert why in made.detail
    assert made.join(0)


def test_a_clip_that_is_not_there_fails_for_good(tmp_path: Path) -> None:
    with running(stream(tmp_path, Kept(), f"file:{tmp_path}/gone.mp4")) as made:
        wait_for(lambda: made.finished)
        assert made.state == "failed"
        assert "gone.mp4" in made.detail
        assert made.health().detail == made.detail


def test_a_camera_that_is_not_there_is_lost_and_waited_for(tmp_path: Path) -> None:
    capture = CaptureConfig(stall_s=1.0, reopen_max_s=0.2)
    with running(stream(tmp_path, Kept(), f"http://127.0.0.1:{free_port()}/", capture=capture)) as made:
        wait_for(lambda: made.status[0] == "lost")
        assert "Connection refused" in made.status[1]
        assert not made.finished


@pytest.mark.parametrize("error", [BackendError("the delegate is gone"), RuntimeError("a defect")])
def test_what_may_pass_starts_the_stream_again(tmp_path: Path, breaks: list[Exception], error: Exception) -> None:
    kept = Kept()
    with running(stream(tmp_path, kept)) as made:
        wait_for(lambda: kept.kinds() == ["new"])
        breaks.append(error)
        wait_for(lambda: made.state == "failed")
        assert not made.finished, "it tries again"
        assert str(error) in made.detail
        assert made.health().tracks == 0
        wait_for(lambda: kept.kinds() == ["new", "end", "new"])
        assert kept.events()[1].reason == "failure"
        assert made.status[0] == "running"
        assert made.health().infer_ms >= 0


def test_what_will_not_pass_does_not(tmp_path: Path, breaks: list[Exception]) -> None:
    breaks.append(ModelError("broken for good"))
    with running(stream(tmp_path, Kept())) as made:
        wait_for(lambda: made.finished)
        assert (made.state, made.detail) == ("failed", "broken for good")


SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def test_thresholds_and_zones_change_in_mid_stream_and_no_track_ends(tmp_path: Path) -> None:
    kept = Kept()
    zone = ZoneConfig("all", SQUARE, enabled=False)
    with running(stream(tmp_path, kept, zones=(zone,))) as made:
        wait_for(lambda: kept.kinds() == ["new"])
        changed = replace(made.config, zones=(replace(zone, enabled=True),))
        assert made.can_adjust(changed)
        made.adjust(changed)
        wait_for(lambda: kept.kinds() == ["new", "update"])
        assert [event.track.zones for event in kept.events()] == [(), ("all",)]
        higher = replace(changed, decode=DecodeConfig(score_threshold=0.95))
        assert made.can_adjust(higher)
        made.adjust(higher)
        wait_for(lambda: kept.kinds()[-1] == "end")
        assert kept.events()[-1].reason == "lost", "the model is only 0.9 sure"
        assert made.health().reopened == 0
        made.adjust(changed)
        wait_for(lambda: kept.kinds()[-1] == "new")


def test_another_size_needs_its_model_opened_anew(tmp_path: Path) -> None:
    model, kept = str(sizes_model(tmp_path, {"64": [(0.9, LEFT)], "32": [(0.9, RIGHT)]})), Kept()
    gate = GateConfig(motion=False)
    with running(stream(tmp_path, kept, model=model, variant="32", gate=gate)) as made:
        assert not made.can_adjust(replace(made.config, variant="64"))
        assert not made.can_adjust(replace(made.config, variant="auto"))
        assert made.can_adjust(replace(made.config, variant="32"))


@pytest.mark.parametrize(
    "change", [{"enabled": False}, {"source": "test:?size=32x32"}, {"threads": 2}, {"model": "nanodet"}]
)
def test_what_needs_another_source_or_model_cannot_be_adjusted(tmp_path: Path, change: dict[str, Any]) -> None:
    made = stream(tmp_path, Kept())
    made.prepare()
    assert not made.can_adjust(replace(made.config, **change))


def test_what_is_set_before_it_runs_counts_when_it_does(tmp_path: Path) -> None:
    kept = Kept()
    made = stream(tmp_path, kept)
    made.prepare()
    made.adjust(replace(made.config, decode=DecodeConfig(score_threshold=0.95)))
    made.start()
    wait_for(lambda: made.metrics.frames > 10)
    made.ask_to_stop()
    assert made.join(60.0)
    assert kept.kinds() == []


def test_pauses_grow_and_a_stop_does_not_wait_for_them(tmp_path: Path, breaks: list[Exception]) -> None:
    breaks.append(BackendError("gone"))
    with running(stream(tmp_path, Kept(), restart_s=(60.0, 60.0))) as made:
        wait_for(lambda: made.state == "failed")
        began = time.monotonic()
    assert time.monotonic() - began < 50.0


def test_after_a_long_run_the_pause_is_the_first_again(tmp_path: Path, breaks: list[Exception]) -> None:
    breaks += [BackendError("gone")] * 4
    kept = Kept()
    with running(stream(tmp_path, kept, restart_s=(0.01, 0.02))) as made:
        wait_for(lambda: not breaks and made.status[0] == "running")
        wait_for(lambda: kept.kinds()[-1] == "new")
    assert kept.kinds().count("new") == kept.kinds().count("end")


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        ({}, "person"),
        ({"model": "nanodet"}, "nanodet 416"),
        ({"model": "nanodet", "variant": "256"}, "nanodet 256"),
    ],
)
def test_the_log_tells_what_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: dict[str, Any], model: str
) -> None:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "agent.daemon.streams.stream"]

    caplog.set_level(logging.INFO)
    with running(stream(tmp_path, Kept(), **keys)):
        wait_for(lambda: bool(said()))
    (line,) = said()
    assert line == f"stream front: {_WALK} 64x48 at 50 fps, {model} on cpu"


def test_pictures_of_parts_that_are_not_kept_show_in_the_status(tmp_path: Path) -> None:
    kept = Kept()
    (tmp_path / "clips").write_text("a file")
    inspected = InspectionConfig(trigger="every")
    made = stream(tmp_path, kept, f"{_WALK}", inspection=inspected, track=TrackConfig())
    made._services = replace(made._services, state=tmp_path, clips=tmp_path / "clips")
    with running(made):
        wait_for(lambda: "clips" in made.status[1])
        assert made.status[0] == "running"
        assert "clips" in made.health().detail
