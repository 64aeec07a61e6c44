"""The daemon inside this process, with a real broker; `test_daemon` runs it as a command."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.board.firmware import UNDER_VOLTAGE
from agent.board.monitor import PowerMonitor, TemperatureMonitor
from agent.board.sensors import BoardSensors
from agent.board.thermal import Zone
from agent.comms.mqtt.inbox import OnMessage
from agent.comms.mqtt.publisher import Publisher
from agent.compute.infer.litert import CpuSession
from agent.compute.vision import VideoPerception
from agent.config import (
    Config,
    DeviceConfig,
    HealthConfig,
    PublishConfig,
    StorageConfig,
    StreamConfig,
    ThermalConfig,
    TrackConfig,
)
from agent.config.servers import MqttConfig
from agent.daemon.daemon import Daemon
from agent.daemon.runtime import STOP_TIMES, Runtime, StopTimes
from agent.errors import BackendError, ConfigError, StorageError, VedetteError
from agent.storage.spool.disk import SpoolDisk
from agent.storage.spool.pending import Commit
from agent.types import Frame, StreamResult
from tests.support.boards import battery, pi4, write
from tests.support.doubles import person_model
from tests.support.hanging import Inferences
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.publishing import TOPICS, events_of, wait_for
from tests.support.received import Messages
from tests.support.running import WALK, events, health, hear, kinds, left_open, states, stopped

_PATIENT_S = 1.2
"""A message that waits for company waits less, see `agent.comms.reporter.RetainedSink.retain`."""
_CLIP = f"{WALK}&frames=20&pace=fast"


_PATIENT_STOP = StopTimes(streams=20.0, clips=5.0, flush=5.0, drain=20.0)
"""A busy machine needs longer for a stop than a device has."""


class Inside:
    """A daemon in a thread."""

    def __init__(
        self, config: Config, *, exit_when_done: bool = False, stop_times: StopTimes = _PATIENT_STOP
    ) -> None:
        self.next: Config | ConfigError = config
        self.error: VedetteError | None = None
        self.daemon = Daemon(config, reload=self._read, exit_when_done=exit_when_done, stop_times=stop_times)
        self._thread = threading.Thread(target=self._run, name="daemon")
        self._thread.start()

    def _read(self) -> Config:
        if isinstance(self.next, ConfigError):
            raise self.next
        return self.next

    def _run(self) -> None:
        try:
            self.daemon.run()
        except VedetteError as error:
            self.error = error

    def reload(self, config: Config | ConfigError) -> None:
        self.next = config
        self.daemon.request_reload()

    def wait(self) -> VedetteError | None:
        """Its end, and what it ended with."""
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        return self.error


@contextmanager
def inside(
    config: Config, *, exit_when_done: bool = False, stop_times: StopTimes = _PATIENT_STOP
) -> Iterator[Inside]:
    running = Inside(config, exit_when_done=exit_when_done, stop_times=stop_times)
    try:
        yield running
    finally:
        running.daemon.request_stop()
        running.wait()


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


@pytest.fixture
def camera(tmp_path: Path) -> StreamConfig:
    return StreamConfig(
        source=WALK,
        model=str(person_model(tmp_path)),
        track=TrackConfig(update_every_s=0.1, stationary_after_s=0.0),
    )


@pytest.fixture
def config(tmp_path: Path, broker: Mosquitto, camera: StreamConfig) -> Config:
    """Two cameras."""
    return Config(
        {"front": camera, "back": camera},
        DeviceConfig(TOPICS.device),
        broker.config(),
        StorageConfig(str(tmp_path / "state")),
        HealthConfig(0.2),
    )


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.name == "agent.daemon.daemon" and r.levelno == logging.ERROR
    ]


def both_see(messages: Messages) -> None:
    messages.wait(lambda m: "update" in kinds(m, "front") & kinds(m, "back"))


def test_a_day_of_a_daemon(config: Config, messages: Messages, camera: StreamConfig) -> None:
    with inside(config) as running:
        both_see(messages)
        changed = replace(camera, track=TrackConfig(min_hits=2, update_every_s=0.1, stationary_after_s=0.0))
        running.reload(replace(config, streams={"front": camera, "side": changed}))
        messages.wait(lambda m: set(states(m)) == {"front", "side"} and "new" in kinds(m, "side"))
    assert running.error is None
    assert all(left_open(messages, stream) == set() for stream in ("front", "back", "side"))
    assert len({event.track.id for event in events(messages)}) == 1
    assert messages.of(TOPICS.snapshot("back"))[-1] == b""
    messages.wait(lambda m: m.of(TOPICS.status) == [b"online", b"stopped"])


def test_another_broker_gets_everything_that_is_retained(
    config: Config, messages: Messages, tmp_path: Path
) -> None:
    with Mosquitto(tmp_path / "other") as other, inside(config) as running:
        there = other.subscribe("vedette/#")
        both_see(messages)
        running.reload(replace(config, mqtt=other.config()))
        messages.wait(lambda m: m.of(TOPICS.status) == [b"online", b"stopped"])
        there.wait(lambda m: m.of(TOPICS.count("front", "person")) == [b"1"])
        hear(there, 3)


def test_heat_is_in_the_health_and_its_limit_can_be_changed_while_it_runs(
    config: Config, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    heat = TemperatureMonitor(lambda: Zone("cpu-thermal", 76.5), every_s=0.1)
    monkeypatch.setattr("agent.board.monitor.TemperatureMonitor", lambda read: heat)
    with inside(replace(config, thermal=ThermalConfig(75.0))) as running:
        messages.wait(lambda m: (told := health(m)) and told.hot and told.temperature_c == 76.5)
        running.reload(replace(config, thermal=ThermalConfig(90.0)))
        messages.wait(lambda m: (told := health(m)) and not told.hot)


def test_power_and_supply_are_in_the_health_and_what_is_measured_is_in_home_assistant(
    config: Config, broker: Mosquitto, messages: Messages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    announced = broker.subscribe("homeassistant/#")
    sensor, firmware = "sys/class/hwmon/hwmon0", "sys/devices/platform/soc/soc:firmware/get_throttled"
    root = write(pi4(tmp_path), {f"{sensor}/name": "ina219", f"{sensor}/power1_input": "4550000"})
    monkeypatch.setattr("agent.board.monitor.PowerMonitor", lambda sensors: PowerMonitor(root, every_s=0.1))
    with inside(config):
        messages.wait(lambda m: (told := health(m)) and (told.power_w, told.power_from) == (4.55, "ina219"))
        discovery = f"homeassistant/device/{TOPICS.device}/config"
        announced.wait(lambda m: any(b"value_json.power_w" in body for body in m.of(discovery)))
        write(root, {firmware: "50005"})
        messages.wait(lambda m: (told := health(m)) and told.supply and UNDER_VOLTAGE in told.supply.now)
        write(root, {firmware: "50000"})
        messages.wait(lambda m: (told := health(m)) and told.supply and UNDER_VOLTAGE in told.supply.before)


def test_a_sensor_that_blocks_stops_neither_commands_nor_the_governor_nor_a_stop(
    config: Config,
    broker: Mosquitto,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    root, operator = battery(pi4(tmp_path / "board"), capacity="22", status="Discharging"), Operator(broker)
    sensors = [root / "sys/class/thermal/thermal_zone0/temp", root / "sys/class/power_supply/BAT0/capacity"]
    for sensor in sensors:
        sensor.unlink()
        os.mkfifo(sensor)
    monkeypatch.setattr("agent.board.monitor.BoardSensors", lambda: BoardSensors(root))
    with inside(replace(config, mqtt=replace(config.mqtt, commands=True))) as running:
        wait_for(lambda: sum("has not answered for" in line for line in caplog.messages) == len(sensors))
        assert operator.ask("status")["ok"]
        governor = running.daemon.runtime.parts.get("governor")
        before = governor.processors
        wait_for(lambda: governor.processors is not before)
        running.daemon.request_stop()
        running.wait()
    assert stopped(operator.messages)
    assert sum("has not answered for" in line for line in caplog.messages) == len(sensors), "each is told once"
    for sensor in sensors:
        with suppress(OSError):
            os.close(os.open(sensor, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"streams": {}}, "no [streams.NAME]"),
        ({"mqtt": MqttConfig(host="")}, "[mqtt] host = ''"),
        ({"streams": {"front": StreamConfig("test:", "nanodett")}}, "did you mean 'nanodet'"),
    ],
)
def test_what_cannot_be_reloaded_is_refused(
    config: Config,
    messages: Messages,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, object],
    why: str,
) -> None:
    with inside(config) as running:
        both_see(messages)
        running.reload(replace(config, **change))
        wait_for(lambda: any("reload refused" in line for line in refusals(caplog)))
        hear(messages, 3, "back")
    assert why in refusals(caplog)[-1]


def test_a_file_with_several_errors_is_refused_in_one_line(
    config: Config, messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    with inside(config) as running:
        both_see(messages)
        running.reload(ConfigError("f:1: this\nf:2: that"))
        wait_for(lambda: refusals(caplog))
        assert refusals(caplog) == ["reload refused, keeping the old configuration: f:1: this; f:2: that"]


def test_a_slow_disk_is_given_what_the_rest_of_a_stop_does_not_need(
    config: Config, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, is_slow = SpoolDisk.write, threading.Event()

    def write_slowly(disk: SpoolDisk, commit: Commit) -> bool:
        time.sleep(0.4 if is_slow.is_set() else 0.0)  # at the stop one commit may be under way, and one follows
        return write(disk, commit)

    monkeypatch.setattr(SpoolDisk, "write", write_slowly)
    with inside(config, stop_times=StopTimes(streams=20.0, clips=0.0, flush=0.0, drain=20.0)) as running:
        both_see(messages)
        is_slow.set()
        running.daemon.request_stop()
        running.wait()
    assert sum(STOP_TIMES) < 2.0
    assert stopped(messages)
    assert all(left_open(messages, stream) == set() for stream in ("front", "back"))


def test_without_a_file_a_reload_does_nothing(config: Config, messages: Messages) -> None:
    daemon = Daemon(config)
    thread = threading.Thread(target=daemon.run)
    thread.start()
    both_see(messages)
    daemon.request_reload()
    hear(messages, 3)
    daemon.request_stop()
    thread.join(60.0)
    assert "end" in kinds(messages)


def test_commands_are_listened_to_before_anybody_can_hear_that_it_is_online(
    config: Config, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[str] = []
    at_start: list[str] = []
    listen, start = Publisher.listen, Runtime.start

    def listening(publisher: Publisher, pattern: str, on_message: OnMessage, **options: bool) -> None:
        listened.append(pattern)
        listen(publisher, pattern, on_message, **options)

    def starting(runtime: Runtime) -> None:
        at_start.extend(listened)
        start(runtime)

    monkeypatch.setattr(Publisher, "listen", listening)
    monkeypatch.setattr(Runtime, "start", starting)
    with inside(config):
        both_see(messages)
    assert set(TOPICS.commands) <= set(at_start)


def test_clips_end_the_daemon_when_it_was_asked_to(
    config: Config, messages: Messages, camera: StreamConfig
) -> None:
    clip = replace(camera, source=_CLIP)
    with inside(replace(config, streams={"front": clip}), exit_when_done=True) as running:
        assert running.wait() is None
    assert stopped(messages)
    assert left_open(messages) == set()
    assert kinds(messages) >= {"new", "end"}


def test_one_that_failed_is_told_when_all_are_over(
    config: Config, messages: Messages, camera: StreamConfig, tmp_path: Path
) -> None:
    streams = {
        "front": replace(camera, source=_CLIP),
        "gone": replace(camera, source=f"file:{tmp_path}/gone.mp4"),
    }
    with inside(replace(config, streams=streams), exit_when_done=True) as running:
        assert "every stream has ended; gone: " in str(running.wait())
    assert stopped(messages)
    assert states(messages) == {"front": "ended", "gone": "failed"}


def test_failed_and_disabled_together_are_nothing_to_run(
    config: Config, camera: StreamConfig, tmp_path: Path
) -> None:
    gone = replace(camera, source=f"file:{tmp_path}/gone.mp4")
    with inside(replace(config, streams={"gone": gone, "off": replace(camera, enabled=False)})) as running:
        assert "gone.mp4" in str(running.wait())


def test_a_failure_is_told_although_a_stop_comes_with_it(
    config: Config, camera: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(replace(config, streams={"gone": replace(camera, source=f"file:{tmp_path}/gone.mp4")}))

    def publish() -> None:
        if daemon.runtime.streams["gone"].finished:
            daemon.request_stop()

    monkeypatch.setattr(daemon, "_report_health", publish)
    with pytest.raises(VedetteError, match=r"gone\.mp4"):
        daemon.run()


def test_a_stream_that_tries_again_keeps_the_daemon_running(
    config: Config, messages: Messages, camera: StreamConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, real = [BackendError("the delegate is gone")], VideoPerception.process

    def look(self: VideoPerception, frame: Frame) -> StreamResult:
        if errors and self.tracker.alive:
            raise errors.pop()
        return real(self, frame)

    monkeypatch.setattr(VideoPerception, "process", look)
    with inside(replace(config, streams={"front": camera})):
        messages.wait(lambda m: states(m) == {"front": "failed"})
        messages.wait(lambda m: [e.kind for e in events(m) if e.kind != "update"] == ["new", "end", "new"])
        messages.wait(lambda m: states(m) == {"front": "running"})


def test_a_failed_stream_is_tried_again_by_a_reload(
    config: Config, messages: Messages, camera: StreamConfig, tmp_path: Path
) -> None:
    late = tmp_path / "late.toml"
    both = replace(config, streams={"front": camera, "late": replace(camera, model=str(late))})
    with inside(both) as running:
        messages.wait(lambda m: states(m) == {"front": "running", "late": "failed"})
        late.write_text(f'file = "person.tflite"\n{Path(camera.model).read_text()}')
        running.reload(both)
        messages.wait(lambda m: states(m).get("late") == "running")
        assert "end" not in kinds(messages)


def test_a_loss_is_in_the_health_at_once(config: Config, messages: Messages, camera: StreamConfig) -> None:
    lost = replace(camera, source="v4l2:/dev/video99")
    rare = replace(config, streams={"front": camera, "gone": lost}, health=HealthConfig(3600.0))
    with inside(rare):
        messages.wait(lambda m: states(m) == {"front": "running", "gone": "lost"})


def test_a_daemon_without_streams_does_not_start(config: Config) -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        Daemon(replace(config, streams={})).run()


def test_a_state_folder_is_for_one_daemon(config: Config, messages: Messages) -> None:
    with inside(config):
        both_see(messages)
        with pytest.raises(StorageError, match="in use by another vedette"):
            Daemon(config).run()


def test_a_stream_that_hangs_is_left_behind(
    config: Config,
    messages: Messages,
    camera: StreamConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hangs, free, real = threading.Event(), threading.Event(), VideoPerception.process

    def look(self: VideoPerception, frame: Frame) -> StreamResult:
        if self.tracker.alive:
            hangs.set()
            free.wait(60.0)
        return real(self, frame)

    monkeypatch.setattr(VideoPerception, "process", look)
    streams = {"front": camera}
    with inside(replace(config, streams=streams), stop_times=StopTimes(drain=20.0)) as running:
        messages.wait(lambda m: "new" in kinds(m) and hangs.is_set())
        running.daemon.request_stop()
        running.wait()
    free.set()
    assert any("did not stop in" in record.getMessage() for record in caplog.records)
    assert stopped(messages)


def test_a_stream_that_hangs_in_its_turn_leaves_the_model_to_the_others(
    config: Config, messages: Messages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free, real = threading.Event(), CpuSession.invoke

    def invoke(session: CpuSession) -> None:
        if threading.current_thread().name == "stream-front" and "new" in kinds(messages):
            free.wait(60.0)
        real(session)

    monkeypatch.setattr(CpuSession, "invoke", invoke)
    monkeypatch.setattr("agent.compute.infer.sharing._HANGS_S", 0.5)
    monkeypatch.setattr("agent.compute.infer.sharing.side_by_side", lambda *_: 1)
    with inside(config):
        wait_for(lambda: "an inference on cpu takes longer than" in caplog.text)
        hear(messages, 5, "back")
        free.set()
        hear(messages, 5)
        hear(messages, 5, "back")
    assert all(left_open(messages, stream) == set() for stream in ("front", "back"))


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_what_a_camera_still_sees_after_it_was_switched_off_is_not_published(
    config: Config, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, is_abandoned: bool
) -> None:
    inferences, operator = Inferences(monkeypatch), Operator(broker)
    publish = PublishConfig(detections=True, snapshot_every_s=0.05)
    cameras = {name: replace(one, publish=publish) for name, one in config.streams.items()}
    mqtt, messages = replace(config.mqtt, commands=True), operator.messages
    with inside(replace(config, streams=cameras, mqtt=mqtt)) as running:
        both_see(messages)
        front = running.daemon.runtime.streams["front"]
        messages.wait(lambda m: m.of(TOPICS.snapshot("front")))
        inferences.hang(2)
        time.sleep(_PATIENT_S)  # what came of inferences before has been sent then
        began = len(messages)
        front.parts.request_picture()
        operator.set("front", "enabled", "off")
        wait_for(lambda: front._abandoned_s if is_abandoned else front._stop.is_set())
        inferences.answer()
        wait_for(lambda: front.join(0.0))
        operator.wait_state("front", "enabled", "off")
        hear(messages, 3, "back")
        assert left_open(messages) == set()
    assert stopped(messages)  # and all that waited has been sent
    after = [(m.topic, m.payload) for m in list(messages)[began:]]
    assert {payload for topic, payload in after if topic == TOPICS.snapshot("front")} == {b""}
    assert {payload for topic, payload in after if topic == TOPICS.count("front", "person")} == {b"0"}
    assert TOPICS.detections("front") not in dict(after)
    assert {event.kind for event in events_of([p for t, p in after if t == TOPICS.events("front")])} == {"end"}
