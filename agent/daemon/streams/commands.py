"""Does what commands ask of a stream while it runs, or says why it cannot. Any thread may call these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from agent.daemon.clips.record_source import nothing_to_record
from agent.errors import CommandError

if TYPE_CHECKING:
    from agent.daemon.clips.stream_clips import StreamClips
    from agent.daemon.inspection import Inspection
    from agent.daemon.streams.pipeline import Input, Pipeline
    from agent.daemon.streams.stream import Stream
    from agent.daemon.teaching.lessons import Done as LessonDone
    from agent.daemon.teaching.opening import Taught
    from agent.daemon.teaching.taught import Lesson

_AT_WORK = ("running", "degraded")
"""States in which pictures or sound are handled."""


class StreamParts(Struct):
    """The parts of a stream that exist only while it runs; else None."""

    pipeline: Pipeline[Any] | None = None
    source: Input | None = None
    clips: StreamClips | None = None
    inspection: Inspection | None = None
    taught: Taught | None = None


def snapshot_now(stream: Stream) -> str:
    """Publish the next picture as the snapshot, and return when that is if not at once.

    Raises CommandError if there will be none.
    """
    if stream.has_sound:
        raise CommandError(f"stream {stream.name} has sound only: it has no pictures")
    pipeline, (state, detail) = stream.parts.pipeline, stream.status
    if pipeline is None or state not in _AT_WORK:
        raise CommandError(f"stream {stream.name} is {state}, so there is no picture{detail and f': {detail}'}")
    pipeline.request_snapshot()
    only_keys = "keyframes" in (stream.config.capture.decode, stream.budget.decode)
    captured = stream.captured
    waits = only_keys and captured is not None and captured.decoding == "keyframes"
    return "it comes with the next key frame: no other picture is decoded" if waits else ""


def record(stream: Stream, seconds: float) -> str:
    """Save a clip of the newest seconds and the next ones, and return its path.

    A clip's message is published when it is complete. Raises CommandError or StorageError with the reason.
    """
    if stream.config.clips is None:
        raise CommandError(f"stream {stream.name}: clips are off; [streams.{stream.name}.clips] turns them on")
    if (clips := stream.parts.clips) is None:
        raise nothing_to_record(stream.name, *stream.status)
    return clips.record(seconds, *stream.status)


def reset_line(stream: Stream, line: str) -> None:
    """Count the crossings of a line anew; empty: of all lines. Raises CommandError or StorageError."""
    pipeline, (state, detail) = stream.parts.pipeline, stream.status
    if not stream.config.lines:
        raise CommandError(f"stream {stream.name} has no lines")
    if pipeline is None or pipeline.lines is None:
        raise CommandError(f"stream {stream.name} is {state}: it counts nothing{detail and f': {detail}'}")
    pipeline.lines.reset(line)


def inspect(stream: Stream, part: str) -> str:
    """Announce a part that is in place now, and return its id.

    Raises CommandError if the stream does not inspect parts, or not now.
    """
    inspection, (state, detail) = stream.parts.inspection, stream.status
    if stream.config.inspection is None:
        raise CommandError(f"stream {stream.name} inspects no parts; [streams.{stream.name}.inspection] does")
    if stream.config.inspection.trigger == "every":
        raise CommandError(f"stream {stream.name} inspects every picture: no part is announced")
    if inspection is None or state not in _AT_WORK:
        raise CommandError(
            f"stream {stream.name} is {state}, so no part can be inspected{detail and f': {detail}'}"
        )
    try:
        return inspection.trigger(part)
    except CommandError as error:
        raise CommandError(f"stream {stream.name}: {error}") from None


def teach(stream: Stream, lesson: Lesson, done: LessonDone) -> None:
    """Learn what the next pictures show, or which word the next utterances are.

    `done` is called at the end, from another thread. Raises CommandError if nothing can be taught now.
    """
    _running_lessons(stream, "taught").teach(lesson, done)


def forget_state(stream: Stream, state: str, value: str) -> None:
    """Forget a state that was taught, or one value of it. Raises CommandError or StorageError."""
    _running_lessons(stream, "forgotten").forget(state, value)


def _running_lessons(stream: Stream, what: str) -> Taught:
    """Return the lessons of a stream, or raise CommandError that nothing is `taught`, or `forgotten`."""
    taught, config, (state, detail) = stream.parts.taught, stream.config, stream.status
    if state not in _AT_WORK:
        raise CommandError(f"stream {stream.name} is {state}, so nothing is {what}{detail and f': {detail}'}")
    if taught is not None:
        return taught
    if config.hides and not config.mask_model:
        raise CommandError(
            f"stream {stream.name}: mask_model is false: what is taught would be of what is hidden"
        )
    why = "inspects parts" if config.inspection else "infers parts of its pictures (`crop`, `gate.crop`)"
    if stream.has_sound:
        why = f"hears with {config.model}, which has its own words (speech-embedding is taught words)"
    raise CommandError(f"stream {stream.name} {why}: nothing is taught there")
