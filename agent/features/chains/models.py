"""Opens the secondary models of a stream: those of its configuration, else those of its model's manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.compute.manifest import FEATURES, Model
from agent.config import StreamConfig
from agent.config.features import SecondaryConfig
from agent.daemon.streams.extra_models import ExtraModels, OpenModel
from agent.errors import ConfigError, ModelError
from agent.models.findings import DEEPEST, MOST, secondary_configs
from agent.models.library import open_model, prefixed_errors

if TYPE_CHECKING:
    from agent.compute.infer.session import Opener
    from agent.compute.vision import VideoPerception
    from agent.features.chains.stage import SecondaryModel, SecondaryStage


class ChainModels(ExtraModels):
    """Secondary models of one stream."""

    def __init__(self, config: StreamConfig, secondary: Sequence[SecondaryModel]) -> None:
        self._config, self._secondary = config, secondary
        self._chain = [each for one in secondary for each in one.chain()]
        self._galleries = [one.gallery for one in self._chain if one.gallery is not None]
        self._pictures = [gallery.state for gallery in self._galleries]
        self._stage: SecondaryStage | None = None

    def models(self) -> Iterator[tuple[Model, str]]:
        yield from ((one.model, one.config.variant) for one in self._chain)

    @property
    def is_slow(self) -> bool:
        return bool(self._galleries)

    @property
    def files(self) -> object:
        return self._pictures

    @property
    def degraded(self) -> str:
        return self._stage.degraded if self._stage is not None else ""

    @property
    def description(self) -> str:
        return self._stage.description if self._stage is not None else ""

    def attach(self, perception: VideoPerception, opener: Opener) -> None:
        from agent.features.chains.stage import SecondaryStage

        perception.secondary = self._stage = SecondaryStage(self._secondary, opener, self._config)


def open_models(name: str, config: StreamConfig, model: Model, open_one: OpenModel) -> ChainModels:
    """Open the secondary models of a stream; see `open_secondary` for what is raised."""
    return ChainModels(config, open_secondary(name, config, model, open_one))


def open_secondary(
    stream: str, config: StreamConfig, model: Model, open_one: OpenModel = open_model
) -> tuple[SecondaryModel, ...]:
    """Open the secondary models of a stream; empty: it has none.

    Args:
        stream: its name.
        config: of the stream.
        model: its first one.
        open_one: see `OpenModel`.

    Raises:
        ConfigError: two have one name, they are too many, or wait for a label that the model before does not
            have; or the stream has no objects.
        ModelError, NotYetError: see `agent.models.library.open_model`; or a model gives no answer about a
            picture, or they name each other in a circle.
    """
    configs = secondary_configs(config, model.manifest)
    if not configs:
        return ()
    _check_stream(stream, config, model)
    names: list[str] = []
    try:
        opened = tuple(_opened(configs, model, (model.path,), open_one, names))
        # At last: a circle of manifests has no two names either.
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise ConfigError(f"{twice[0]!r} is the name of two models: rename one")
        return opened
    except ConfigError as error:
        raise ConfigError(f"stream {stream}: secondary {error}") from None


def _check_stream(stream: str, config: StreamConfig, model: Model) -> None:
    if model.manifest.audio is not None:
        raise ConfigError(f"stream {stream}: secondary: {model.path} takes sound, in which there are no objects")
    if model.manifest.gives_numbers:
        raise ConfigError(f"stream {stream}: secondary: {model.path} gives numbers, and no objects")
    if config.inspection is not None:
        raise ConfigError(
            f"stream {stream}: secondary: an inspection judges parts and follows no objects; delete one of them"
            + ("" if config.secondary is not None else ": secondary = [] leaves out those of the manifest")
        )


def _opened(
    configs: Sequence[SecondaryConfig],
    before: Model,
    path: tuple[str, ...],
    open_one: OpenModel,
    names: list[str],
) -> Iterator[SecondaryModel]:
    from agent.features.chains.stage import GalleryFolder, SecondaryModel

    for config in configs:
        if config.model in path:
            raise ModelError(
                f"secondary {config.name}: is run on what it has found itself: a circle of manifests"
            )
        if len(names) >= MOST:  # before it is opened: manifests may name any number
            raise ConfigError(f"{config.name}: a stream runs at most {MOST} secondary models")
        names.append(config.name)
        _check_labels(config, before)
        model = open_one(config.model, config.variant)
        with prefixed_errors(config.model):
            _check_model(config, model, path)
        then = _opened(model.manifest.secondary, model, (*path, config.model), open_one, names)
        gallery = GalleryFolder(Path(config.gallery)) if config.gallery else None
        yield SecondaryModel(config, model, tuple(then), gallery)


def _check_labels(config: SecondaryConfig, before: Model) -> None:
    known = () if before.manifest.gives_texts else before.manifest.output.labels
    for label in config.labels:
        if known and label not in known:
            raise ConfigError(
                f"{config.name}: labels: {before.path} never finds {label!r}; it finds: "
                f"{', '.join(filter(None, known[:20]))}{' …' if len(known) > 20 else ''}"
            )


def _check_model(config: SecondaryConfig, model: Model, path: tuple[str, ...]) -> None:
    manifest = model.manifest
    if manifest.audio is not None:
        raise ModelError(f"secondary {config.name}: takes sound; expected a model that takes pictures")
    if manifest.output.decoder == FEATURES:
        raise ModelError(f"secondary {config.name}: gives features only; expected a model that tells something")
    if config.pattern and not manifest.gives_texts:
        raise ModelError(f"secondary {config.name}: pattern is for texts, and this model reads none")
    if config.gallery and not manifest.gives_numbers:
        raise ModelError(
            f'secondary {config.name}: a gallery is for embeddings: set [output] decoder = "raw" in the manifest'
        )
    if len(path) > DEEPEST:
        raise ModelError(f"secondary {config.name}: at most {DEEPEST} models are run one after the other")
