"""`vedette models try`: run a model once on a picture or a recording, and show what it answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.compute.infer.backends import open_for_command
from agent.compute.manifest import Manifest, Model
from agent.config import DecodeConfig, GateConfig, PublishConfig, StreamConfig, TrackConfig
from agent.config.source_uri import SCHEMES, mask, parse
from agent.errors import ModelError, SourceError
from agent.models.library import open_model_without_root
from agent.text import attribute_texts, plain, plural
from agent.types import WHOLE, Attribute, AudioChunk, Box, Detection, Event, Frame, Samples

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.vision import DetectorResult, VideoPerception

_WIDTH, _STALL_S, _CHUNK_S = 100, 10.0, 0.1
_SOUNDS = (".wav", ".flac", ".ogg")
_LEAST = 0.001
"""Threshold at which the strongest result is looked for if none counts."""
_QUALITY = 90
_VALUES_SHOWN = 6
_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)


class TryOptions(Struct, frozen=True):
    """Options of `vedette models try`, see its help."""

    threshold: float | None = None
    variant: str = ""
    picture: Path | None = None
    force: bool = False
    as_json: bool = False


class PictureAnswer(Struct, frozen=True):
    """Answer of a model to a picture.

    Attributes:
        model: its name.
        sha256: of its file.
        variant: size or exit that answered.
        source: the picture's path or masked URI.
        size: width and height, pixels.
        threshold: least score that counts.
        detections: strongest first.
        strongest: the best one below the threshold, if none counts.
        attributes: what the secondary models of its manifest tell about each detection; empty: it names none.
        ms: `prepare`, `infer` and `decode` of a second run on one thread.
    """

    model: str
    sha256: str
    variant: str
    source: str
    size: tuple[int, int]
    threshold: float
    detections: tuple[Detection, ...]
    strongest: Detection | None
    ms: dict[str, float]
    attributes: tuple[dict[str, Attribute], ...] = ()


class HeardSound(Struct, frozen=True):
    """A word or a sound in a recording.

    Attributes:
        label: what it is.
        score: when it was told, 0..1.
        begin_s, end_s: from the beginning of the recording to the first and the last time that it was told, s.
    """

    label: str
    score: float
    begin_s: float
    end_s: float


class SoundAnswer(Struct, frozen=True):
    """Answer of a model to a recording.

    Attributes:
        model: its name.
        sha256: of its file.
        source: the recording's path or URI.
        seconds: its length.
        threshold: least score that counts.
        heard: in order.
        strongest: the best answer, if nothing is heard.
        refused: number of answers that were a word by their scores, and were refused by the verification.
    """

    model: str
    sha256: str
    source: str
    seconds: float
    threshold: float
    heard: tuple[HeardSound, ...]
    strongest: Detection | None = None
    refused: int = 0


def try_model(name: str, text: str, options: TryOptions) -> None:
    """Run a model on a picture or a recording, named by its path or URI, and print what it answers.

    Raises:
        ModelError: the model cannot be used. SourceError: there is no picture or recording, or it cannot be read.
    """
    _check_target(options, text)
    uri = _uri(text)  # a wrong path is told before the model is opened
    model = open_model_without_root(name, options.variant)
    if model.manifest.audio is not None:
        _try_sound(model, text, uri, options)
    else:
        _try_picture(model, text, uri, options)


def _check_target(options: TryOptions, text: str) -> None:
    picture = options.picture
    if picture is None:
        return
    if picture.suffix.lower() not in (".jpg", ".jpeg"):
        raise click.BadParameter(f"{picture}: expected the name of a .jpg file", param_hint="--picture")
    if picture.exists() and picture.resolve() == Path(text).resolve():
        raise ModelError(f"{picture}: would replace the picture that is read: choose another name")
    if picture.exists() and not options.force:
        raise ModelError(f"{picture}: exists; --force replaces it")


def _uri(text: str) -> str:
    """Return the URI of a source; empty: the text is the path of a picture.

    Raises:
        SourceError: it is neither a source nor a file.
    """
    if text.partition(":")[0] in SCHEMES and not _exists(text):
        return text
    path = Path(text)
    if not text:
        raise SourceError("expected the path of a picture or of a recording, or a URI; found nothing")
    if not _exists(text):
        raise SourceError(f"{text}: there is no such file; a camera is named by its URI: v4l2:/dev/video0")
    if path.is_dir():
        raise SourceError(f"{text}: is a folder: name one picture, or dir:{text}, whose first one is taken")
    if path.suffix.lower() in _SOUNDS:
        return f"wav:{quote(text)}"
    from agent.capture.local import SUFFIXES

    return "" if path.suffix.lower() in SUFFIXES else f"file:{quote(text)}"


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # the name is too long
        return False


def _config(model: Model, uri: str, options: TryOptions) -> StreamConfig:
    return StreamConfig(
        uri or "test:",
        model.path,
        variant=options.variant,
        backend="cpu",
        threads=1,
        gate=GateConfig(motion=False),
        decode=DecodeConfig(score_threshold=options.threshold),
        track=TrackConfig(min_hits=1),
        publish=PublishConfig(detections=True),
    )


def _threshold(model: Model, options: TryOptions) -> float:
    return model.manifest.output.score_threshold if options.threshold is None else options.threshold


def _try_picture(model: Model, text: str, uri: str, options: TryOptions) -> None:
    if uri and not parse(uri).gives_pictures:
        raise SourceError(f"{mask(text)}: gives sound, and {model.path} takes pictures")
    frame = _first_frame(text, uri)
    config = _config(model, uri, options)
    perception = _open_perception(config, model)
    with closing(perception):
        perception.infer_crop(frame, WHOLE)  # the first run is slower
        result = perception.infer_crop(frame, WHOLE)
        variant = "" if model.manifest.variants == Manifest().variants else perception.answered_by[1]
        stage = perception.secondary
        attributes = stage.run_once(frame, result.detections) if stage is not None else ()
        strongest = None if result.detections else _strongest(perception, frame, config)
    height, width = frame.image.shape[:2]
    answer = PictureAnswer(
        model.manifest.name,
        model.sha256,
        variant,
        mask(text) if uri else text,
        (width, height),
        _threshold(model, options),
        tuple(result.detections),
        strongest,
        _milliseconds(result),
        tuple(attributes),
    )
    if options.picture is not None:
        _draw(options.picture, frame, answer)
    print_json(answer) if options.as_json else _print_picture(answer, options.picture)


def _open_perception(config: StreamConfig, model: Model) -> VideoPerception:
    from agent.compute.vision import VideoPerception
    from agent.daemon.streams.perception import open_perception

    found = open_perception("try", config, model, open_for_command, open_model_without_root)
    assert isinstance(found, VideoPerception)
    return found


def _strongest(perception: VideoPerception, frame: Frame, config: StreamConfig) -> Detection | None:
    """Return the best result below the threshold."""
    perception.configure(replace(config, decode=replace(config.decode, score_threshold=_LEAST)))
    return next(iter(perception.infer_crop(frame, WHOLE).detections), None)


def _milliseconds(result: DetectorResult) -> dict[str, float]:
    times = {"prepare": result.prepare, "infer": result.infer, "decode": result.decode}
    return {name: round(one / 1e6, 3) for name, one in times.items()}


def _first_frame(text: str, uri: str) -> Frame:
    """Return a picture from a file, or the first one of a source."""
    if not uri:
        from agent.capture.local import read_picture

        image = read_picture(Path(text))
        if image is None:
            raise SourceError(f"{text}: cannot be decoded as a picture")
        return Frame(image, "try", 0, 0, _BEGIN)
    from agent.capture.source import open_source

    source = open_source(uri, stall_s=_STALL_S)
    with closing(source):
        image = source.read(None)
        if image is None:
            raise SourceError(f"{mask(text)}: gives no picture")
        return Frame(image.copy(), "try", 0, 0, _BEGIN, source.order)


def _draw(path: Path, frame: Frame, answer: PictureAnswer) -> None:
    from agent.compute.drawing import annotate_detections, jpeg
    from agent.storage.files import write_atomic

    drawn = annotate_detections(frame.image, answer.detections, order=frame.order, attributes=answer.attributes)
    write_atomic(path, jpeg(drawn, _QUALITY, frame.order))


def _print_picture(answer: PictureAnswer, picture: Path | None) -> None:
    if answer.detections:
        columns = ("what", "score", "box, pixels", "more")
        table = open_table(*columns, right=("score",))
        for one, told in zip(answer.detections, answer.attributes or itertools.repeat({}), strict=False):
            more = ", ".join(filter(None, (_more(one), *_told(told))))
            table.add_row(plain(one.label), f"{one.score:.2f}", _box(one.box, answer.size), more)
        console(_WIDTH, markup=False).print(table)
    else:
        click.echo(f"nothing with a score of {answer.threshold:g} or more{_best(answer.strongest)}")
    size, ms = f"{answer.size[0]}×{answer.size[1]}", answer.ms
    variant = f" {plain(answer.variant)}" if answer.variant else ""
    click.echo(
        f"{size} pixels, {plain(answer.model)}{variant}: {ms['prepare']:.1f} ms to prepare, {ms['infer']:.1f} to "
        f"infer, {ms['decode']:.1f} to decode, on one thread"
    )
    if picture is not None:
        click.echo(f"{plain(str(picture))}: written", err=True)


def _best(strongest: Detection | None) -> str:
    return f"; the strongest is {plain(strongest.label)} with {strongest.score:.2f}" if strongest else ""


def _told(attributes: Mapping[str, Attribute]) -> list[str]:
    texts = attribute_texts(attributes)
    return [plain(f"{name}: {text} {attributes[name].score:.2f}") for name, text in texts]


def _box(box: Box | None, size: tuple[int, int]) -> str:
    if box is None:
        return NO_VALUE
    x0, y0, x1, y1 = (round(part * side) for part, side in zip(box, (*size, *size), strict=True))
    return f"{x0}, {y0} to {x1}, {y1}"


def _more(one: Detection) -> str:
    found = [plural(len(one.keypoints), "keypoint")] if one.keypoints else []
    found += [f"{value:.4g}" for value in one.values[:_VALUES_SHOWN]]
    found += [f"… {plural(len(one.values), 'number')}"] if len(one.values) > _VALUES_SHOWN else []
    found += [] if one.area is None else [f"{one.area:.0%} of the picture"]
    return ", ".join(found)


def _try_sound(model: Model, text: str, uri: str, options: TryOptions) -> None:
    if options.picture is not None:
        raise ModelError(f"{model.path}: takes sound, of which no picture is made")
    if not uri or parse(uri).scheme != "wav":
        raise SourceError(f"{mask(text)}: {model.path} takes sound: give a WAV, FLAC or OGG file")
    from agent.capture.audio_file import read_whole
    from agent.compute.decode.classes import KeywordOptions
    from agent.compute.hearing import AudioPerception
    from agent.daemon.streams.perception import open_perception

    if model.manifest.is_embedding:
        raise ModelError(
            f"{model.path}: gives embeddings, and no words before it is taught some: run it in a stream, and see "
            "`vedette guide teaching`"
        )
    config = _config(model, uri, options)
    perception = open_perception("try", config, model, open_for_command)
    assert isinstance(perception, AudioPerception)
    answers: list[Detection] = []
    ignored = model.manifest.output.options.get("ignore", KeywordOptions().ignore)
    with closing(perception):
        samples = read_whole(Path(parse(uri).target), perception.rate_hz)
        heard = tuple(_heard(perception, samples, []))
        refused = perception.verifier.refused if perception.verifier is not None else 0
        if not heard:
            perception.configure(replace(config, decode=replace(config.decode, score_threshold=_LEAST)))
            for _ in _heard(perception, samples, answers):
                pass
    words = [one for one in answers if one.label not in ignored] or answers
    strongest = max(words, key=lambda one: one.score, default=None)
    seconds, threshold = len(samples) / perception.rate_hz, _threshold(model, options)
    answer = SoundAnswer(model.manifest.name, model.sha256, text, seconds, threshold, heard, strongest, refused)
    print_json(answer) if options.as_json else _print_sound(answer)


def _heard(perception: AudioPerception, samples: Samples, answers: list[Detection]) -> Iterator[HeardSound]:
    """Yield words when they end, and other sounds with their end. Append the model's answers to `answers`."""
    rate, size = perception.rate_hz, round(_CHUNK_S * perception.rate_hz)
    end_ns, end = 0, _BEGIN
    for first in range(0, len(samples), size):
        part = samples[first : first + size]
        end_s = (first + len(part)) / rate
        end_ns, end = round(end_s * 1e9), _BEGIN + timedelta(seconds=end_s)
        chunk = AudioChunk(part, rate, "try", first, end_ns, end)
        result = perception.process(chunk)
        answers += result.detections or ()
        yield from map(_as_heard, filter(_is_last, result.events))
    yield from map(_as_heard, filter(_is_last, perception.finish(end_ns, end, "ended")))


def _is_last(event: Event) -> bool:
    return event.kind not in ("new", "update")


def _as_heard(event: Event) -> HeardSound:
    track = event.track
    return HeardSound(track.label, track.best_score, _seconds(track.first_seen), _seconds(track.last_seen))


def _seconds(at: datetime) -> float:
    return round((at - _BEGIN).total_seconds(), 3)


def _print_sound(answer: SoundAnswer) -> None:
    if answer.heard:
        table = open_table("s", "what", "score", right=("s", "score"))
        for one in answer.heard:
            until = f" to {one.end_s:.1f}" if one.end_s > one.begin_s else ""
            table.add_row(f"{one.begin_s:.1f}{until}", plain(one.label), f"{one.score:.2f}")
        console(_WIDTH, markup=False).print(table)
    else:
        click.echo(f"nothing with a score of {answer.threshold:g} or more{_best(answer.strongest)}")
    refused = f"; the verification refused {plural(answer.refused, 'answer')}" if answer.refused else ""
    click.echo(f"{answer.seconds:.1f} s of sound, {plain(answer.model)}{refused}")
