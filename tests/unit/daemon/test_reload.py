from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from agent.compute.infer.worker import WorkerSession
from agent.config import (
    Config,
    DeviceConfig,
    GateConfig,
    HealthConfig,
    PublishConfig,
    SelectionConfig,
    StorageConfig,
    StreamConfig,
    TrackConfig,
    ZoneConfig,
)
from agent.config.features import ServiceConfig
from agent.config.places import FilterConfig
from agent.config.servers import MqttConfig
from agent.daemon.reload import ReloadPlan, changes
from agent.daemon.runtime import Runtime, stop_streams
from agent.daemon.streams.stream import Stream
from agent.errors import ConfigError, VedetteError
from agent.storage.spool.spool import Spool
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, picture_model
from tests.support.doubles import person_model
from tests.support.hanging import Inferences
from tests.support.publishing import wait_for
from tests.support.running import WALK
from tests.support.sizes import sizes_model

FRONT = StreamConfig("test:", "nanodet")
OLD = Config({"front": FRONT, "back": FRONT}, DeviceConfig("porch"))


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (OLD, "nothing has changed"),
        (replace(OLD, mqtt=MqttConfig(host="other", port=1)), "[mqtt] host, port"),
        (replace(OLD, health=HealthConfig(1.0)), "[health] every_s"),
        (
            replace(OLD, streams={"front": replace(FRONT, variant="256", track=TrackConfig(2)), "back": FRONT}),
            "stream front: variant, track",
        ),
        (replace(OLD, streams={"front": FRONT, "side": FRONT}), "stream side is new; stream back is gone"),
    ],
)
def test_what_is_different_is_said_by_its_keys(new: Config, said: str) -> None:
    assert str(changes(OLD, new)) == said


@pytest.fixture
def camera(tmp_path: Path) -> StreamConfig:
    return StreamConfig(WALK, str(person_model(tmp_path)))


@pytest.fixture
def runtime(tmp_path: Path, camera: StreamConfig) -> Iterator[Runtime]:
    """Prepared, with two streams that run, each with its camera, and a broker that is never asked."""
    spool = Spool(tmp_path, StorageConfig())
    back = replace(camera, source=WALK.replace("fps=20", "fps=19"))
    runtime = Runtime(replace(OLD, streams={"front": camera, "back": back}), spool)
    runtime.prepare()
    for stream in runtime.streams.values():
        stream.start()
    yield runtime
    stop_streams(runtime.streams.values())
    spool.close()


def test_only_what_is_different_is_swapped(
    runtime: Runtime, camera: StreamConfig, caplog: pytest.LogCaptureFixture
) -> None:
    front, back = runtime.streams.values()
    runtime.mqtt.retain(runtime.topics.count("back", "person"), b"1")
    new = replace(runtime.config, streams={"front": camera, "side": camera})
    with caplog.at_level(logging.INFO, "agent.daemon.reload"):
        ReloadPlan(runtime, new).apply()
    assert runtime.config is new
    assert list(runtime.streams) == ["front", "side"]
    assert runtime.streams["front"] is front
    assert not front.finished
    assert back.finished
    assert runtime.mqtt.retained()[runtime.topics.count("back", "person")] == b""
    assert caplog.messages == ["reloaded: stream side is new; stream back is gone"]


def test_another_promise_reaches_a_stream_that_goes_on(runtime: Runtime) -> None:
    front = all_see(runtime)["front"]
    promised = replace(front.config, service=ServiceConfig(priority=80, min_fps=5.0))
    streams = {**runtime.config.streams, "front": promised}
    ReloadPlan(runtime, replace(runtime.config, streams=streams)).apply()
    assert runtime.streams["front"] is front
    assert front.config.service == promised.service
    assert not front.finished
    smaller = replace(promised, service=ServiceConfig(smaller_variants=True))
    ReloadPlan(runtime, replace(runtime.config, streams={**streams, "front": smaller})).apply()
    assert runtime.streams["front"] is not front, "its model is opened with other sizes"


SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def test_filters_and_places_reach_a_stream_that_goes_on(runtime: Runtime) -> None:
    front = all_see(runtime)["front"]

    def reload(**changed: Any) -> None:
        streams = {**runtime.config.streams, "front": replace(front.config, **changed)}
        ReloadPlan(runtime, replace(runtime.config, streams=streams)).apply()

    reload(filters=(FilterConfig(("person",), start_score=0.6),))
    reload(filters=(FilterConfig(("person",), name="people", enabled=False),))
    reload(gate=GateConfig(masks=(SQUARE,)), track=TrackConfig(only_moving=True))
    reload(gate=GateConfig(masks=(SQUARE,), masks_enabled=False))
    reload(publish=PublishConfig(snapshot_crop=True, snapshot_quality=90))
    assert runtime.streams["front"] is front
    assert front.config.filters
    with pytest.raises(VedetteError, match=r"filters\.labels: the stream never reports 'persn'"):
        reload(filters=(FilterConfig(("persn",)),))
    reload(zones=(ZoneConfig("drive", SQUARE),))
    drawn = all_see(runtime)["front"]
    assert drawn is not front, "a zone has topics of its own"
    front = drawn
    reload(zones=(ZoneConfig("drive", SQUARE[1:], loitering_s=5.0),))
    assert runtime.streams["front"] is front


def test_another_way_to_choose_the_size_is_another_stream(runtime: Runtime, tmp_path: Path) -> None:
    sizes = StreamConfig(WALK, str(sizes_model(tmp_path, {"32": [], "16": []})))
    for variant, names in (("", ["32"]), ("16", ["16"]), ("32", ["32"])):
        ReloadPlan(runtime, replace(runtime.config, streams={"front": replace(sizes, variant=variant)})).apply()
        front = all_see(runtime)["front"]
        assert front.model is not None
        assert [one.name for one in front.model.manifest.variants] == names
        assert front.health().variant in names
    auto = replace(runtime.config, streams={"front": replace(sizes, variant="auto")})
    with pytest.raises(VedetteError, match=rf"^stream front: {sizes.model}: variant = 'auto' picks"):
        ReloadPlan(runtime, auto)
    assert not front.finished


def test_what_is_refused_leaves_the_runtime_as_it_was(runtime: Runtime, camera: StreamConfig) -> None:
    before, config = dict(runtime.streams), runtime.config
    wrong = replace(camera, model="nobody")
    with pytest.raises(VedetteError) as caught:
        ReloadPlan(runtime, replace(config, streams={"front": wrong, "side": wrong}))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["stream front", "stream side"]
    assert (runtime.streams, runtime.config) == (before, config)
    assert not any(stream.finished for stream in before.values())


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.parametrize("why", ["a model that is not there", "a broker that cannot be used"])
def test_what_was_prepared_for_a_reload_that_is_refused_is_closed(
    runtime: Runtime, camera: StreamConfig, tmp_path: Path, why: str
) -> None:
    (tmp_path / "device").mkdir()
    device = f"external:{compiled(tmp_path / 'device')},cpu"
    there = replace(camera, model=str(picture_model(tmp_path / "device")), backend=device)
    streams = {**runtime.config.streams, "device": there}
    if "model" in why:
        new = replace(runtime.config, streams={**streams, "broken": replace(camera, model="nobody")})
    else:
        new = replace(runtime.config, streams=streams, mqtt=MqttConfig(ca_file="/no/such/file"))
    all_see(runtime)
    gc.collect()  # sessions of other tests, which are closed when they are collected
    others = psutil.Process().children()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(VedetteError):
            ReloadPlan(runtime, new)
        wait_for(lambda: set(psutil.Process().children()) <= set(others))
    wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_a_stream_whose_inference_hangs_frees_its_source_at_once_and_its_model_when_it_answers(
    runtime: Runtime, camera: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferences, front = Inferences(monkeypatch), all_see(runtime)["front"]
    assert front._perception is not None
    session = weakref.ref(front._perception.session)
    (reads,) = [thread for thread in threading.enumerate() if thread.name == "read-front"]
    inferences.hang(2)
    ReloadPlan(runtime, runtime.config, only="front").apply()
    reads.join(60.0)
    assert not reads.is_alive()
    wait_for(lambda: inferences.hanging == 3)
    inferences.answer()
    assert front.join(60.0)
    wait_for(lambda: runtime.streams["front"].metrics.frames > 2)
    gc.collect()
    assert session() is None


def test_no_more_than_two_threads_of_a_stream_hang_however_often_it_is_reloaded(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferences, before = Inferences(monkeypatch), len(all_see(runtime))
    inferences.hang(before)
    for _ in range(4):
        ReloadPlan(runtime, runtime.config, only="front").apply()
        time.sleep(0.2)
    waits = ("starting", "waiting for 2 earlier inferences of this stream to end")
    wait_for(lambda: inferences.hanging == before + 1 and runtime.streams["front"].status == waits)
    inferences.answer()
    wait_for(lambda: runtime.streams["front"].has_result)


def device_processes() -> list[psutil.Process]:
    """Those that run models; others may still try one."""
    return [one for one in psutil.Process().children() if any("worker_main" in word for word in one.cmdline())]


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_a_device_whose_inference_hangs_is_not_opened_twice(
    runtime: Runtime, camera: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WorkerSession.__init__.__kwdefaults__ or {}, "deadline_s", 5.0)
    (tmp_path / "device").mkdir()
    device = f"external:{compiled(tmp_path / 'device')}?mode=hang&after=10"
    gc.collect()  # sessions of other tests, which are closed when they are collected
    others = device_processes()
    there = replace(camera, model=str(picture_model(tmp_path / "device")), backend=device)
    ReloadPlan(runtime, replace(runtime.config, streams={"device": there})).apply()
    old = runtime.streams["device"]
    wait_for(lambda: old.metrics.frames == 10)
    ReloadPlan(runtime, runtime.config, only="device").apply()
    new = runtime.streams["device"]
    assert new.status[1] == "waiting for 1 earlier inference of this stream to end"
    assert len(set(device_processes()) - set(others)) == 1
    wait_for(lambda: new.metrics.frames > 2)
    assert len(set(device_processes()) - set(others)) == 1
    assert old.join(0.0)


def all_see(runtime: Runtime) -> dict[str, Stream]:
    """The streams, when each has looked at a picture."""
    wait_for(lambda: all(stream.has_result for stream in runtime.streams.values()))
    return dict(runtime.streams)


def edit(manifest: str, old: str, new: str) -> None:
    path = Path(manifest)
    path.write_text(path.read_text().replace(old, new))


def test_an_edited_manifest_swaps_the_streams_of_that_model(
    runtime: Runtime, camera: StreamConfig, caplog: pytest.LogCaptureFixture
) -> None:
    before = all_see(runtime)
    edit(camera.model, "score_threshold = 0.4", "score_threshold = 0.5")
    with caplog.at_level(logging.INFO, "agent.daemon.reload"):
        ReloadPlan(runtime, runtime.config).apply()
        ReloadPlan(runtime, runtime.config).apply()
    assert all(stream.finished and runtime.streams[name] is not stream for name, stream in before.items())
    changed = "the model's file or manifest"
    assert caplog.messages == [
        f"reloaded: stream front: {changed}; stream back: {changed}",
        "reloaded: nothing has changed",
    ]


def test_a_model_file_that_was_replaced_swaps_only_its_streams(
    runtime: Runtime, camera: StreamConfig, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = replace(camera, model=str(person_model(tmp_path / "other")))
    all_see(runtime)
    ReloadPlan(runtime, replace(runtime.config, streams={"front": camera, "back": other})).apply()
    front, back = all_see(runtime).values()
    person_model(tmp_path / "other", score=0.7)
    ReloadPlan(runtime, runtime.config).apply()
    assert runtime.streams["front"] is front
    assert runtime.streams["back"] is not back


@pytest.mark.parametrize(
    ("old", "new"),
    [('"person"\n', '"person"\nvariants = 1\n'), ('"ssd"', '"yolo"'), ("[output]", "[output")],
    ids=["unreadable", "misfit", "no TOML"],
)
def test_an_edited_manifest_that_cannot_be_used_is_refused_by_its_name(
    runtime: Runtime, camera: StreamConfig, old: str, new: str
) -> None:
    before = dict(runtime.streams)
    edit(camera.model, old, new)
    with pytest.raises(VedetteError, match=rf"^stream front: {camera.model}:.*\nstream back: {camera.model}:"):
        ReloadPlan(runtime, runtime.config)
    assert runtime.streams == before
    assert not any(stream.finished for stream in before.values())


def test_a_stream_that_failed_is_tried_again_and_may_fail_again(
    runtime: Runtime, camera: StreamConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = replace(camera, model=str(tmp_path / "late.toml"))
    runtime.config = replace(runtime.config, streams={**runtime.config.streams, "late": late})
    runtime.streams["late"], error = runtime.make_stream("late", late)
    assert error is not None
    with caplog.at_level(logging.INFO, "agent.daemon.reload"):
        ReloadPlan(runtime, runtime.config).apply()
    assert runtime.streams["late"].state == "failed"
    assert [message.partition(": ")[0] for message in caplog.messages] == ["stream late", "reloaded"]
    assert caplog.messages[-1] == "reloaded: nothing has changed; stream late is tried again"


def test_a_configuration_without_streams_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="there is nothing to run"):
        ReloadPlan(runtime, replace(runtime.config, streams={}))


def test_candidates_that_are_none_are_refused(runtime: Runtime) -> None:
    other = replace(runtime.config, selection=SelectionConfig(candidates=("gpv",)))
    with pytest.raises(ConfigError, match="no backend 'gpv'"):
        ReloadPlan(runtime, other)


def test_new_bounds_of_clips_are_taken_up_and_what_waits_is_said(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    short = StorageConfig(clips_max_age_s=3600.0)
    with caplog.at_level(logging.INFO, "agent.daemon.reload"):
        ReloadPlan(runtime, replace(runtime.config, storage=short), waiting=(("device", "name"),)).apply()
        ReloadPlan(
            runtime, runtime.config, waiting=(("storage", "state_dir"), ("storage", "clips_folder"))
        ).apply()
        waited = runtime.pending_restart
        ReloadPlan(runtime, runtime.config).apply()
    assert [len(waited), len(runtime.pending_restart)] == [2, 0]
    told = [record for record in caplog.records if record.name == "agent.daemon.reload"]
    assert [record.getMessage() for record in told] == [
        "reloaded: [storage] clips_max_age_s; [device] name waits for a restart",
        "reloaded: [storage] state_dir, clips_folder wait for a restart",
        "reloaded: nothing has changed",
    ]
    assert [record.levelname for record in told] == ["WARNING", "WARNING", "INFO"]
