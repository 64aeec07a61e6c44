"""Entities of Home Assistant: their fields, names and availability, for the features that give some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agent.comms.topics import Topics

Component = dict[str, Any]
_ONLINE: Component = {"value_template": "{{ value | replace('stopped', 'offline') }}"}
"""`stopped` counts as offline: Home Assistant ignores a payload that it does not expect."""
_FRESH_MS = 60_000
"""Age from which a word triggers nothing: it waited for the broker, and must not switch a lamp on now."""
_WATCHING = ("running", "degraded")
"""States in which a count is known; in the others the entities of counts are unavailable."""


def entity(platform: str, name: str, **more: Any) -> Component:
    """Return an entity of a platform of Home Assistant, with its further fields."""
    return {"platform": platform, "name": name, **more}


def button(topics: Topics, stream: str, verb: str, *words: str, payload: str = "now", **more: Any) -> Component:
    """Return a button that gives a command while the stream would execute it."""
    press = {"command_topic": topics.set(stream, verb), "payload_press": payload, "qos": 1, **more}
    return entity("button", display_name(stream, *words), **press, **while_watching(topics, stream))


def keyword_entity(topics: Topics, stream: str, words: Sequence[str]) -> Component:
    """Return the event of a word that was heard."""
    is_new = (
        f"value_json.kind == 'keyword' and value_json.latency_ms.total < {_FRESH_MS} "
        "and value_json.id != this.attributes.get('id')"
    )
    event = "{'event_type': value_json.track.label, 'score': value_json.track.score, 'id': value_json.id}"
    return entity(
        "event",
        display_name(stream, "word heard"),
        state_topic=topics.events(stream),
        event_types=list(words),
        value_template=f"{{% if {is_new} %}}{{{{ {event} | to_json }}}}{{% endif %}}",
        qos=1,
    )


def stream_id(stream: str, *parts: str) -> str:
    """Return the id of an entity of a stream. Its parts have no dot, so that it is unique."""
    return ".".join((stream, *parts))


def available(topics: Topics) -> list[Component]:
    """Return the availability of the device's entities."""
    return [{"topic": topics.status, **_ONLINE}]


def while_watching(topics: Topics, stream: str) -> Component:
    """Return the fields that make an entity unavailable while its stream handles nothing."""
    return _while(topics, stream, f"in {list(_WATCHING)}")


def unless_disabled(topics: Topics, stream: str) -> Component:
    """Return the availability of a picture: what Home Assistant shows of a deleted one is empty."""
    return _while(topics, stream, "not in ['disabled', none]")


def _while(topics: Topics, stream: str, condition: str) -> Component:
    """Return the availability of what is known while a condition on the stream's state holds."""
    state = f"value_json.streams.get('{stream}', {{}}).get('state')"
    template = f"{{{{ 'online' if {state} {condition} else 'offline' }}}}"
    watching = {"topic": topics.health, "value_template": template}
    return {"availability": [*available(topics), watching], "availability_mode": "all"}


def display_name(*parts: str) -> str:
    """Join parts to a name: `front_door`, `Bark` → `Front door bark`."""
    words = " ".join(_in_a_sentence(part) for part in parts if part.strip())
    return words[:1].upper() + words[1:]


def _in_a_sentence(part: str) -> str:
    words = " ".join(re.sub(r"[_-]+", " ", part).split())
    is_acronym = words[1:2].isupper()
    return words if is_acronym else words[:1].lower() + words[1:]
