"""Taught states or words as a part of their stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agent.comms.entities import (
    Component,
    display_name,
    entity,
    keyword_entity,
    stream_id,
    while_watching,
)
from agent.compute.states import UNSURE
from agent.config import StreamConfig
from agent.daemon.parts import Asked, EntityPlace, Parts, Reply, StreamContext
from agent.errors import CommandError
from agent.features.teaching.taught import FOLDER, stored_values

if TYPE_CHECKING:
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.features.teaching.lessons import Teaching

log = logging.getLogger(__name__)


def may_be_taught(config: StreamConfig) -> bool:
    """Return True unless a stream inspects parts, infers parts of its pictures, or infers what is hidden."""
    shows_hidden = config.hides and not config.mask_model
    return not (config.inspection or config.shows_part or shows_hidden)


def known_values(name: str, config: StreamConfig, state: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of each state that a stream was taught, from the files below the daemon's state folder.

    Files of a stream that can be taught nothing now are kept, and do not count.
    """
    return stored_values(state / FOLDER, name) if may_be_taught(config) else {}


def open_part(context: StreamContext, _: Parts) -> Teaching | None:
    """Read what a stream was taught; None: it can be taught nothing."""
    manifest = context.perception.model.manifest
    if not may_be_taught(context.config) or (manifest.audio is not None and not manifest.is_embedding):
        return None
    folder = (context.state or Path()) / FOLDER
    if manifest.audio is not None:
        from agent.features.teaching.words import StreamWords

        hearing = cast("UtterancePerception", context.perception)
        return StreamWords(context.name, folder, hearing, context.reporter)
    from agent.features.teaching.states import StreamStates

    vision = cast("VideoPerception", context.perception)
    return StreamStates(context.name, folder, vision, context.reporter)


def teach(asked: Asked) -> None:
    """Begin a lesson, which is answered at its end. Raises CommandError if nothing can be taught now."""
    from agent.features.teaching.taught import Lesson

    command = asked.command

    def done(result: dict[str, Any] | None, why: str) -> None:
        if result is None:
            log.warning("stream %s: state %s was not taught: %s", command.stream, command.state, why)
        asked.answer(result, why)

    lesson = Lesson(command.state, command.name, command.examples, command.region)
    _taught(asked.stream, "taught").teach(lesson, done)


def forget(asked: Asked) -> Reply:
    """Forget a state that was taught, or one value of it. Raises CommandError or StorageError."""
    _taught(asked.stream, "forgotten").forget(asked.command.state, asked.command.name)
    return "", {}


def _taught(stream: Any, what: str) -> Any:
    """Return the lessons of a stream, or raise CommandError that nothing is `taught`, or `forgotten`."""
    config, (state, detail) = stream.config, stream.status
    if not stream.is_at_work:
        raise CommandError(f"stream {stream.name} is {state}, so nothing is {what}{detail and f': {detail}'}")
    if (part := stream.open_part("teaching")) is not None:
        return part
    if config.hides and not config.mask_model:
        raise CommandError(
            f"stream {stream.name}: mask_model is false: what is taught would be of what is hidden"
        )
    why = "inspects parts" if config.inspection else "infers parts of its pictures (`crop`, `gate.crop`)"
    if stream.has_sound:
        why = f"hears with {config.model}, which has its own words (speech-embedding is taught words)"
    raise CommandError(f"stream {stream.name} {why}: nothing is taught there")


_STATE = "{{ value_json.value if value_json is defined else 'None' }}"
"""A state is unknown where its topic is empty: `None` says so."""


def entities(place: EntityPlace) -> Iterator[tuple[str, Component]]:
    """Yield the entities of a stream, by id."""
    topics, name, publish = place.topics, place.name, place.config.publish
    taught = place.part.values if place.part is not None else known_values(name, place.config, place.state)
    if place.kind == "words":
        if taught and publish.events:
            words = tuple(dict.fromkeys(word for words in taught.values() for word in words))
            yield stream_id(name, "keyword"), keyword_entity(topics, name, words)
        return
    for state, values in taught.items() if publish.counts else ():
        topic = {"state_topic": topics.sensor(name, state), **while_watching(topics, name)}
        value = {"device_class": "enum", "options": [*values, UNSURE], "value_template": _STATE}
        yield stream_id(name, "sensor", state), entity("sensor", display_name(name, state), **value, **topic)
