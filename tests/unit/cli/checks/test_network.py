"""Brokers and cameras on the network are tried by the doctor: real ones, on the loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.board.proc import boot_id
from agent.cli.checks import Finding, network
from agent.config import CaptureConfig, ClipsConfig, Config, StreamConfig
from agent.config.servers import MqttConfig
from agent.health import DaemonHealth, LinkHealth, StreamReport
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.packet_camera import PacketCamera, encode, pattern


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TRY_S", 1.0)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, users={"porch": "right"}) as running:
        yield running


@contextmanager
def camera(said: bytes) -> Iterator[str]:
    """Says this to everybody; gives its URI and counts in `asked`."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        yield f"rtsp://{HOST}:{listener.getsockname()[1]}/Zx9"


def found(config: Config, root: Path) -> list[tuple[str, str, str]]:
    return [(one.name, one.state, one.value) for one in network.check_network(config, root)]


def running(root: Path, **fields: object) -> None:
    """A daemon that keeps its file."""
    folder = root / "run/vedette"
    folder.mkdir(parents=True)
    health = DaemonHealth(pid=1, boot_id=boot_id(), at_s=time.clock_gettime(time.CLOCK_BOOTTIME))
    (folder / "health.json").write_bytes(msgspec.json.encode(replace(health, **fields)))


def test_a_broker_that_lets_us_in_and_nobody_else(broker: Mosquitto, tmp_path: Path) -> None:
    config = Config(mqtt=replace(broker.config(), commands=None))
    assert found(config, tmp_path) == [
        ("broker", "ok", f"{HOST}:{broker.port}: accepts this device, MQTT 5 as user 'porch'"),
        ("commands", "ok", "accepted from the broker"),
    ]


def test_what_a_broker_has_against_us_is_told(broker: Mosquitto, tmp_path: Path) -> None:
    secret = tmp_path / "wrong"
    secret.write_text("wrong")
    mqtt = replace(broker.config(), password_file=str(secret), commands=False)
    first, commands = network.check_network(Config(mqtt=mqtt), tmp_path)
    assert first.state == "problem"
    assert "refuses user 'porch'" in first.value
    assert "[mqtt] username and [mqtt] password_file" in first.advice
    assert commands.value == "off: [mqtt] commands = false"


def test_a_host_that_is_refused_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(socket, "create_connection", lambda address, *_, **__: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host))
    config = Config(mqtt=MqttConfig("mqtt://u:S3cr3t@localhost"))
    first, commands = found(config, tmp_path)
    assert first[1] == "warning"
    assert first[2].startswith("***:1883: not tried: [mqtt] host is a URL")
    assert "S3cr3t" not in f"{first}{commands}"
    assert asked == []


def test_a_broker_that_keeps_silent_is_left_in_time(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        config = Config(mqtt=MqttConfig(HOST, port=listener.getsockname()[1]))
        one, _ = network.check_network(config, tmp_path)
    assert one.state == "problem"
    assert one.value.endswith(
        "no answer to CONNECT; check that it is an MQTT broker; if it speaks TLS there, set [mqtt] tls"
    )
    assert one.advice.endswith("set [mqtt] tls")


def test_tls_at_a_plain_port_is_answered_with_a_hint(broker: Mosquitto, tmp_path: Path) -> None:
    one, *_ = network.check_network(Config(mqtt=replace(broker.config(), tls=True)), tmp_path)
    assert one.state == "problem"
    assert "if it speaks no TLS there, leave out [mqtt] tls" in one.value
    assert "leave out [mqtt] tls" in one.advice


def test_tls_at_a_port_that_keeps_silent_is_answered_with_a_hint(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        one, *_ = network.check_network(
            Config(mqtt=MqttConfig(HOST, listener.getsockname()[1], tls=True)), tmp_path
        )
    assert "if it speaks no TLS there, leave out [mqtt] tls" in one.value


def test_a_broker_that_lets_strangers_in_where_commands_are_taken_is_warned_of(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("any")
    (tmp_path / "broker").mkdir()
    with Mosquitto(tmp_path / "broker") as anonymous:
        mqtt = MqttConfig(HOST, anonymous.port, username="porch", password_file=str(secret))
        states = {(name, state) for name, state, _ in found(Config(mqtt=mqtt), tmp_path)}
    assert ("commands", "warning") in states


def test_a_running_daemon_keeps_its_connection(broker: Mosquitto, tmp_path: Path) -> None:
    where = f"{HOST}:{broker.port}"
    running(tmp_path, link=LinkHealth(where, "MQTT 5"))
    secret = tmp_path / "wrong"
    secret.write_text("wrong")
    config = Config(mqtt=replace(broker.config(), password_file=str(secret)))
    (first, _) = network.check_network(config, tmp_path)
    assert first.state == "warning"
    assert "the running daemon is connected" in first.value


@pytest.mark.parametrize(
    ("said", "state", "value"),
    [
        (b"RTSP/1.0 404 Zx9\r\n\r\n", "problem", "Server returned 404 Not Found"),
        (b"RTSP/1.0 401 No\r\n\r\n", "problem", "set capture.username and capture.password_file"),
    ],
)
def test_a_camera_is_asked(tmp_path: Path, said: bytes, state: str, value: str) -> None:
    with camera(said) as uri:
        (told,) = of_stream(StreamConfig(uri, "nanodet"), tmp_path)
    assert told.state == state
    assert value in told.value
    assert "Zx9" not in told.value + told.advice


@pytest.mark.parametrize(("has_video", "value"), [(True, "the stream"), (False, "sound alone")])
def test_a_camera_that_provides_its_stream_is_ok(tmp_path: Path, has_video: bool, value: str) -> None:
    units = encode(pattern(15), options={"tune": "zerolatency"}) if has_video else []
    with PacketCamera(units, sound=True) as serving:
        (told,) = of_stream(StreamConfig(serving.uri, "nanodet"), tmp_path)
    assert told.state == "ok"
    assert told.value.endswith(f"answers, and provides {value}")


def test_a_silent_camera_is_given_as_long_as_a_stream_gives_it(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        uri = f"rtsp://{HOST}:{listener.getsockname()[1]}/"
        (told,) = of_stream(StreamConfig(uri, "nanodet"), tmp_path)
    assert told.state == "problem"
    assert "name" not in told.value, "that a name may not be resolved is said of what the check itself gave up"


def of_stream(stream: StreamConfig, root: Path) -> list[Finding]:
    config = Config({"front": stream}, mqtt=MqttConfig(HOST, port=1))
    return [one for one in network.check_network(config, root) if one.name == "stream front"]


def test_a_camera_that_the_daemon_has_is_left_alone(tmp_path: Path) -> None:
    running(tmp_path, streams={"front": StreamReport("running")})
    (told,) = of_stream(StreamConfig("rtsp://camera.invalid/", "nanodet"), tmp_path)
    assert told.state == "ok"
    assert told.value.startswith("rtsp://camera.invalid: ")
    assert "not tried" in told.value


def test_a_source_that_is_recorded_and_lost_is_asked_while_the_daemon_runs(tmp_path: Path) -> None:
    with camera(b"RTSP/1.0 404 No\r\n\r\n") as uri:
        stream = StreamConfig("rtsp://camera.invalid/", "nanodet", clips=ClipsConfig(record_source=uri))
        config = Config({"front": stream}, mqtt=MqttConfig(HOST, port=1))
        told = {}
        for detail in ("640x480", "record_source: lost: no answer"):
            running(root := tmp_path / detail[:6], streams={"front": StreamReport("running", detail)})
            found = network.check_network(config, root)
            told[detail] = next(one for one in found if one.name == "stream front: record_source")
    assert [one.state for one in told.values()] == ["ok", "problem"]


def test_what_is_not_on_the_network_or_disabled_is_not_tried(tmp_path: Path) -> None:
    assert of_stream(StreamConfig("v4l2:/dev/video0", "nanodet"), tmp_path) == []
    assert of_stream(StreamConfig("rtsp://camera.invalid/", "nanodet", enabled=False), tmp_path) == []
    login = CaptureConfig(username="ann", password_file="/nothing/here")
    (told,) = of_stream(StreamConfig("rtsp://camera.invalid/", "nanodet", capture=login), tmp_path)
    assert (told.state, "No such file" in told.value) == ("warning", True)
