"""From whom commands are taken."""

from __future__ import annotations

from typing import Any

import pytest

from agent.comms.rights import takes_commands
from agent.config import FallbackConfig, MqttConfig


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, True),
        ({"host": "127.0.0.1"}, True),
        ({"host": "::1"}, True),
        ({"host": "192.168.1.2"}, False),
        ({"host": "broker.local"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "broker.local", "tls": True}, False),
        ({"host": "broker.local", "username": "porch"}, True),
        ({"host": "broker.local", "cert_file": "porch.pem"}, True),
        ({"host": "broker.local", "commands": True}, True),
        ({"fallback": (FallbackConfig("127.0.0.2"),)}, True),
        ({"fallback": (FallbackConfig("broker.local"),)}, False),
        ({"username": "porch", "fallback": (FallbackConfig("broker.local"),)}, True),
        ({"username": "porch", "fallback": (FallbackConfig("broker.local", username=""),)}, False),
        ({"host": "localhost", "username": "porch", "commands": False}, False),
    ],
)
def test_commands_are_taken_where_the_broker_can_say_who_sends_them(fields: dict[str, Any], takes: bool) -> None:
    assert takes_commands(MqttConfig(**fields)) is takes
