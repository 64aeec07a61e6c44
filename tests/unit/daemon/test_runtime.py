"""The runtime before its streams start. `tests/system/test_runtime.py` has it with a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.config import Config, DeviceConfig, StorageConfig, StreamConfig, ZoneConfig
from agent.config.load import Rereadable
from agent.config.places import PrivacyMask
from agent.daemon.reload import ReloadPlan
from agent.daemon.runtime import Runtime, device_name
from agent.daemon.streams.extra_models import BlurModels
from agent.errors import ConfigError, ModelError, StreamError
from agent.storage.spool.spool import Spool
from tests.support.doubles import person_model

GONE = StreamConfig("test:", "nobody")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path, StorageConfig())
    yield made
    made.close()


def test_a_stream_that_is_refused_is_kept_as_failed_beside_the_others(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(Config({"front": StreamConfig("test:", str(person_model(tmp_path))), "gone": GONE}), spool)
    runtime.prepare()
    assert {name: stream.state for name, stream in runtime.streams.items()} == {
        "front": "starting",
        "gone": "failed",
    }
    assert len([message for message in caplog.messages if message.startswith("stream gone: ")]) == 1


def test_of_two_streams_on_one_camera_the_second_is_refused(spool: Spool, tmp_path: Path) -> None:
    camera = StreamConfig("v4l2:/dev/null", str(person_model(tmp_path)))
    runtime = Runtime(Config({"a": camera, "b": replace(camera, source="v4l2:/dev/../dev/null?fps=5")}), spool)
    runtime.prepare()
    assert {name: stream.state for name, stream in runtime.streams.items()} == {"a": "starting", "b": "failed"}
    assert "is the camera of stream a, too" in runtime.streams["b"].detail


@pytest.mark.parametrize("hidden", [["/sys/x"], []])
def test_what_turns_xnnpack_off_is_told_once(
    spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hidden: list[str]
) -> None:
    monkeypatch.setattr("agent.daemon.runtime.cpu_info_unreadable", lambda: hidden)
    Runtime(Config({"off": StreamConfig("test:", "nanodet", enabled=False)}), spool).prepare()
    assert [said.split(":")[0] for said in caplog.messages if "XNNPACK is off" in said] == hidden


def test_when_every_stream_is_refused_each_is_named(spool: Spool) -> None:
    with pytest.raises(StreamError) as caught:
        Runtime(Config({"a": GONE, "b": GONE}), spool).prepare()
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["stream a", "stream b"]


ZONES = """
[[streams.front.zones]]
name = "line"
polygon = [[0.1, 0.1], [0.9, 0.9]]
"""


@pytest.mark.parametrize(
    ("line", "keys", "why"),
    [
        (2, {"source": "tset:"}, "tset:: "),
        (3, {"source": "wav:x.wav"}, "wav:x.wav gives sound, and model MODEL takes pictures"),
        (3, {"model": "nanodett"}, "no bundled model is called 'nanodett'"),
        (3, {"variant": "9"}, "MODEL: has no variant '9'"),
        (6, {"end": ZONES}, "zone 'line': the polygon has 2 corners"),
        (6, {"end": '[streams.front.decode]\nlabels = ["persn"]'}, "decode.labels: no label "),
        (5, {"end": "crop = [0.5, 0.0, 0.5, 1.0]"}, "crop: expected left, top, right, bottom"),
        (6, {"end": '[streams.front.decode]\npattern = "[0-9]+"'}, "decode.pattern is for texts"),
        (3, {"model": "nobody", "end": ZONES}, "no bundled model is called 'nobody'"),
    ],
)
def test_why_a_stream_is_refused_is_told_at_its_line(
    spool: Spool, tmp_path: Path, line: int, keys: dict[str, str], why: str
) -> None:
    model = str(person_model(tmp_path))
    keys = {"source": "test:", "model": model, "variant": "", "end": "", **keys}
    end = keys.pop("end")
    file = tmp_path / "vedette.toml"
    file.write_text("\n".join(["[streams.front]", *(f'{key} = "{value}"' for key, value in keys.items()), end]))
    read = Rereadable(file)
    with pytest.raises(StreamError) as caught:
        Runtime(read.read(), spool, read.where).prepare()
    assert str(caught.value).startswith(f"{file}:{line}: stream front: {why.replace('MODEL', model)}")


def test_a_runtime_without_streams_is_refused(spool: Spool) -> None:
    with pytest.raises(ConfigError, match="there is nothing to run"):
        Runtime(Config(), spool).prepare()


def test_the_hosts_name_is_made_fit_for_a_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, name in (("pi.local", "pi-local"), ("büro+1", "büro-1"), ("##", "vedette")):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert device_name(Config()) == name
    assert device_name(Config(device=DeviceConfig("porch"))) == "porch"


MASK = PrivacyMask("door", ((0.1, 0.1), (0.4, 0.1), (0.4, 0.6)))


def test_a_stream_that_shows_what_another_hides_is_logged_once(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(person_model(tmp_path))
    masked, bare = StreamConfig("test:", model, privacy=(MASK,)), StreamConfig("test:", model)
    Runtime(Config({"masked": masked, "bare": bare}), spool).prepare()
    assert [one for one in caplog.messages if "hides less of it" in one] == [
        "stream bare shows the source of stream masked, and hides less of it"
    ]


def test_a_reload_that_adds_such_a_stream_logs_it_and_the_next_one_does_not(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(person_model(tmp_path))
    masked, bare = StreamConfig("test:", model, privacy=(MASK,)), StreamConfig("test:", model, enabled=False)
    runtime = Runtime(Config({"masked": masked, "bare": bare}), spool)
    runtime.prepare()
    assert "hides less of it" not in caplog.text
    on = Config({"masked": masked, "bare": replace(bare, enabled=True)})
    try:
        for _ in range(2):
            ReloadPlan(runtime, on).apply()
    finally:
        runtime.stop_streams(runtime.streams)
    assert caplog.text.count("hides less of it") == 1


def test_a_reload_deletes_pictures_from_before_the_masks_and_counts_of_zones_that_are_gone(
    spool: Spool, tmp_path: Path
) -> None:
    zone = ZoneConfig("drive", MASK.polygon)
    front = StreamConfig("test:", str(person_model(tmp_path)), zones=(zone,))
    runtime = Runtime(Config({"front": front}), spool)
    runtime.prepare()
    topics = runtime.topics
    gone, kept = topics.zone_count("front", "drive", "person"), topics.count("front", "person")
    for topic in (gone, kept, topics.snapshot("front")):
        runtime.mqtt.retain(topic, b"1")
    try:
        ReloadPlan(runtime, Config({"front": replace(front, zones=(), privacy=(MASK,), enabled=False)})).apply()
    finally:
        runtime.stop_streams(runtime.streams)
    assert runtime.mqtt.retained() == {gone: b"", kept: b"1", topics.snapshot("front"): b""}


def test_the_error_about_a_model_that_blurs_names_that_model(
    tmp_path: Path,
) -> None:
    def opens(model: str, *_: object) -> None:
        raise ModelError("is damaged")

    config = StreamConfig("test:", str(person_model(tmp_path)), blur=("face",))
    with pytest.raises(ConfigError, match="blur: model face: is damaged") as refused:
        BlurModels(config, opens)  # type: ignore[arg-type]
    assert refused.value.keys == ("blur",)
