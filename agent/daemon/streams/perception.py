"""Checks and opens the perception of a stream: of pictures, of sound, or of utterances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from agent.comms.topics import Topics
from agent.compute.manifest import AUTO, ONLY_VARIANT, Model
from agent.config import StreamConfig
from agent.config.places import check_masks
from agent.config.source_uri import parse
from agent.daemon.parts import check_with_model
from agent.errors import ConfigError, VedetteError, about
from agent.features import FEATURES
from agent.models.library import open_model, prefixed_errors
from agent.types import WHOLE, Box

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import Opener, Session, SessionOptions
    from agent.compute.infer.vetting import Vetting
    from agent.compute.listening import UtterancePerception
    from agent.compute.vision import VideoPerception
    from agent.daemon.streams.extra_models import ExtraModels, OpenModel


PREPARE_S = 3.0
"""Longest wait of the daemon's thread for the vetting of a model, s; most need less, also on small boards."""
Perception = Union["VideoPerception", "AudioPerception", "UtterancePerception"]


def open_perception(
    name: str,
    config: StreamConfig,
    model: Model | None = None,
    opener: Opener | None = None,
    open_one: OpenModel = open_model,
) -> Perception:
    """Open a stream's model, unless that is open, and prepare every step of its processing.

    Without an opener `auto` is the CPU. `open_one` opens its other models.

    Raises:
        ConfigError: the source does not fit the model, or zones, labels or clips cannot be used.
        SourceError, ModelError: see `agent.config.source_uri.parse`, `agent.models.library.open_model`.
    """
    model = model or open_model(config.model, config.variants)
    takes_sound, address = model.manifest.audio is not None, parse(config.source)
    if not (address.gives_sound if takes_sound else address.gives_pictures):
        gives, takes = ("pictures", "sound") if takes_sound else ("sound", "pictures")
        text = f"stream {name}: {address.masked} gives {gives}, and model {config.model} takes {takes}"
        raise ConfigError(text, keys=("model",))
    _check_decode(name, config, model)
    _check_privacy(name, config, takes_sound=takes_sound)
    check_only_zones(config)
    _check_crop(name, config, model)
    check_live_settings(name, config, model)
    extra = _extra_models(name, config, model, open_one)
    with _closing(opener) as keeping:
        with prefixed_errors(model.path):
            opened = _open_first(name, config, model, keeping)
        for one in extra:
            one.attach(opened, keeping)
        opened.extra_models = extra
        return opened


def _open_first(name: str, config: StreamConfig, model: Model, opener: Opener) -> Perception:
    if model.manifest.audio is None:
        from agent.compute.vision import VideoPerception

        return VideoPerception(name, config, model, opener)
    if model.manifest.is_embedding:
        from agent.compute.listening import UtterancePerception

        return UtterancePerception(name, config, model, opener)
    from agent.compute.hearing import AudioPerception

    return AudioPerception(name, config, model, opener)


@contextmanager
def _closing(opener: Opener | None) -> Iterator[Opener]:
    """Yield an opener whose sessions are closed if the block fails: a session may be a process."""
    from agent.compute.infer.backends import open_session

    with ExitStack() as opened:

        def keeping(model: Model, backend: str, options: SessionOptions) -> Session:
            session = (opener or open_session)(model, backend, options)
            opened.callback(session.close)
            return session

        yield keeping
        opened.pop_all()


def prepare_perception(
    name: str,
    config: StreamConfig,
    model: Model | None = None,
    opener: Opener | None = None,
    vetting: Vetting | None = None,
) -> Perception | None:
    """Open a perception that needs no device; of others, check all that can be checked without the device.

    A model that is new on this board is vetted in a process of its own first, for at most `PREPARE_S` here.

    Returns:
        None: a device must be opened, a gallery read, or a new model is still being vetted. These may take long
        or hang, so the stream's own thread does them.

    Raises:
        ConfigError, SourceError, ModelError: see `open_perception`; BackendError: there is no such device here.
    """
    from agent.compute.infer.backends import opens_at_once, resolve_backend

    model = model or open_model(config.model, config.variants)
    if opens_at_once(config.backend):
        ready = is_vetted(name, config, model, vetting, PREPARE_S)
        ready = ready and not any(one.is_slow for one in _extra_models(name, config, model, open_model))
        return open_perception(name, config, model, opener) if ready else None
    resolve_backend(config.backend)
    from agent.compute.infer.tensors import NullBackend  # only for an accelerator

    open_perception(name, config, model, lambda given, _, options: NullBackend().open(given, options)).close()
    return None


def is_vetted(name: str, config: StreamConfig, model: Model, vetting: Vetting | None, wait_s: float) -> bool:
    """Wait up to `wait_s` for each model of a stream to be vetted, perhaps after others; return True if all are.

    Raises:
        ModelError: the model crashed the runtime, or cannot run. BackendError: it could not be tried now.
    """
    from agent.compute.infer.backends import opens_at_once
    from agent.compute.infer.session import SessionOptions
    from agent.compute.infer.vetting import VETTING

    if not opens_at_once(config.backend):
        return True
    opens = partial(open_model, wait_s=wait_s, vetting=vetting)
    extra = _extra_models(name, config, model, opens)
    models = model, *(each for one in extra for each, _ in one.models())
    check, options = (vetting or VETTING).check, SessionOptions(threads=config.threads)
    known = [check(each, options, wait_s) for each in models]  # all of them: one is vetted while another is
    return all(known)


def models_changed(name: str, config: StreamConfig, model: Model, variant: str, opened: Any) -> bool:
    """Return True if a file or a manifest of a stream's models has changed, or can no longer be used.

    Args:
        name: of the stream.
        config: of the stream.
        model: its first one.
        variant: that it was opened with.
        opened: its perception; None: it does not run, and has no other models.
    """
    try:
        now = open_model(model.path, variant, 0.0)
        extra = _extra_models(name, config, now, partial(open_model, wait_s=0.0)) if opened else ()
    except VedetteError:
        return True
    if (now.sha256, now.manifest) != (model.sha256, model.manifest):
        return True
    return opened is not None and [one.identity for one in extra] != [one.identity for one in opened.extra_models]


def _extra_models(name: str, config: StreamConfig, model: Model, open_one: OpenModel) -> tuple[ExtraModels, ...]:
    """Open and check what a stream runs besides its model; see `open_extra_models` for what is raised."""
    if not config.blur and not any(feature.adds_models(config, model.manifest) for feature in FEATURES):
        return ()
    from agent.daemon.streams.extra_models import open_extra_models

    return open_extra_models(name, config, model, open_one)


def degraded(opened: Perception) -> str:
    """Return why the CPU answers instead of a requested backend; empty: it does not."""
    return next(filter(None, (opened.session.degraded, *(one.degraded for one in opened.extra_models))), "")


def describe(config: StreamConfig, opened: Perception, detail: str) -> str:
    """Return source, model and backend of a stream, for people; `detail`: size and rate of the source."""
    manifest = opened.model.manifest
    variant = AUTO if manifest.exits(config.variant) else manifest.variant(config.variant).name
    model = manifest.name if variant == ONLY_VARIANT else f"{manifest.name} {variant}"
    source = f"{parse(config.source).masked} {detail}".rstrip()
    then = "".join(f", then {one.description}" for one in opened.extra_models if one.description)
    return f"{source}, {model} on {opened.session.backend}{then}"


def _check_decode(name: str, config: StreamConfig, model: Model) -> None:
    known = model.manifest.output.labels
    for label in config.decode.labels:
        if known and not model.manifest.gives_texts and label not in known:
            from agent.config.wording import nearest

            text = f"decode.labels: no label {label!r}{nearest(label, known)}"
            raise ConfigError(text, keys=("decode", "labels"))
    if config.decode.pattern and not model.manifest.gives_texts:
        text = f"stream {name}: decode.pattern is for texts, and {config.model} reads none"
        raise ConfigError(text, keys=("decode", "pattern"))


def _check_privacy(name: str, config: StreamConfig, *, takes_sound: bool) -> None:
    check_masks(config.privacy)
    if takes_sound and config.hides:
        key = "privacy" if config.privacy else "blur"
        raise ConfigError(f"stream {name}: {key} is for pictures, and {config.model} takes sound", keys=(key,))
    if not config.mask_model and not config.hides:
        text = "is false, and the stream has neither [[privacy]] nor blur: delete it"
        raise ConfigError(f"stream {name}: mask_model {text}", keys=("mask_model",))


def describe_privacy(config: StreamConfig) -> str:
    """Return what a stream hides, for people, and that its clips are of masked pictures."""
    masks = f"masks: {', '.join(mask.name for mask in config.privacy)}" if config.privacy else ""
    blurs = f"blurs: {', '.join(config.blur)}" if config.blur else ""
    sees = "" if config.mask_model else "; its models see the true picture"
    clips = "; clips are encoded from masked pictures, the camera's packets are not kept" if config.clips else ""
    return f"{'; '.join(filter(None, (masks, blurs)))}{sees}{clips}"


def check_only_zones(config: StreamConfig) -> None:
    """Raise ConfigError if only tracks in zones are published, and there is no zone."""
    if config.publish.only_zones and not config.zones:
        text = "publish.only_zones: the stream has no [[zones]], so it would publish no event; add one"
        raise ConfigError(text, keys=("publish", "only_zones"))


def check_crop(crop: Box) -> None:
    """Raise ConfigError if a crop has no width or no height."""
    x0, y0, x1, y1 = crop
    if x0 >= x1 or y0 >= y1:
        raise ConfigError(f"crop: expected left, top, right, bottom, found {list(crop)}", keys=("crop",))


def _labels(config: StreamConfig, model: Model) -> tuple[str, ...]:
    """Return the labels that a stream may report; empty: they are texts, of which there is no list."""
    return config.decode.labels or (() if model.manifest.gives_texts else model.manifest.output.labels)


def _check_crop(name: str, config: StreamConfig, model: Model) -> None:
    if config.crop == WHOLE:
        return
    check_crop(config.crop)
    if model.manifest.audio is not None:
        text = f"stream {name}: crop is for pictures, and {config.model} takes sound"
        raise ConfigError(text, keys=("crop",))
    if config.inspection is not None or config.gate.crop:
        other = "inspection.crop" if config.inspection else "gate.crop"
        text = f"stream {name}: crop and {other} both say what the model is shown: delete one"
        raise ConfigError(text, keys=("crop",))


def _check_places(name: str, config: StreamConfig, model: Model) -> None:
    """Refuse lines, filters and masks of a stream of sound, and labels that the stream never reports."""
    if model.manifest.audio is not None:
        if config.gate.masks:
            text = f"stream {name}: gate.masks is for pictures, and {config.model} takes sound"
            raise ConfigError(text, keys=("gate", "masks"))
        for key in (key for key in ("zones", "lines", "filters") if getattr(config, key)):
            text = f"stream {name}: {key} is for pictures, and {config.model} takes sound"
            raise ConfigError(text, keys=(key,))
    _check_labels(config, model)


def check_live_settings(name: str, config: StreamConfig, model: Model) -> None:
    """Check the filters, masks, zones and lines of a stream. Raises ConfigError if one cannot be used."""
    _check_numbers(name, config, model)
    _check_places(name, config, model)
    check_with_model(name, config, model)
    check_drawn(config)


def check_drawn(config: StreamConfig) -> None:
    """Check the zones, lines, filters and masks of a stream by themselves. Raises ConfigError."""
    if not (config.zones or config.lines or config.filters or config.gate.masks):
        return
    from agent.compute.track.places import check_filters, check_lines, check_polygons, check_zones

    with about("zones"):
        check_zones(config.zones)
    with about("lines"):
        check_lines(config.lines)
    with about("filters"):
        check_filters(config.filters)
    with about("gate", "masks"):
        check_polygons(config.gate.masks, "gate.masks")


def _check_labels(config: StreamConfig, model: Model) -> None:
    """Refuse zones, lines, filters and clips with a label that the stream never reports. Raises ConfigError."""
    if not (labels := _labels(config, model)):
        return
    for key, label in _named_labels(config):
        if label not in labels:
            from agent.config.wording import nearest

            left_out = label in model.manifest.output.labels
            why = ": decode.labels leaves it out" if left_out else nearest(label, labels)
            raise ConfigError(f"{key}.labels: the stream never reports {label!r}{why}", keys=(key,))


def _named_labels(config: StreamConfig) -> Iterator[tuple[str, str]]:
    """Yield each label that a stream's tables name, after the key of the table."""
    yield from (("zones", label) for one in config.zones for label in one.labels)
    yield from (("lines", label) for one in config.lines for label in one.labels)
    yield from (("filters", label) for one in config.filters for label in one.labels)
    yield from (("clips", label) for label in (config.clips.labels if config.clips is not None else ()))


def _check_numbers(name: str, config: StreamConfig, model: Model) -> None:
    """Refuse what needs events of a model that gives numbers, and labels that would share a topic."""
    if not model.manifest.gives_numbers:
        return
    for key in ("clips", "zones", "lines", "filters"):
        if getattr(config, key):
            text = f"stream {name}: {key} need events, and {config.model} gives numbers; delete them"
            raise ConfigError(text, keys=(key,))
    if config.publish.detections is False and model.manifest.output.decoder == "raw":
        raise ConfigError(
            f"stream {name}: {config.model} gives numbers with each picture alone: set publish.detections = true"
        )
    topics, labels = Topics("", ""), model.manifest.output.labels
    if len({topics.value("", label) for label in labels}) < len(labels):
        raise ConfigError(
            f"stream {name}: {config.model}: two labels have the same topic: / + # and - are alike there"
        )
