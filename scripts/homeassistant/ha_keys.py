"""Which keys of a discovery message Home Assistant leaves aside: run by its Python, JSON in and JSON out.

It drops a key that it does not know without a word: a misspelt one would never be noticed. Its own schema tells.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from typing import Any

from homeassistant.core import HomeAssistant


async def dropped(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By entity: keys that are dropped, or why the whole of it is."""
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        hass = HomeAssistant(folder)  # schemas with templates ask for one
        for one in found:
            platform = one["entity_id"].partition(".")[0]
            schema = importlib.import_module(f"homeassistant.components.mqtt.{platform}").DISCOVERY_SCHEMA
            try:
                kept = schema(one["payload"])
            except Exception as error:
                answers[one["entity_id"]] = [f"refused: {error}"]
                continue
            if lost := sorted(set(one["payload"]) - set(kept) - {"platform"}):
                answers[one["entity_id"]] = lost
        await hass.async_stop(force=True)
    return answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(dropped(json.load(sys.stdin)))))
