"""From whom commands are taken."""

from __future__ import annotations

from typing import Any

import pytest

from agent.comms.mqtt.endpoint import commands_allowed, commands_off
from agent.config import FallbackConfig, MqttConfig

LOGIN: dict[str, Any] = {"username": "porch", "password_file": "secret"}


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, False),
        ({"host": "127.0.0.1"}, False),
        ({"username": "porch"}, False),
        ({"username": "porch", "password_file": "secret"}, True),
        ({"host": "192.168.1.2"}, False),
        ({"host": "broker.local"}, False),
        ({"host": "broker.local", "tls": True}, False),
        ({"host": "broker.local", "username": "porch"}, False),
        ({"host": "broker.local", "username": "porch", "password_file": "secret"}, True),
        ({"host": "broker.local", "cert_file": "porch.pem"}, True),
        ({"host": "broker.local", "commands": True}, True),
        ({"commands": True, "fallback": (FallbackConfig("127.0.0.2"),)}, True),
        ({"cert_file": "porch.pem", "fallback": (FallbackConfig("broker.local"),)}, True),
        ({"cert_file": "porch.pem", "fallback": (FallbackConfig("broker.local", cert_file=""),)}, False),
        ({**LOGIN, "fallback": (FallbackConfig("broker.local"),)}, True),
        ({**LOGIN, "fallback": (FallbackConfig("broker.local", username=""),)}, False),
        ({**LOGIN, "host": "localhost", "commands": False}, False),
    ],
)
def test_commands_are_taken_where_the_broker_can_say_who_sends_them(fields: dict[str, Any], takes: bool) -> None:
    config = MqttConfig(**fields)
    assert commands_allowed(config) is takes
    assert bool(commands_off(config)) is not takes


def test_the_reason_names_the_broker_and_what_to_set() -> None:
    config = MqttConfig(**LOGIN, fallback=(FallbackConfig("spare.local", password_file=""),))
    assert "spare.local:1883" in commands_off(config)
    assert "[mqtt] username and password_file, or commands = true" in commands_off(config)
    assert commands_off(MqttConfig(commands=False)) == "[mqtt] commands = false"
