"""Whether commands are taken from the brokers of a configuration: only where a broker can tell who sends them."""

from __future__ import annotations

from agent.comms.address import shown_host
from agent.comms.credentials import port
from agent.comms.fallback import brokers_of
from agent.config import MqttConfig


def takes_commands(config: MqttConfig) -> bool:
    """Return whether commands are taken, see `MqttConfig.commands`."""
    return not commands_off(config)


def commands_off(config: MqttConfig) -> str:
    """Return why no commands are taken, and what would change that; empty: they are taken.

    A broker that does not authenticate this device may let anybody on the network in. One on this machine is no
    exception: it may listen on the network, too.
    """
    if config.commands is not None:
        return "" if config.commands else "[mqtt] commands = false"
    for one in brokers_of(config):
        if not authenticates(one):
            where = f"{shown_host(one.host)}:{port(one)}"
            return (
                f"the broker {where} is used without a password or a client certificate, so "
                "it may let anybody on the network in; set [mqtt] username and password_file, or commands = true"
            )
    return ""


def authenticates(config: MqttConfig) -> bool:
    """Return whether this device proves to the broker who it is: by a password or a client certificate."""
    return bool(config.cert_file or (config.username and config.password_file))
