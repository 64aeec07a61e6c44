"""A stream's sense by its model: eyes for a model of pictures, ears for one of sound, each with its source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Union

from agent.compute.manifest import Model
from agent.config.source_uri import parse
from agent.config.stream import StreamConfig
from agent.errors import ConfigError
from agent.models.library import open_model, prefixed_errors

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import Opener, Session, SessionOptions
    from agent.compute.infer.vetting.vetting import Vetting
    from agent.compute.vision import VideoPerception


PREPARE_S = 3.0
"""Most models are tried in less, also on small boards. The daemon's thread does not wait longer for one."""
Perception = Union["VideoPerception", "AudioPerception"]


def open_perception(
    name: str, config: StreamConfig, model: Model | None = None, opener: Opener | None = None
) -> Perception:
    """Open a stream's model and prepare every room of compute.

    Args:
        name: of the stream.
        config: of the stream.
        model: already opened, else the configured one.
        opener: of its session; None: the daemon's own choice is left out, and `auto` is the CPU.

    Raises:
        ConfigError: its source gives what its model does not take, or zones, labels or clips cannot be used.
        SourceError, ModelError: see `agent.config.source_uri.parse`, `agent.models.library.open_model`.
    """
    model = model or open_model(config.model, config.variant)
    takes_sound, address = model.manifest.audio is not None, parse(config.source)
    if takes_sound is not address.sound:
        gives, takes = ("sound", "pictures") if address.sound else ("pictures", "sound")
        raise ConfigError(
            f"stream {name}: {address.masked} gives {gives}, and model {config.model} takes {takes}"
        )
    _check_clips(name, config, model)
    with prefixed_errors(model.path), _closing(opener) as keeping:
        if takes_sound:
            from agent.compute.hearing import AudioPerception

            return AudioPerception(name, config, model, keeping)
        from agent.compute.vision import VideoPerception

        return VideoPerception(name, config, model, keeping)


@contextmanager
def _closing(opener: Opener | None) -> Iterator[Opener]:
    """An opener whose session is closed when what it was for fails: it may be a process."""
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
    """Open what waits for no device; of what does, check all that can be checked without it.

    A model that is new here is tried in a process of its own first. This waits for that as long as `PREPARE_S`.

    Args:
        name: see `open_perception`.
        config: see `open_perception`.
        model: see `open_perception`.
        opener: see `open_perception`.
        vetting: see `agent.compute.infer.backends.open_session`.

    Returns:
        None: a device is to be opened, or a new model is still being tried, which may take its time or hang: that
            is for the stream's own thread.

    Raises:
        ConfigError, SourceError, ModelError: see `open_perception`; BackendError: there is no such device here.
    """
    from agent.compute.infer.backends import opens_at_once, resolve_backend
    from agent.compute.infer.null import NullBackend
    from agent.compute.infer.session import SessionOptions
    from agent.compute.infer.vetting.vetting import VETTING

    model = model or open_model(config.model, config.variant)
    if opens_at_once(config.backend):
        if (vetting or VETTING).check(model, SessionOptions(threads=config.threads), PREPARE_S):
            return open_perception(name, config, model, opener)
        return None
    resolve_backend(config.backend)
    open_perception(name, config, model, lambda given, _, options: NullBackend().open(given, options)).close()
    return None


def is_tried(config: StreamConfig, model: Model, vetting: Vetting | None, wait_s: float) -> bool:
    """True when a stream's model can be opened without a wait for other models that are tried before it.

    Args:
        config: of the stream.
        model: that it runs.
        vetting: see `prepare_perception`.
        wait_s: at most, s.

    Raises:
        ModelError: the model crashed the runtime, or cannot run. BackendError: it could not be tried now.
    """
    from agent.compute.infer.backends import opens_at_once
    from agent.compute.infer.session import SessionOptions
    from agent.compute.infer.vetting.vetting import VETTING

    if not opens_at_once(config.backend):
        return True
    return (vetting or VETTING).check(model, SessionOptions(threads=config.threads), wait_s)


def _check_clips(name: str, config: StreamConfig, model: Model) -> None:
    if config.clips is not None:
        from agent.compute.track.clip_trigger import check_clips

        if model.manifest.audio is not None:
            raise ConfigError(f"stream {name}: clips are of pictures, and {config.model} takes sound")
        check_clips(config.clips, config.zones, config.decode.labels or model.manifest.output.labels)
