"""The configuration: one frozen struct per room. Reading a file is `agent.configfile`'s work.

Every field has a default except a stream's `source` and `model`, so the smallest file is three lines:

    [streams.front]
    source = "v4l2:/dev/video0"
    model = "nanodet"
"""

from __future__ import annotations

from msgspec import Struct

from agent.deviceconfig import DeviceConfig as DeviceConfig
from agent.deviceconfig import Durability as Durability
from agent.deviceconfig import DurabilityConfig as DurabilityConfig
from agent.deviceconfig import FallbackConfig as FallbackConfig
from agent.deviceconfig import HealthConfig as HealthConfig
from agent.deviceconfig import HomeAssistantConfig as HomeAssistantConfig
from agent.deviceconfig import Kind as Kind
from agent.deviceconfig import MqttConfig as MqttConfig
from agent.deviceconfig import Seconds as Seconds
from agent.deviceconfig import SelectionConfig as SelectionConfig
from agent.deviceconfig import StorageConfig as StorageConfig
from agent.deviceconfig import ThermalConfig as ThermalConfig
from agent.streamconfig import CaptureConfig as CaptureConfig
from agent.streamconfig import ClipsConfig as ClipsConfig
from agent.streamconfig import Count as Count
from agent.streamconfig import DecodeConfig as DecodeConfig
from agent.streamconfig import GateConfig as GateConfig
from agent.streamconfig import LadderConfig as LadderConfig
from agent.streamconfig import Name as Name
from agent.streamconfig import Patience as Patience
from agent.streamconfig import PublishConfig as PublishConfig
from agent.streamconfig import StreamConfig as StreamConfig
from agent.streamconfig import TrackConfig as TrackConfig
from agent.streamconfig import Unit as Unit
from agent.streamconfig import ZoneConfig as ZoneConfig


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
