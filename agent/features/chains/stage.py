"""Runs secondary models on the objects that a stream's first model finds, and keeps what they tell as attributes.

One picture costs at most `max_objects` runs of each model: what appears comes first, then what waits longest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.infer.session import Opener, Session, SessionOptions
from agent.compute.manifest import Model
from agent.compute.states import Floats
from agent.compute.track.tracker import Tracker
from agent.compute.vision import build_detector
from agent.config import DecodeConfig, StreamConfig
from agent.config.features import SecondaryConfig
from agent.errors import ModelError, SourceError, reason_of
from agent.features.chains.rules import AttributeVotes, area_of, chosen, crop_of, shorter_side
from agent.models.library import prefixed_errors
from agent.text import plain
from agent.types import WHOLE, Attribute, Box, Detection, Event, Frame, Image, Track

REASON = "attribute"
"""Reason of an update because a secondary model tells something else."""
_LESS = ("clearer", "still here")
"""Reasons of updates that tell less than that."""


log = logging.getLogger(__name__)
MOST, LARGEST_PIXELS = 200, 4_000_000
"""Most pictures of a gallery, and pixels of each: all are run through the model when the stream is opened, within
the time after which a stream counts as stuck."""
_HEAD = 65_536
"""Bytes of a file in which the size of its picture is looked for."""


class GalleryFolder:
    """Pictures of a gallery, in the order of their paths. They are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Find the pictures.

        Raises:
            ModelError: there is no such folder, it cannot be read, or it has no pictures in sub-folders, or too
                many.
        """
        from agent.capture.local import SUFFIXES

        self._folder = folder
        try:
            if not folder.is_dir():
                raise ModelError(f"gallery {folder}: there is no such folder")
            found = self._files()
        except OSError as error:
            raise ModelError(f"gallery {folder}: cannot be read: {reason_of(error)}") from error
        if not found:
            raise ModelError(
                f"gallery {folder}: no pictures ({', '.join(SUFFIXES)}); expected a sub-folder for each name, "
                f"such as {folder / 'anna' / '1.jpg'}"
            )
        if len(found) > MOST:
            raise ModelError(f"gallery {folder}: {len(found)} pictures; at most {MOST} can be used")

    def _files(self) -> list[Path]:
        from agent.capture.local import SUFFIXES

        paths = (path for path in sorted(self._folder.glob("*/*")) if path.suffix.lower() in SUFFIXES)
        return [path for path in paths if path.is_file()]  # a pipe would block

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Path, size and time of change of each picture now; empty: the folder cannot be read."""
        try:
            files = ((path, path.stat()) for path in self._files())
            return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in files)
        except OSError:
            return ()

    def read(self) -> Iterator[tuple[str, Image]]:
        """Yield the name and the picture, H×W×3 uint8 BGR, of each file; warn of files that are left out.

        Raises:
            ModelError: no file is a picture that can be used.
        """
        from agent.capture.local import read_picture

        used = 0
        for path in self._files():
            try:
                _check_size(path)
                image = read_picture(path)
                if image is None:
                    raise SourceError("cannot be decoded as a picture")
            except (SourceError, OSError) as error:
                log.warning("gallery: %s is left out: %s", path, error)
                continue
            used += 1
            yield plain(path.parent.name), image
        if not used:
            raise ModelError(f"gallery {self._folder}: none of its files is a picture that can be used")


def _check_size(path: Path) -> None:
    from agent.capture.source import header_size

    with path.open("rb") as file:
        width, height = header_size(file.read(_HEAD)) or (0, 0)
    if width * height > LARGEST_PIXELS:
        raise SourceError(
            f"{width}x{height} pixels; expected at most {LARGEST_PIXELS // 10**6} megapixels: crop it"
        )


class KnownVectors:
    """Embeddings of known things, to find the one that another embedding is most like.

    Likeness is the cosine of the angle between two vectors, as face and product embeddings are trained for.
    """

    def __init__(self, examples: Iterable[tuple[str, Sequence[float]]], threshold: float) -> None:
        """Keep the vectors, all of one size; what is less like than `threshold`, 0..1, is unknown."""
        found = [(name, np.asarray(values, np.float32)) for name, values in examples]
        self._names = [name for name, _ in found]
        self._vectors = np.stack([_unit(vector) for _, vector in found])
        self._threshold = threshold

    def name(self, values: Sequence[float]) -> list[Detection]:
        """Return the name of the likest known thing, with its likeness as score; empty: it is unknown."""
        likeness = self._vectors @ _unit(np.asarray(values, np.float32))
        best = int(likeness.argmax())
        score = float(likeness[best])
        return [Detection(self._names[best], min(1.0, score))] if score >= self._threshold else []


def _unit(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector


class SecondaryModel(Struct, frozen=True):
    """A secondary model in memory.

    Attributes:
        config: when it is run, and on what.
        model: see `Model`.
        then: models that are run on what it finds.
        gallery: pictures of known things; None: what the model tells is the answer.
    """

    config: SecondaryConfig
    model: Model
    then: tuple[SecondaryModel, ...] = ()
    gallery: GalleryFolder | None = None

    def chain(self) -> Iterator[SecondaryModel]:
        """Yield it and the models after it."""
        yield self
        for one in self.then:
            yield from one.chain()


Answers = dict[str, list[Detection]]
"""Detections in one object, strongest first, by the name of the secondary model."""


class SecondaryDetector:
    """Runs one secondary model, and those after it, on parts of frames. For one thread."""

    def __init__(self, secondary: SecondaryModel, opener: Opener, backend: str, options: SessionOptions) -> None:
        """Open the models; if that fails, the opener closes the sessions.

        Raises:
            ModelError: a model is broken, cannot run here, takes no picture or does not fit its decoder.
            BackendError: the backend cannot be used.
        """
        self.config, model = secondary.config, secondary.model
        answers, pattern = self.config.answers, self.config.pattern
        asked = DecodeConfig(score_threshold=self.config.score_threshold, labels=answers, pattern=pattern)
        stream = StreamConfig("", model.path, variant=self.config.variant, decode=asked)
        with prefixed_errors(model.path):
            self._session = opener(model, backend, options)
            self._detector = build_detector(self._session, model, stream)
            self._known = self._read_gallery(secondary)
        self._then = [SecondaryDetector(one, opener, backend, options) for one in secondary.then]

    def run(self, frame: Frame, box: Box, into: Answers) -> None:
        """Add the answers about the part of a frame that a box covers. Raises BackendError if a model fails."""
        height, width = frame.shape[:2]
        crop = crop_of(box, self.config, width, height)
        if shorter_side(box, width, height) < self.config.min_pixels:
            return
        found = self._detector.run(frame, crop).detections
        if self._known is not None:
            found = self._known.name(found[0].values) if found else []
        into[self.config.name] = found
        for then in self._then:
            if found and (not then.config.labels or found[0].label in then.config.labels):
                then.run(frame, found[0].box or box, into)

    def sessions(self) -> Iterator[tuple[str, Session]]:
        """Yield the name and the session of it and of the models after it."""
        yield self.config.name, self._session
        for one in self._then:
            yield from one.sessions()

    def _read_gallery(self, secondary: SecondaryModel) -> KnownVectors | None:
        if secondary.gallery is None:
            return None
        threshold = self.config.score_threshold
        if threshold is None:
            threshold = secondary.model.manifest.output.score_threshold
        return KnownVectors(((name, self._embed(image)) for name, image in secondary.gallery.read()), threshold)

    def _embed(self, image: Image) -> Sequence[float]:
        frame = Frame(image, "", 0, 0, datetime.min)
        return self._detector.run(frame, WHOLE).detections[0].values

    def close(self) -> None:
        """Release the models."""
        for one in self._then:
            one.close()
        self._session.close()


_Votes = dict[str, AttributeVotes]
"""Answers about one object, by name of the attribute."""


class SecondaryStage:
    """Keeps the attributes of one stream's tracks. For one thread."""

    def __init__(self, models: Sequence[SecondaryModel], opener: Opener, stream: StreamConfig) -> None:
        """Open the models, on the stream's backend; see `SecondaryDetector` for what is raised."""
        self._whole = stream.crop
        self._configs = [{each.config.name: each.config for each in one.chain()} for one in models]
        self._known: dict[str, list[_Votes]] = {}
        options = SessionOptions(threads=stream.threads, priority=stream.service.priority)
        self._detectors = [SecondaryDetector(one, opener, stream.backend, options) for one in models]

    def process(self, frame: Frame, tracker: Tracker, events: Sequence[Event]) -> list[Event]:
        """Run the models on the objects of a frame that was inferred; return its events with attributes.

        What has another value now, and no event in this frame, gets an update.

        Raises:
            BackendError: a model fails.
        """
        tracks = {track.id: track for track in tracker.tracks()}
        self._known = {name: one for name, one in self._known.items() if name in tracks}
        seen = [track for track in tracks.values() if track.last_seen == frame.captured_at]
        changed = set[str]()
        for number, detector in enumerate(self._detectors):
            changed |= self._run(number, detector, frame, seen)
        if not changed and not self._known:
            return list(events)
        attributes = {name: _joined(known) for name, known in self._known.items()}
        tracker.set_attributes(attributes)
        return list(_with_attributes(events, changed, tracks, attributes))

    def _run(self, number: int, detector: SecondaryDetector, frame: Frame, seen: Sequence[Track]) -> set[str]:
        """Run one model on the objects that are due; return the ids of those with another value now."""
        labels, now_ns, changed = detector.config.labels, frame.captured_ns, set[str]()
        height, width = frame.shape[:2]
        boxes = {
            track.id: track.box or self._whole
            for track in seen
            if (not labels or track.label in labels)
            and shorter_side(track.box or self._whole, width, height) >= detector.config.min_pixels
        }
        first = detector.config.name
        waits = [
            (self._of(name, number)[first].due_in(now_ns, area_of(box)), name) for name, box in boxes.items()
        ]
        for name in chosen(waits, detector.config.max_objects):
            answers: Answers = {}
            detector.run(frame, boxes[name], answers)
            votes, area = self._of(name, number), area_of(boxes[name])
            for one, found in answers.items():
                if votes[one].add(found, now_ns, area):
                    changed.add(name)
        return changed

    def _of(self, track: str, number: int) -> _Votes:
        if track not in self._known:
            self._known[track] = [_votes(configs) for configs in self._configs]
        return self._known[track][number]

    def run_once(self, frame: Frame, detections: Iterable[Detection]) -> list[dict[str, Attribute]]:
        """Return the attributes of detections in one frame, without tracks. Raises BackendError."""
        found = []
        for one in detections:
            answers: Answers = {}
            for detector in self._detectors:
                if not detector.config.labels or one.label in detector.config.labels:
                    detector.run(frame, one.box or self._whole, answers)
            votes = [_votes(configs) for configs in self._configs]
            for some in votes:
                for name, vote in some.items():
                    vote.add(answers.get(name, ()), frame.captured_ns, 1.0)
            found.append(_joined(votes))
        return found

    @property
    def degraded(self) -> str:
        """Why the CPU answers instead of the requested backend; empty: it does not."""
        found = (f"{name}: {one.degraded}" for name, one in self._sessions() if one.degraded)
        return next(found, "")

    @property
    def description(self) -> str:
        """Names of the attributes and where their models run, for people."""
        return ", ".join(f"{name} on {one.backend}" for name, one in self._sessions())

    def _sessions(self) -> Iterator[tuple[str, Session]]:
        return (pair for one in self._detectors for pair in one.sessions())

    def close(self) -> None:
        """Release the models."""
        for one in self._detectors:
            one.close()


def _votes(configs: Mapping[str, SecondaryConfig]) -> _Votes:
    return {name: AttributeVotes(config) for name, config in configs.items()}


def _joined(votes: Iterable[_Votes]) -> dict[str, Attribute]:
    return {name: one.attribute for some in votes for name, one in some.items() if one.attribute is not None}


def _with_attributes(
    events: Sequence[Event],
    changed: set[str],
    tracks: Mapping[str, Track],
    attributes: Mapping[str, dict[str, Attribute]],
) -> Iterator[Event]:
    """Yield events with what is known now, and an update of each other track that has changed."""
    told = set[str]()
    for event in events:
        known = attributes.get(event.track.id)
        told.add(event.track.id)
        reason = REASON if event.track.id in changed and event.reason in _LESS else event.reason
        yield (
            event
            if known is None
            else replace(event, track=replace(event.track, attributes=known), reason=reason)
        )
    for name in sorted(changed - told):
        yield Event("update", replace(tracks[name], attributes=attributes[name]), REASON)
