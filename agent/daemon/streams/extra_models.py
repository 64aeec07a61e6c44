"""Models that a stream runs besides its first one: what it hides is found by some, features add others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from agent.compute.infer.session import NotYetError
from agent.compute.manifest import Manifest, Model
from agent.config import StreamConfig
from agent.config.places import BLUR_VARIANTS, blur_models
from agent.errors import BlurModelError, ModelError, about
from agent.features import FEATURES

if TYPE_CHECKING:
    from agent.compute.infer.session import Opener
    from agent.compute.vision import VideoPerception

OpenModel = Callable[[str, str], Model]
"""Opens a model by its name or path, and the variant. Raises ModelError, NotYetError."""


class ExtraModels:
    """Models in memory, checked, that `attach` makes ready to run. Each perception has its own."""

    def models(self) -> Iterator[tuple[Model, str]]:
        """Yield each model with the variant that was asked for."""
        raise NotImplementedError

    @property
    def is_slow(self) -> bool:
        """True if it may take long to attach them: the stream's own thread does it."""
        return False

    @property
    def files(self) -> object:
        """What was read of other files when they were opened; equal as long as those are the same."""
        return None

    @property
    def degraded(self) -> str:
        """Why the CPU answers instead of the requested backend; empty: it does not."""
        return ""

    @property
    def description(self) -> str:
        """What runs where, for people; empty: nothing that is worth a line of the log."""
        return ""

    def attach(self, perception: Any, opener: Opener) -> None:
        """Open their sessions, and have a perception run them; it closes them, too.

        Raises:
            ModelError, BackendError: one cannot be run.
        """
        raise NotImplementedError

    @property
    def identity(self) -> object:
        """Equal as long as every model and file is the same."""
        return [(model.sha256, model.manifest) for model, _ in self.models()], self.files


class BlurModels(ExtraModels):
    """Models that find what a stream blurs."""

    def __init__(self, config: StreamConfig, open_one: OpenModel) -> None:
        """Open them, each with its labels.

        Raises:
            BlurModelError: one cannot be used; it names `blur`, since the stream's own model is another one.
            NotYetError: its tensors are not known yet.
        """
        self._config, self._found = config, list[tuple[Model, tuple[str, ...]]]()
        for model, labels in blur_models(config.blur).items():
            try:
                self._found.append((open_one(model, BLUR_VARIANTS[model]), labels))
            except NotYetError:
                raise
            except ModelError as error:
                raise BlurModelError(f"blur: model {model}: {error}", keys=("blur",)) from error

    def models(self) -> Iterator[tuple[Model, str]]:
        yield from ((model, BLUR_VARIANTS.get(model.manifest.name, "")) for model, _ in self._found)

    def attach(self, perception: VideoPerception, opener: Opener) -> None:
        from agent.compute.blur import BlurFinder

        perception.blur = BlurFinder(self._found, self._config.blur, opener, self._config.threads)


def open_extra_models(
    name: str, config: StreamConfig, model: Model, open_one: OpenModel
) -> tuple[ExtraModels, ...]:
    """Open and check what a stream runs besides its `model`.

    Raises:
        ConfigError: the configuration asks for what does not fit the stream or its model.
        ModelError, NotYetError: see `agent.models.library.open_model`.
    """
    blurs = (BlurModels(config, open_one),) if config.blur and model.manifest.audio is None else ()
    with about("secondary" if config.secondary else "model"):
        return (*blurs, *(load(name, config, model, open_one) for load in _loaders(config, model.manifest)))


def _loaders(config: StreamConfig, manifest: Manifest) -> Iterator[Callable[..., ExtraModels]]:
    for feature in FEATURES:
        if feature.adds_models(config, manifest):
            feature.check_installed()
            yield feature.load("models").open_models
