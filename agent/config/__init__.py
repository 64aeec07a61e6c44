"""The configuration: one frozen struct per table. `agent.config.load` reads a file.

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
        device: name of this device, and the board's profile.
        mqtt: the broker, or several.
        storage: the state folder, and what is kept in it.
        health: how often health is published.
        selection: how streams with `backend = "auto"` choose their backend.
        thermal: limit of the board's temperature.
        homeassistant: how the device announces itself to Home Assistant.
    """

    streams: dict[Name, StreamConfig] = {}
    device: DeviceConfig = DeviceConfig()
    mqtt: MqttConfig = MqttConfig()
    storage: StorageConfig = StorageConfig()
    health: HealthConfig = HealthConfig()
    selection: SelectionConfig = SelectionConfig()
    thermal: ThermalConfig = ThermalConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
