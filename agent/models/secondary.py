"""Opens the secondary models of a stream: those of its configuration, else those of its model's manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.compute.manifest import FEATURES, Manifest, Model
from agent.config import StreamConfig
from agent.config.secondary import SecondaryConfig
from agent.errors import ConfigError, ModelError
from agent.models.gallery import GalleryFolder
from agent.models.library import open_manifest, open_model, prefixed_errors

if TYPE_CHECKING:
    from agent.compute.secondary import SecondaryModel

OpenModel = Callable[[str, str], Model]
"""Opens a model by its name or path, and the variant."""
DEEPEST = 3
"""Most secondary models one after the other: vehicle → plate → text → its language would be four models."""
MOST = 8
"""Most secondary models of one stream: each holds its weights and its tensors in memory."""


def secondary_configs(config: StreamConfig, manifest: Manifest) -> tuple[SecondaryConfig, ...]:
    """Return what a stream runs on the objects of its model."""
    return manifest.secondary if config.secondary is None else config.secondary


def attribute_names(config: StreamConfig, manifest: Manifest) -> Iterator[str]:
    """Yield the names of the attributes of a stream's objects, without asking the TFLite runtime."""
    waiting = [(one, 1) for one in secondary_configs(config, manifest)]
    for _ in range(MOST):
        if not waiting:
            return
        one, depth = waiting.pop(0)
        yield one.name
        with suppress(ModelError):
            after = open_manifest(one.model, wait_s=0.0).secondary if depth < DEEPEST else ()
            waiting += [(each, depth + 1) for each in after]


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
    with _prefixed(stream):
        opened = tuple(_opened(configs, model, (model.path,), open_one, names))
        _check_names(names)  # at last: a circle of manifests has no two names either
        return opened


@contextmanager
def _prefixed(stream: str) -> Iterator[None]:
    try:
        yield
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
    from agent.compute.secondary import SecondaryModel

    for config in configs:
        if config.model in path:
            raise ModelError(
                f"secondary {config.name}: is run on what it has found itself: a circle of manifests"
            )
        _add_name(names, config.name)
        _check_labels(config, before)
        model = open_one(config.model, config.variant)
        with prefixed_errors(config.model):
            _check_model(config, model, path)
        then = _opened(model.manifest.secondary, model, (*path, config.model), open_one, names)
        gallery = GalleryFolder(Path(config.gallery)) if config.gallery else None
        yield SecondaryModel(config, model, tuple(then), gallery)


def _add_name(names: list[str], name: str) -> None:
    """Count a model before it is opened: manifests may name any number."""
    if len(names) >= MOST:
        raise ConfigError(f"{name}: a stream runs at most {MOST} secondary models")
    names.append(name)


def _check_names(names: Sequence[str]) -> None:
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ConfigError(f"{twice[0]!r} is the name of two models: rename one")


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
