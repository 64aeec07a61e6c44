"""The client id: stable for a machine and a device, and different on every other."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from agent.comms.topics import Topics

_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def client_id(topics: Topics) -> str:
    """23 letters and digits, the most that every broker must accept (MQTT 3.1.1, section 3.1.3.1).

    The machine's id itself is confidential (machine-id(5)), so it is hashed.
    """
    secret = f"{_machine_id()}\0{topics.prefix}\0{topics.device}"
    return "vedette" + hashlib.sha256(secret.encode()).hexdigest()[:16]


def _machine_id() -> str:
    for path in _MACHINE_IDS:
        try:
            if text := path.read_text(encoding="ascii").strip():
                return text
        except (OSError, ValueError):
            continue
    return f"{uuid.getnode():012x}"
