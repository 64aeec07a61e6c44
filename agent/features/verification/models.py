"""Verification of words: a second, slower opinion on each word that a keyword model is about to tell.

The newest sound becomes the embeddings of a few windows, by a model that was trained on much more speech than the
keyword model. A small head, which was trained on what the keyword model tells rightly and wrongly, gives the
probability of each word from them. It runs only when a word would be told, so that it costs next to nothing. The
idea is that of the two stages of a wake word: Gruenstein et al., A cascade architecture for keyword spotting on
mobile devices, 2017, https://arxiv.org/abs/1712.03603

Other speech is full of sounds like those of words. So a word amid speech, without a pause before and after it,
may need a higher probability than one that stands alone, unless another word was told just before: words to a
device come alone or in a row.
"""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from agent.compute.decode.decoder import Floats, softmax
from agent.compute.gate.voice import PreRoll
from agent.compute.infer.audio_input import AudioInput, Rows, build_frontend
from agent.compute.infer.session import CPU, Opener, SessionOptions
from agent.compute.listening import embedding_output
from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.daemon.streams.extra_models import ExtraModels, OpenModel
from agent.errors import ModelError
from agent.models.files import read_part
from agent.models.library import open_model, prefixed_errors
from agent.types import Array, Samples

if TYPE_CHECKING:
    from agent.compute.hearing import AudioPerception

log = logging.getLogger(__name__)
LARGEST = 1024**2
"""Largest file of a head, bytes."""
_LAYERS_MAX, _WINDOWS_MAX, _AGO_MAX_S = 4, 16, 1.0
_SPARE_S = 0.5
"""Sound that is kept beyond what is needed, s: a chunk may hold several inferences."""
_EDGE_S = 0.05
"""Sound before the first window, s: there the resampler begins."""
_ROW_S = 1.5
"""A word that comes so soon after another one is of the same row, s."""
_STEP_S, _SEARCHED_S, _LOUDEST_S = 0.01, 2.0, 0.7
"""Length of a step of the level, of the sound that is searched for pauses, and for its loudest steps, s."""
_DEEP = 10.0**1.2
"""A pause is 12 dB (power ratio) below the loudest sound, as in `agent.compute.gate.voice`."""
_PAUSE_STEPS, _END_STEPS, _LOUD_STEPS = 25, 5, 3
"""Least length of a pause before a word, and of the sound after it; number of the loudest steps."""


_DAMAGED = (
    ValueError,
    TypeError,
    IndexError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What zipfile and NumPy raise for files that are damaged, encrypted or made to harm."""


class VerificationHead(Struct, frozen=True):
    """What tells words by embeddings: dense layers, each but the last followed by a ReLU, then a softmax.

    Attributes:
        labels: of the last layer's outputs.
        ends_s: how long before the end of the sound each window ends, s.
        embedding: sha256 of the model that gives the embeddings.
        sha256: of the head's own file.
        layers: weights [inputs, outputs] and biases [outputs] of each; the first takes the embeddings in a row.
    """

    labels: tuple[str, ...]
    ends_s: tuple[float, ...]
    embedding: str
    sha256: str
    layers: tuple[tuple[Floats, Floats], ...]

    def probabilities(self, embeddings: Floats) -> Floats:
        """Return the probability of each label, float32 [labels], for embeddings [windows, size]."""
        found = embeddings.reshape(-1)
        for weights, biases in self.layers[:-1]:
            found = np.maximum(found @ weights + biases, 0.0)
        weights, biases = self.layers[-1]
        return softmax(found @ weights + biases)


def read_head(content: bytes, path: str) -> VerificationHead:
    """Read a head from a file of NumPy's `savez`.

    Its arrays are `labels`, `ends_s`, `embedding`, and `weights0`, `biases0`, `weights1` and so on.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        ModelError: the file is none, or the arrays do not fit each other.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(one.file_size for one in file.infolist()) > LARGEST:
                raise ModelError(f"{path}: larger than {LARGEST} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            kept = dict(arrays)
        if odd := [name for name, array in kept.items() if not isinstance(array, np.ndarray)]:
            raise ModelError(f"{path}: {odd[0]} is no array of NumPy")
        return _checked(kept, hashlib.sha256(content).hexdigest(), path)
    except KeyError as error:
        raise ModelError(f"{path}: expected an array {error} in it") from None
    except _DAMAGED as error:
        raise ModelError(f"{path}: not a head for a verification, a file of numpy.savez: {error}") from None


def _checked(kept: Mapping[str, Array], sha256: str, path: str) -> VerificationHead:
    """Return the head whose arrays these are; raise KeyError if one is missing."""
    labels, ends_s = [str(one) for one in kept["labels"].ravel()], kept["ends_s"].astype(np.float64).ravel()
    if not 0 < ends_s.size <= _WINDOWS_MAX or not bool(((ends_s >= 0.0) & (ends_s <= _AGO_MAX_S)).all()):
        raise ModelError(f"{path}: ends_s: expected 1 to {_WINDOWS_MAX} times of 0 to {_AGO_MAX_S:g} s")
    count = sum(name.startswith("weights") for name in kept)
    if not 0 < count <= _LAYERS_MAX:
        raise ModelError(f"{path}: {count} layers; expected 1 to {_LAYERS_MAX}")
    layers = [(kept[f"weights{number}"], kept[f"biases{number}"]) for number in range(count)]
    if any(one.dtype.kind != "f" or not np.isfinite(one).all() for layer in layers for one in layer):
        raise ModelError(f"{path}: weights and biases must be finite floats")
    sizes = [layers[0][0].shape[0], *(len(biases) for _, biases in layers)]
    shapes = [weights.shape for weights, _ in layers]
    if shapes != list(pairwise(sizes)) or any(biases.ndim != 1 for _, biases in layers):
        found = ", ".join(f"weights{number} {list(shape)}" for number, shape in enumerate(shapes))
        raise ModelError(f"{path}: {found}: they fit neither each other nor their biases")
    if len(set(labels)) != len(labels) or len(labels) != sizes[-1]:
        text = f"expected {sizes[-1]} different ones, one for each output of the last layer"
        raise ModelError(f"{path}: labels: {text}")
    floats = tuple((weights.astype(np.float32), biases.astype(np.float32)) for weights, biases in layers)
    return VerificationHead(tuple(labels), tuple(ends_s.tolist()), str(kept["embedding"]), sha256, floats)


class Verification(Struct, frozen=True):
    """What a model's words are verified by.

    Attributes:
        model: gives embeddings.
        head: tells words by them.
        threshold: least probability of a word that is told, 0..1.
        running: the same of a word amid speech; at least as high.
        longest_s: sound without a pause that is longer is speech, s.
    """

    model: Model
    head: VerificationHead
    threshold: float
    running: float = 0.0
    longest_s: float = 0.55


class WordVerifier:
    """Verifies the words of one stream. For one thread.

    Attributes:
        verification: see there.
        session: of the model that gives embeddings, on the CPU.
        score: probability of the newest word that was asked for.
        refused: number of words that were not verified.
    """

    def __init__(self, verification: Verification, opener: Opener) -> None:
        """Open the model that gives embeddings.

        Raises:
            ModelError: it is broken, gives no embedding of sound, or the head is for another model.
        """
        self.verification, self.score, self.refused = verification, 0.0, 0
        self.session = opener(verification.model, CPU, SessionOptions(threads=1))
        self._prepare(verification.model, verification.head)

    def _prepare(self, model: Model, head: VerificationHead) -> None:
        audio = model.manifest.audio
        if audio is None:
            raise ModelError(f"{model.path} takes pictures; expected a model that gives embeddings of sound")
        self._output = embedding_output(self.session.outputs, model.path)
        self._frontend, self._to_hz = build_frontend(audio), audio.rate_hz
        if self._frontend.is_stateful:
            raise ModelError(f"{model.path}: its front end {audio.frontend!r} needs all the sound before")
        self._rows = AudioInput(self.session.inputs[0], audio, self._frontend)
        takes, gives = len(head.layers[0][0]), self.session.outputs[self._output].shape[-1]
        if takes != gives * len(head.ends_s) or head.embedding != model.sha256:
            raise ModelError(
                f"the head is for {len(head.ends_s)} embeddings, {takes} numbers, of the model with sha256 "
                f"{head.embedding[:12]}…; {model.path} is {model.sha256[:12]}… and gives {gives} numbers"
            )
        self._window_s = self._rows.rows * self._frontend.hop_s + max(head.ends_s) + _EDGE_S
        self.listen(self._to_hz, (), 0.0)

    def listen(self, rate_hz: int, words: Collection[str], before_s: float) -> None:
        """Prepare for the sound of a stream.

        Args:
            rate_hz: of its samples.
            words: that will be asked for.
            before_s: how long before the newest sample a word may have ended, s.

        Raises:
            ModelError: the head does not know a word.
        """
        known = self.verification.head.labels
        if missing := [word for word in words if word not in known]:
            raise ModelError(f"the head knows no {', '.join(missing)}; it knows {', '.join(known)}")
        self._rate_hz = rate_hz
        needed_s = max(self._window_s, _SEARCHED_S) + before_s + _SPARE_S
        self._sound, self._told_ago = PreRoll(round(needed_s * rate_hz)), round(_ROW_S * rate_hz)

    def add(self, samples: Samples) -> None:
        """Add samples, int16 [n], continuing the previous ones."""
        self._sound.add(samples)
        self._told_ago += samples.size

    def told(self, late_s: float) -> None:
        """Record that a word was told by the sound up to `late_s` before its end."""
        self._told_ago = round(late_s * self._rate_hz)

    def reset(self) -> None:
        """Drop the sound, because the next does not continue it."""
        self._sound.clear()
        self._told_ago = round(_ROW_S * self._rate_hz)

    def accepts(self, label: str, late_s: float) -> bool:
        """Return True if the sound up to `late_s` before its end is this word.

        Raises:
            BackendError: the inference failed.
        """
        scores = self.verification.head.probabilities(self.embeddings(late_s))
        self.score = float(scores[self.verification.head.labels.index(label)])
        is_word = self.score >= self.verification.threshold and (
            self.score >= self.verification.running or self._in_row(late_s) or self._alone(late_s)
        )
        self.refused += not is_word
        return is_word

    def close(self) -> None:
        """Release the model."""
        self.session.close()

    def embeddings(self, late_s: float) -> Floats:
        """Return the embeddings [windows, size] of the sound up to `late_s` before its end, float32."""
        rows, found = self._newest_rows(late_s), []
        spec = self.session.outputs[self._output]
        for end_s in self.verification.head.ends_s:
            end = len(rows) - round(end_s / self._frontend.hop_s)
            self._rows.reset()
            for _ in self._rows.feed(rows[max(0, end - self._rows.rows) : max(0, end)]):
                pass  # only the whole window is inferred
            self._rows.fill(self.session.input(0))
            self.session.invoke()
            found.append(np.array(spec.real(self.session.output(self._output)), np.float32).reshape(-1))
        return np.stack(found)

    def _in_row(self, late_s: float) -> bool:
        return self._told_ago - round(late_s * self._rate_hz) < round(_ROW_S * self._rate_hz)

    def _alone(self, late_s: float) -> bool:
        return stands_alone(self._newest(_SEARCHED_S, late_s), self._rate_hz, self.verification.longest_s)

    def _newest(self, seconds: float, late_s: float) -> Samples:
        """Return the newest sound up to `late_s` before its end."""
        sound = self._sound.held()
        end = max(0, sound.size - round(late_s * self._rate_hz))
        return sound[max(0, end - round(seconds * self._rate_hz)) : end]

    def _newest_rows(self, late_s: float) -> Rows:
        """Return the rows of the newest sound up to `late_s` before its end."""
        sound = self._newest(self._window_s, late_s)
        if self._rate_hz != self._to_hz:
            sound = resampled(sound, self._rate_hz, self._to_hz)
        self._frontend.reset()
        return self._frontend(sound)


def stands_alone(sound: Samples, rate_hz: int, longest_s: float) -> bool:
    """Return True if the newest sound is one word between pauses: shorter than `longest_s`, and over.

    Args:
        sound: int16 [n], up to now.
        rate_hz: of its samples.
        longest_s: length of a word, from its first loud step to its last, s.
    """
    step = round(_STEP_S * rate_hz)
    steps = sound.size // step
    # Count one unit of the last bit as silence, else zeros after a click would be a pause.
    powers = sound[sound.size - steps * step :].reshape(steps, step).var(axis=1, dtype=np.float32) + 1.0
    newest = powers[-round(_LOUDEST_S / _STEP_S) :]
    if newest.size < _END_STEPS:
        return True
    least = np.sort(newest)[-_LOUD_STEPS:].mean() / _DEEP
    if powers[-_END_STEPS:].mean() >= least:
        return False
    loud = np.flatnonzero(powers > least)
    pauses = np.flatnonzero(np.diff(loud) > _PAUSE_STEPS)
    begin = loud[pauses[-1] + 1] if pauses.size else loud[0]
    return bool((loud[-1] - begin + 1) * _STEP_S < longest_s)


def resampled(sound: Samples, from_hz: int, to_hz: int) -> Samples:
    """Return a short sound, int16 [n], at another rate: its spectrum is cut off, or filled up with zeros.

    It is mirrored at its end, else the step from there to the beginning would ring.
    """
    size = len(sound) * to_hz // from_hz
    if not size:
        return sound[:0]
    spectrum = np.fft.rfft(np.concatenate((sound, sound[::-1])).astype(np.float32))
    changed = np.fft.irfft(spectrum[: size + 1], 2 * size)[:size] * (size / len(sound))
    return np.clip(np.rint(changed), -32768, 32767).astype(np.int16)


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
    if verification is None:
        return None
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
        with _prefixed(self._model):
            verifier = WordVerifier(self._verification, opener)
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
