"""Opens what verifies the words of a model: the model that gives embeddings, and the head, of its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.daemon.streams.extra_models import ExtraModels, OpenModel
from agent.errors import ModelError
from agent.models.files import read_part
from agent.models.library import open_model, prefixed_errors

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception
    from agent.compute.infer.session import Opener
    from agent.features.verification.verifier import Verification, WordVerifier


def open_verification(model: Model, open_one: OpenModel = open_model) -> Verification | None:
    """Open what a model's words are verified by; None: its manifest has no `[verification]`.

    Args:
        model: that tells words.
        open_one: opens the model that gives embeddings.

    Raises:
        ModelError: a file is missing or broken, or see `agent.models.library.open_model`; NotYetError as there.
    """
    stated = model.manifest.verification
    if stated is None:
        return None
    from agent.features.verification.verifier import LARGEST, Verification, read_head

    with _prefixed(model):
        head = read_head(read_part(stated.head, LARGEST), Path(stated.head).name)
        running = max(stated.running_threshold or 0.0, stated.score_threshold)
        return Verification(open_one(stated.model, ""), head, stated.score_threshold, running, stated.longest_s)


def open_verifier(model: Model, opener: Opener, open_one: OpenModel = open_model) -> WordVerifier | None:
    """Open what verifies a model's words, ready to run; None: its manifest has no `[verification]`.

    Raises:
        ModelError: see `open_verification`; or the parts do not fit each other.
    """
    verification = open_verification(model, open_one)
    return None if verification is None else _ready(verification, model, opener)


def _ready(verification: Verification, model: Model, opener: Opener) -> WordVerifier:
    from agent.features.verification.verifier import WordVerifier

    with _prefixed(model):
        return WordVerifier(verification, opener)


class VerificationModels(ExtraModels):
    """Head and model that verify the words of one stream."""

    def __init__(self, verification: Verification, model: Model) -> None:
        self._verification, self._model = verification, model

    def models(self) -> Iterator[tuple[Model, str]]:
        yield self._verification.model, ""

    @property
    def files(self) -> object:
        return self._verification.head.sha256

    def attach(self, perception: AudioPerception, opener: Opener) -> None:
        verifier = _ready(self._verification, self._model, opener)
        with prefixed_errors(self._model.path):
            perception.verify_with(verifier)


def open_models(name: str, config: StreamConfig, model: Model, open_one: OpenModel) -> VerificationModels:
    """Open what verifies a stream's words; see `open_verification` for what is raised."""
    verification = open_verification(model, open_one)
    assert verification is not None
    return VerificationModels(verification, model)


@contextmanager
def _prefixed(model: Model) -> Iterator[None]:
    with prefixed_errors(model.path):
        try:
            yield
        except ModelError as error:
            first, *more = error.faults
            raise type(error)(f"[verification]: {first}", *more) from None
