"""Creates and connects the paho client of one connection, from the `[mqtt]` configuration."""

from __future__ import annotations

from typing import Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.comms.mqtt.properties import will_properties
from agent.comms.mqtt.tls import port, read_credentials
from agent.config import MqttConfig

Protocol = Literal["5", "3.1.1"]
Will = tuple[str, bytes] | None

VERSIONS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}
LARGEST_WANTED = 256 * 1024
"""Maximum packet size that is announced to a broker of MQTT 5, bytes; the broker keeps larger packets to itself.
The largest that is needed is the discovery message: 150 kB for eight cameras with eight labels in two zones."""

_CONNECT_S = 5.0
"""Maximum time for TCP, and again for the TLS handshake."""


def create_client(config: MqttConfig, client_id: str, protocol: Protocol, will: Will) -> paho.Client:
    """Create a client that is not connected.

    Args:
        config: of the broker.
        client_id: of this device.
        protocol: to speak.
        will: topic and payload that the broker retains when the connection breaks; None: nothing.

    Raises:
        ConfigError: a file that the configuration names cannot be used.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        protocol=VERSIONS[protocol],
        transport=config.transport,
        reconnect_on_failure=False,
    )
    client.max_inflight_messages_set(0)  # unlimited: `ConnectionLoop` keeps to the broker's window
    if will is not None:
        client.will_set(*will, qos=1, retain=True, properties=will_properties() if protocol == "5" else None)
    client.ws_set_options(config.ws_path)
    credentials = read_credentials(config)
    if config.username:
        client.username_pw_set(config.username, credentials.password)
    if credentials.tls is not None:
        client.tls_set_context(credentials.tls)
    return client


def connect(client: paho.Client, config: MqttConfig, protocol: Protocol, timeout_s: float) -> None:
    """Connect, down to TLS and WebSocket, and queue the CONNECT packet.

    Args:
        client: of `create_client`.
        config: of the broker.
        protocol: to speak.
        timeout_s: maximum time for TCP, and again for TLS; resolving the name may take longer.

    Raises:
        OSError: the broker cannot be reached.
        ValueError: the host is not a valid name.
    """
    client.connect_timeout = max(0.05, min(timeout_s, _CONNECT_S))
    properties = None
    if protocol == "5":
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.MaximumPacketSize = LARGEST_WANTED
    try:
        client.connect(config.host, port(config), config.keepalive_s, properties=properties)
    except paho.WebsocketConnectionError as error:
        raise ConnectionError("it does not answer as a WebSocket; check [mqtt] port and ws_path") from error
