"""Whether commands are taken from a broker: who may command a device is the broker's access list to say."""

from __future__ import annotations

import ipaddress

from agent.comms.fallback import brokers_of
from agent.config import MqttConfig


def takes_commands(config: MqttConfig) -> bool:
    """As configured; else where every broker is on this machine, or knows us and so can know others."""
    if config.commands is not None:
        return config.commands
    return all(is_loopback(one.host) or one.username or one.cert_file for one in brokers_of(config))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.", "ip6-localhost")
