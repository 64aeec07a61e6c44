"""Changes by operators: checked, stored and applied. `tests/system/test_commands.py` has them with a daemon."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.config import (
    ClipsConfig,
    Config,
    DecodeConfig,
    PublishConfig,
    StorageConfig,
    StreamConfig,
    TrackConfig,
)
from agent.config.places import PrivacyMask
from agent.config.servers import MqttConfig
from agent.daemon import control as module
from agent.daemon.control import ConfigManager
from agent.daemon.overrides import UNKNOWN_STATE, Overrides, OverridesFile
from agent.daemon.runtime import Runtime, stop_streams
from agent.daemon.streams import perception
from agent.errors import CommandError, StorageError, VedetteError
from agent.features.clips.part import StreamClips
from agent.storage.clips.store import clips_in
from agent.storage.spool.spool import Spool
from agent.types import Frame, StreamResult
from tests.support.clip_pictures import frames_of
from tests.support.doubles import person_model
from tests.support.hanging import Inferences
from tests.support.picture_models import classifier
from tests.support.publishing import wait_for
from tests.support.running import WALK
from tests.support.sizes import LEFT, sizes_model


@pytest.fixture
def config(tmp_path: Path) -> Config:
    stream = StreamConfig("test:?size=64x48", str(person_model(tmp_path)), enabled=False)
    return Config({"front": stream, "back": stream}, mqtt=MqttConfig(port=1))


@pytest.fixture
def file(tmp_path: Path) -> OverridesFile:
    return OverridesFile(tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path, StorageConfig())
    yield made
    made.close()


def prepared(
    config: Config, file: OverridesFile, spool: Spool, retry_s: float = 5.0
) -> tuple[ConfigManager, Runtime]:
    control = ConfigManager(config, file, retry_s)
    runtime = Runtime(control.config, spool)
    control.attach(runtime)
    runtime.prepare()
    return control, runtime


def test_a_change_is_on_the_disk_before_it_is_carried_out(
    config: Config, file: OverridesFile, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, runtime = prepared(config, file, spool)
    states: list[str] = []
    write = OverridesFile.write

    def noting(self: OverridesFile, overrides: Overrides) -> None:
        states.append(runtime.streams["front"].state)
        write(self, overrides)

    monkeypatch.setattr(OverridesFile, "write", noting)
    try:
        assert control.set("front", "enabled", True) == ""
        assert states == ["disabled"]
        wait_for(lambda: runtime.streams["front"].has_result)
        assert ConfigManager(config, file).config.streams["front"].enabled
    finally:
        stop_streams(runtime.streams.values())


def test_nothing_of_a_camera_that_is_switched_off_is_published_however_long_its_inference_takes(
    config: Config, file: OverridesFile, tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferences, published = Inferences(monkeypatch), list[str]()
    front = replace(
        config.streams["front"],
        enabled=True,
        source=WALK,
        publish=PublishConfig(detections=True, snapshot_every_s=0.01),
        track=TrackConfig(min_hits=1, update_every_s=0.01),
        clips=ClipsConfig(before_s=0.5, after_s=0.5),
    )
    storage = StorageConfig(clips_folder=str(tmp_path / "clips"))
    control, runtime = prepared(Config({"front": front}, storage=storage, mqtt=MqttConfig(port=1)), file, spool)
    monkeypatch.setattr(runtime.mqtt, "send", lambda topic, payload: published.append(topic))
    runtime.parts.get("clips").recorder.start()
    old = runtime.streams["front"]
    old.start()
    wait_for(lambda: old.metrics.frames > 5)
    inferences.hang()
    old.parts.request_picture()
    assert control.set("front", "enabled", False) == ""
    spool.flush(5.0)
    retained, events = runtime.mqtt.retained(), spool.peek(0, 1000)
    assert retained[runtime.topics.snapshot("front")] == b""
    assert retained[runtime.topics.count("front", "person")] == b"0"
    assert (
        b'"kind":"end","reason":"shutdown"' in [row for row in events if row.topic.endswith("/events")][-1].body
    )
    published.clear()
    inferences.answer()
    assert old.join(60.0)
    assert runtime.mqtt.retained() == retained
    assert published == []
    runtime.parts.get("clips").recorder.close(2.0)
    assert spool.peek(events[-1].seq, 1000) == []
    assert runtime.parts.get("clips").recorder.stats.saved == 1


def test_nothing_of_before_new_masks_is_handed_on_by_a_thread_that_was_stuck(
    config: Config, file: OverridesFile, tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, goes_on, real = threading.Event(), threading.Event(), StreamClips.process
    shown = list[bytes]()

    def process(self: StreamClips, item: Frame, result: StreamResult) -> None:
        if result.events and not stuck.is_set():
            stuck.set()
            goes_on.wait(60.0)
        real(self, item, result)

    monkeypatch.setattr(StreamClips, "process", process)
    front = replace(
        config.streams["front"],
        enabled=True,
        source=WALK,
        publish=PublishConfig(snapshot_every_s=0.01, snapshot_boxes=False),
        track=TrackConfig(min_hits=1),
        clips=ClipsConfig(before_s=0.5, after_s=0.5, max_s=1.0),
    )
    all_of_it = PrivacyMask("all", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    storage = StorageConfig(clips_folder=str(tmp_path / "clips"), clips_keep_free_bytes=0)
    before = Config({"front": front}, storage=storage, mqtt=MqttConfig(port=1))
    control, runtime = prepared(before, file, spool)
    topic, retain = runtime.topics.snapshot("front"), runtime.mqtt.retain

    def keep(to: str, payload: bytes, *, patient: bool = False) -> None:
        shown.extend([payload] if to == topic and payload else [])
        retain(to, payload, patient=patient)

    monkeypatch.setattr(runtime.mqtt, "retain", keep)
    runtime.parts.get("clips").recorder.start()
    old = runtime.streams["front"]
    old.start()
    assert stuck.wait(60.0), "it has an event, and is about to begin a clip"
    hides = replace(front, privacy=(all_of_it,), mask_model=False)
    control.reload(replace(before, streams={"front": hides}))
    assert runtime.hanging("front") == [old]
    goes_on.set()
    assert old.join(60.0)
    wait_for(lambda: runtime.parts.get("clips").recorder.stats.saved)
    stop_streams(runtime.streams.values())
    runtime.parts.get("clips").recorder.close(5.0)
    assert runtime.parts.get("clips").recorder.stats.failed == 0, "the old stream began no clip"
    pictures = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in shown]
    for entry in clips_in(tmp_path / "clips"):
        pictures += frames_of(entry.path)
    assert pictures
    assert max(float(one.mean()) for one in pictures if one is not None) < 20.0, "all are hidden"


def test_when_the_disk_refuses_it_is_done_all_the_same_and_said(
    config: Config,
    file: OverridesFile,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(self: OverridesFile, overrides: Overrides) -> None:
        raise StorageError("overrides.json: cannot be written: No space left on device")

    control, runtime = prepared(config, file, spool)
    monkeypatch.setattr(OverridesFile, "write", full)
    warning = control.set("front", "threshold", 0.7)
    assert warning.startswith("done, but settings made by commands are not on the disk yet")
    assert "overrides.json: cannot be written" in warning
    assert runtime.settings["front"].threshold == 0.7
    assert runtime.streams["front"].config.decode.score_threshold == 0.7
    assert "settings made by commands are not on the disk yet" in caplog.text


def test_what_the_disk_refused_is_written_as_soon_as_it_can_be(
    config: Config, tmp_path: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    file = OverridesFile(tmp_path / "disk")
    control, _ = prepared(on(config), file, spool, retry_s=0.0)
    for _ in range(2):
        assert "not on the disk yet" in control.set("front", "enabled", False)
        control.poll()
    assert str(file.path) in control.unwritten
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    file.path.parent.mkdir()
    control.poll()
    assert control.unwritten == ""
    assert not ConfigManager(on(config), file).config.streams["front"].enabled


def test_nothing_is_written_to_a_state_folder_that_is_refused(
    config: Config, file: OverridesFile, spool: Spool
) -> None:
    control, _ = prepared(on(config), file, spool, retry_s=0.0)
    control.folder_trouble = "belongs to the user nobody"
    assert "belongs to the user nobody" in control.set("front", "enabled", False)
    control.poll()
    assert not file.path.exists()
    control.write_anew()
    assert not ConfigManager(on(config), file).config.streams["front"].enabled


def test_a_change_that_cannot_be_carried_out_is_not_kept(
    file: OverridesFile, spool: Spool, config: Config
) -> None:
    broken = replace(config.streams["front"], model="nobody")
    control, runtime = prepared(replace(config, streams={**config.streams, "front": broken}), file, spool)
    with pytest.raises(CommandError, match="no bundled model is called"):
        control.set("front", "enabled", True)
    assert file.read() == Overrides()
    assert runtime.settings["front"].enabled is False


def test_no_more_is_written_than_a_card_stands(
    config: Config, file: OverridesFile, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, runtime = prepared(config, file, spool)
    writes: list[Overrides] = []
    monkeypatch.setattr(OverridesFile, "write", lambda self, overrides: writes.append(overrides))
    refused: list[str] = []
    for number in range(3 * module._WRITES):
        try:
            control.set("front", "threshold", 0.1 + number / 1000)
        except CommandError as error:
            refused.append(str(error))
    assert len(writes) in (module._WRITES, module._WRITES + 1)
    assert len(writes) + len(refused) == 3 * module._WRITES
    assert set(refused) == {"too many changes in a short time; try again in a few seconds"}
    assert control.set("front", "threshold", runtime.settings["front"].threshold) == "", "that changes nothing"


def test_a_variant_that_is_gone_from_its_model_does_not_keep_the_stream_from_running(
    tmp_path: Path, file: OverridesFile, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = sizes_model(tmp_path, {"64": [(0.9, LEFT)], "32": [(0.9, LEFT)]})
    config = Config({"front": StreamConfig("test:", str(model), enabled=False)})
    control, _ = prepared(config, file, spool)
    control.set("front", "variant", "32")
    assert ConfigManager(config, file).config.streams["front"].variant == "32"
    sizes_model(tmp_path, {"64": [(0.9, LEFT)], "48": [(0.9, LEFT)]})
    assert ConfigManager(config, file).config.streams["front"].variant == ""
    assert "its model has no variant '32' any more" in caplog.text
    assert file.read() == Overrides()


def test_a_reload_that_is_refused_leaves_every_override(
    config: Config, file: OverridesFile, spool: Spool
) -> None:
    control, runtime = prepared(config, file, spool)
    control.set("front", "threshold", 0.7)
    kept = file.path.read_bytes()
    changed = replace(
        config.streams["front"], decode=DecodeConfig(score_threshold=0.2), model="nobody", enabled=True
    )
    with pytest.raises(VedetteError):
        control.reload(replace(config, streams={"front": changed}))
    assert file.path.read_bytes() == kept
    assert runtime.config.streams["front"].decode.score_threshold == 0.7
    assert control.overridden("front") == ("threshold",)


def test_only_an_operators_off_keeps_the_daemon_waiting(
    config: Config, file: OverridesFile, spool: Spool
) -> None:
    on = replace(
        config,
        streams={"front": replace(config.streams["front"], enabled=True), **{"back": config.streams["back"]}},
    )
    control, runtime = prepared(on, file, spool)
    assert runtime.disabled_by_operator == frozenset()
    control.set("front", "enabled", False)
    assert runtime.disabled_by_operator == {"front"}
    control.set("front", "enabled", None)
    assert runtime.disabled_by_operator == frozenset()
    stop_streams(runtime.streams.values())


def damage(file: OverridesFile) -> Path:
    file.path.write_bytes(b'{"streams": {"fro')
    return file.path


def on(config: Config) -> Config:
    return replace(config, streams={name: replace(one, enabled=True) for name, one in config.streams.items()})


def test_what_cannot_be_known_is_off_also_when_the_disk_refuses_to_keep_that(
    config: Config, file: OverridesFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damage(file)

    def full(self: OverridesFile, overrides: Overrides) -> None:
        raise StorageError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(OverridesFile, "write", full)
        for _ in range(2):  # a fresh device must not be what is left of it
            control = ConfigManager(on(config), file)
            assert [one.enabled for one in control.config.streams.values()] == [False, False]
            assert control.remark("front") == UNKNOWN_STATE
    assert damaged.read_bytes()
    ConfigManager(on(config), file)
    assert set(file.read().lost) == {"front", "back"}
    assert ConfigManager(on(config), file).remark("front") == UNKNOWN_STATE


def test_a_stream_that_a_damaged_file_keeps_off_is_said_at_every_start(
    config: Config, file: OverridesFile, caplog: pytest.LogCaptureFixture
) -> None:
    damage(file)
    for _ in range(2):
        caplog.clear()
        ConfigManager(on(config), file)
        for name in ("front", "back"):
            assert f"stream {name}: {UNKNOWN_STATE}" in caplog.messages
    caplog.clear()
    ConfigManager(config, file)
    assert not [line for line in caplog.messages if line.startswith("stream front: ")], "the file says off"


def test_the_file_that_says_off_and_the_one_that_changes_count(config: Config, file: OverridesFile) -> None:
    damage(file)
    mixed = replace(config, streams={**config.streams, "back": replace(config.streams["back"], enabled=True)})
    control = ConfigManager(mixed, file)
    assert [control.remark(name) for name in ("front", "back")] == ["", UNKNOWN_STATE], "front is off anyway"
    assert not ConfigManager(config, file).remark("back"), "its enabled is another one now"


def test_a_device_on_which_nothing_was_ever_set_runs(config: Config, file: OverridesFile) -> None:
    control = ConfigManager(on(config), file)
    assert [one.enabled for one in control.config.streams.values()] == [True, True]
    assert not file.path.exists()
    damage(file).unlink()
    assert ConfigManager(on(config), file).config.streams["front"].enabled, "deleting it is a way out"


def test_what_is_unknown_is_kept_off_and_no_operator_has_set_it(
    config: Config, file: OverridesFile, spool: Spool
) -> None:
    damage(file)
    control, runtime = prepared(on(config), file, spool)
    assert runtime.disabled_by_operator == {"front", "back"}
    assert control.overridden("front") == ()
    assert control.with_settings("front", runtime.streams["front"].health()).detail == UNKNOWN_STATE
    assert control.set("front", "enabled", False) == ""
    assert (control.overridden("front"), control.remark("front")) == (("enabled",), "")
    assert ConfigManager(on(config), file).remark("back") == UNKNOWN_STATE
    stop_streams(runtime.streams.values())


def test_variants_that_only_the_runtime_tells_are_shown_when_it_has_told_them(
    config: Config, file: OverridesFile, tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perception, "PREPARE_S", 0.01)
    path = tmp_path / "open.tflite"
    path.write_bytes(classifier("int8", shape=()) + b"late")
    front = replace(config.streams["front"], enabled=True, model=str(path))
    control, runtime = prepared(replace(config, streams={"front": front}), file, spool)
    try:
        control.poll()
        assert runtime.settings["front"].variants == ()
        runtime.streams["front"].start()
        wait_for(lambda: runtime.streams["front"].has_result)
        control.poll()
        assert list(runtime.settings["front"].variants) == ["full"]
    finally:
        stop_streams(runtime.streams.values())
