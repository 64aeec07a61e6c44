"""The configuration: one frozen struct per room. Reading a file is `agent.config.load`'s work.

Every field has a default except a stream's `source` and `model`, so the smallest file is three lines:

    [streams.front]
    source = "v4l2:/dev/video0"
    model = "nanodet"
"""

from __future__ import annotations

from msgspec import Struct

from agent.config.device import (
    DeviceConfig,
    HealthConfig,
    HomeAssistantConfig,
    MqttConfig,
    SelectionConfig,
    StorageConfig,
    ThermalConfig,
)
from agent.config.stream import Name, StreamConfig


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        streams: by name.
        device: who we are.
        mqtt: the broker, or several.
        storage: the state folder, and what is kept in it.
        health: how often the device tells of itself.
        selection: how streams with `backend = "auto"` find what runs their model best.
        thermal: when it is too hot.
        homeassistant: how the device announces itself there.
    """

    streams: dict[Name, StreamConfig] = {}
    device: DeviceConfig = DeviceConfig()
    mqtt: MqttConfig = MqttConfig()
    storage: StorageConfig = StorageConfig()
    health: HealthConfig = HealthConfig()
    selection: SelectionConfig = SelectionConfig()
    thermal: ThermalConfig = ThermalConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
