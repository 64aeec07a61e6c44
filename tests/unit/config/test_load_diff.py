"""Settings that take effect after a restart, and those that do not need one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.config import Config, DeviceConfig, HealthConfig, StorageConfig
from agent.config.load import keep_until_restart, names
from agent.config.servers import MqttConfig
from agent.daemon.reload import describe_pending

OLD = Config(device=DeviceConfig("porch"))
durabilities = st.sampled_from(["event", "batch"])
storages = st.builds(
    StorageConfig,
    state_dir=st.sampled_from(["", "/a"]),
    clips_folder=st.sampled_from(["", "/b"]),
    spool_max_bytes=st.sampled_from([65536, 1 << 20]),
    history_max_bytes=st.sampled_from([0, 5]),
    durability=durabilities,
)
configs = st.builds(
    Config,
    device=st.builds(DeviceConfig, name=st.sampled_from(["", "porch"])),
    mqtt=st.builds(MqttConfig, host=st.sampled_from(["a", "b"]), prefix=st.sampled_from(["vedette", "eyes"])),
    storage=storages,
    health=st.builds(HealthConfig, every_s=st.sampled_from([1.0, 2.0])),
)


def test_what_waits_stays_as_it_is_and_the_rest_of_its_table_is_new() -> None:
    wanted = replace(
        OLD,
        device=DeviceConfig("shed"),
        mqtt=MqttConfig(host="other", prefix="eyes"),
        storage=StorageConfig("/x", clips_max_age_s=65536.0),
    )
    held, waiting = keep_until_restart(OLD, wanted)
    assert held == replace(OLD, mqtt=MqttConfig(host="other"), storage=StorageConfig(clips_max_age_s=65536.0))
    assert names(waiting) == ("device.name", "mqtt.prefix", "storage.state_dir")
    assert describe_pending([*waiting, ("storage", "clips_folder")]) == [
        "[device] name waits for a restart",
        "[mqtt] prefix waits for a restart",
        "[storage] state_dir, clips_folder wait for a restart",
    ]


@given(configs, configs)
def test_nothing_waits_twice_and_a_restart_brings_all_of_it(running: Config, wanted: Config) -> None:
    held, waiting = keep_until_restart(running, wanted)
    assert keep_until_restart(running, held) == (held, ()), "what is in use is nothing to wait for"
    assert keep_until_restart(held, wanted) == (held, waiting), "another reload of the same file says the same"
    assert keep_until_restart(held, running)[1] == (), "who takes it back waits for nothing"
    assert bool(waiting) or held == wanted
