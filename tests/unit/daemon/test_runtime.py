"""The runtime before its streams start. `tests/system/test_runtime.py` has it with a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.config import Config, DeviceConfig, StorageConfig, StreamConfig
from agent.config.load import Rereadable
from agent.daemon.runtime import Runtime, device_name
from agent.errors import ConfigError, StreamError
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
        (4, {"variant": "9"}, "MODEL: has no variant '9'"),
        (6, {"end": ZONES}, "zone 'line': the polygon has 2 corners"),
        (6, {"end": '[streams.front.decode]\nlabels = ["persn"]'}, "MODEL: no label "),
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
