"""Whether commands are taken from a broker: who may command a device is the broker's access list to say."""

from __future__ import annotations

import ipaddress

from agent.config import MqttConfig


def takes_commands(config: MqttConfig) -> bool:
    """As configured; else where the broker is on this machine, or knows us and so can know others."""
    if config.commands is not None:
        return config.commands
    return is_loopback(config.host) or bool(config.username or config.cert_file)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.", "ip6-localhost")
