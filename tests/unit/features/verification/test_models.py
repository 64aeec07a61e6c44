"""A second opinion on words, with models of tones, and with the bundled ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.config import GateConfig, StreamConfig
from agent.daemon.streams.perception import models_changed, open_perception
from agent.errors import ModelError
from agent.features.verification.models import (
    LARGEST,
    WordVerifier,
    open_verification,
    open_verifier,
    read_head,
    resampled,
    stands_alone,
)
from agent.models.library import open_model
from agent.types import Samples
from agent.update.bundle.build import gather
from tests.support.sound import (
    RATE,
    chunks,
    embedding_model,
    head_arrays,
    quiet,
    tone_model,
    verified_model,
    word,
)

pytestmark = pytest.mark.numerics

STORY = np.concatenate((quiet(2), word("low"), quiet(2), word("high"), quiet(2), word("low"), quiet(1)))
NEVER_LOW = -1000.0


def config_of(path: Path, **fields: Any) -> StreamConfig:
    return StreamConfig("mic:default", str(path), threads=1, **fields)


def ear(path: Path, **fields: Any) -> AudioPerception:
    opened = open_perception("kitchen", config_of(path, **fields))
    assert isinstance(opened, AudioPerception)
    return opened


def hear(hearing: AudioPerception, samples: Samples = STORY, size: int = 480) -> list[str]:
    found = [hearing.process(chunk).events for chunk in chunks(samples, size, hearing._next)]
    return [event.track.label for events in found for event in events]


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("size", [160, 480, 5000])
def test_words_that_are_verified_are_told(tmp_path: Path, size: int) -> None:
    hearing = ear(verified_model(tmp_path))
    assert hear(hearing, size=size) == ["low", "high", "low"]


def test_a_word_that_is_not_verified_is_not_told_and_asked_for_again(tmp_path: Path) -> None:
    hearing = ear(verified_model(tmp_path, NEVER_LOW))
    assert hear(hearing) == ["high"]
    assert hearing.verifier is not None
    assert hearing.verifier.refused > 2


@pytest.mark.parametrize("voice", [True, False])
def test_a_word_is_judged_by_its_own_sound_also_when_it_opens_the_gate(tmp_path: Path, voice: bool) -> None:
    hearing = ear(verified_model(tmp_path), gate=GateConfig(voice=voice, hold_s=0.3))
    assert hear(hearing) == ["low", "high", "low"]


@pytest.mark.parametrize(("longest_s", "is_word"), [(0.3, False), (0.9, True)])
def test_a_word_amid_speech_needs_a_higher_probability(tmp_path: Path, longest_s: float, is_word: bool) -> None:
    path = verified_model(tmp_path, weights0=np.vstack((np.eye(3), np.eye(3))) * 0.3)
    keys = f"running_threshold = 1.0\nlongest_s = {longest_s}\n"
    path.write_text(path.read_text().replace("[output]", f"{keys}[output]"))
    verifier = ear(path).verifier
    assert isinstance(verifier, WordVerifier)
    verifier.add(np.concatenate((quiet(2), word("low"), quiet(0.06))))
    assert verifier.accepts("low", 0.0) is is_word
    assert 0.5 < verifier.score < 1.0


@pytest.mark.parametrize(("in_row", "told"), [(False, []), (True, ["low", "high", "low"])])
def test_words_in_a_row_count_as_alone(tmp_path: Path, in_row: bool, told: list[str]) -> None:
    hearing = ear(verified_model(tmp_path))
    assert isinstance(hearing.verifier, WordVerifier)
    hearing.verifier.verification = msgspec.structs.replace(hearing.verifier.verification, running=1.1)
    hear(hearing, quiet(2))
    if in_row:
        hearing.verifier.told(0.0)
    words = [part for name in ("low", "high", "low") for part in (word(name), quiet(0.4))]
    assert hear(hearing, np.concatenate(words)) == told


@pytest.mark.parametrize("rate_hz", [8000, 16000])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_a_word_stands_alone_between_pauses(rate_hz: int, level: float) -> None:
    def burst(seconds: float) -> Samples:
        loud = np.random.default_rng(3).standard_normal(round(seconds * rate_hz)) * 8000.0 * level
        return loud.astype(np.int16)

    def silence(seconds: float) -> Samples:
        return np.zeros(round(seconds * rate_hz), np.int16)

    def alone(*parts: Samples) -> bool:
        return stands_alone(np.concatenate(parts), rate_hz, 0.55)

    assert alone(silence(1.0), burst(0.4), silence(0.1))
    assert not alone(silence(1.0), burst(0.4))
    assert not alone(burst(1.0), silence(0.1))
    assert not alone(silence(1.0), burst(0.3), silence(0.1), burst(0.3), silence(0.1))
    assert alone(burst(1.0), silence(0.3), burst(0.3), silence(0.1))


@given(
    st.lists(st.integers(-32768, 32767), max_size=400),
    st.sampled_from((100, 8000, 44100)),
    st.floats(0.0, 1.5),
)
def test_a_word_that_may_be_longer_stands_alone_as_well(
    samples: list[int], rate_hz: int, longest_s: float
) -> None:
    sound = np.array(samples, np.int16)
    assert stands_alone(sound, rate_hz, longest_s) <= stands_alone(sound, rate_hz, longest_s + 0.1)


def test_sound_before_a_gap_does_not_count(tmp_path: Path) -> None:
    hearing = ear(verified_model(tmp_path))
    hear(hearing, word("low"))
    hearing.reset()
    assert hear(hearing, np.concatenate((quiet(1), word("high"), quiet(1)))) == ["high"]


def test_a_model_without_a_verification_opens_no_second_model(tmp_path: Path) -> None:
    hearing = ear(tone_model(tmp_path))
    assert hearing.verifier is None
    assert hear(hearing) == ["low", "high", "low"]


def test_a_replaced_head_is_a_changed_model(tmp_path: Path) -> None:
    path = verified_model(tmp_path)
    hearing = ear(path)
    assert not models_changed("kitchen", config_of(path), hearing.model, "", hearing)
    np.savez(tmp_path / "head.npz", **head_arrays(tmp_path / "embedding.toml", NEVER_LOW))
    assert models_changed("kitchen", config_of(path), hearing.model, "", hearing)
    (tmp_path / "head.npz").unlink()
    assert models_changed("kitchen", config_of(path), hearing.model, "", hearing)


def test_a_bundle_brings_what_verifies_the_words(tmp_path: Path) -> None:
    files = dict(gather(str(verified_model(tmp_path))))
    assert {"models/tones.tflite", "models/embedding.tflite", "models/head.npz"} <= files.keys()
    assert files["models/head.npz"] == (tmp_path / "head.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": np.array(["low", "high"])}, "labels: expected 3 different ones"),
        ({"labels": np.array(["low", "low", "silence"])}, "labels: expected 3 different ones"),
        ({"ends_s": np.array([])}, "ends_s: expected 1 to 16 times of 0 to 1 s"),
        ({"ends_s": np.array([0.0, np.nan])}, "ends_s: expected 1 to 16 times"),
        ({"weights0": np.zeros((6, 2), np.float32)}, r"weights0 \[6, 2\].*fit neither"),
        ({"weights0": np.full((6, 3), np.nan, np.float32)}, "finite floats"),
        ({"weights0": np.zeros((6, 3), np.int8)}, "finite floats"),
        ({"weights0": np.zeros((5, 3), np.float32)}, "the head is for 2 embeddings, 5 numbers"),
        ({"weights1": np.zeros((3, 3), np.float32)}, "expected an array 'biases1'"),
        ({"embedding": np.array("0" * 64)}, "of the model with sha256 000000000000"),
        ({"labels": np.array(["low", "left", "silence"])}, "the head knows no high"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    path = verified_model(tmp_path, **arrays)
    with pytest.raises(ModelError, match=told) as error:
        ear(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for name, told in (
        ("head.npz", "head.npz: no such file"),
        ("embedding.tflite", "embedding.tflite: no such file"),
    ):
        path = verified_model(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ModelError, match=told):
            open_verification(open_model(str(path)))


def test_a_model_that_gives_no_embedding_is_refused(tmp_path: Path) -> None:
    path = verified_model(tmp_path)
    path.write_text(path.read_text().replace("embedding.toml", "tones.tflite"))
    with pytest.raises(ModelError, match=r"\[verification\]: .*expected an output 'features'"):
        open_verifier(open_model(str(path)), open_session)


def test_only_words_are_verified(tmp_path: Path) -> None:
    path = verified_model(tmp_path)
    text = path.read_text().replace('"keyword"', '"classify"').replace(", refractory_s = 0.3", "")
    path.write_text(text)
    with pytest.raises(ModelError, match="is for words"):
        ear(path)


def test_a_head_in_another_folder_is_refused(tmp_path: Path) -> None:
    path = verified_model(tmp_path)
    path.write_text(path.read_text().replace('"head.npz"', '"../head.npz"'))
    with pytest.raises(
        ModelError, match=r"verification\.head = '\.\./head\.npz' must be a file in the manifest's own"
    ):
        open_model(str(path))


@given(st.binary(max_size=200))
def test_a_damaged_head_is_a_model_error(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"head\.npz"):
        read_head(content, "head.npz")


def test_pickled_objects_and_huge_heads_are_refused(tmp_path: Path) -> None:
    arrays = head_arrays(embedding_model(tmp_path))
    for name, array in (("labels", np.array([print], object)), ("weights0", np.zeros(LARGEST, np.float32))):
        with pytest.raises(ModelError, match=r"head\.npz"):
            read_head(saved(**{**arrays, name: array}), "head.npz")


def test_layers_follow_one_another(tmp_path: Path) -> None:
    arrays = head_arrays(embedding_model(tmp_path))
    deep = {**arrays, "weights1": np.eye(3, dtype=np.float32) * 2, "biases1": np.zeros(3, np.float32)}
    found = np.array([[1.0, -4.0, 0.0], [0.5, -1.0, 0.0]], np.float32)
    logits = np.array([3.0, 0.0, 0.0])
    expected = np.exp(logits) / np.exp(logits).sum()
    assert read_head(saved(**deep), "head.npz").probabilities(found) == pytest.approx(expected, abs=1e-6)


@given(st.sampled_from([(8000, 16000), (16000, 8000), (16000, 44100)]), st.integers(100, 900))
def test_a_tone_stays_a_tone_at_another_rate(rates: tuple[int, int], hz: int) -> None:
    from_hz, to_hz = rates
    tone = np.rint(8000 * np.sin(2 * np.pi * hz * np.arange(from_hz // 2) / from_hz)).astype(np.int16)
    found = resampled(tone, from_hz, to_hz)
    expected = 8000 * np.sin(2 * np.pi * hz * np.arange(to_hz // 2) / to_hz)
    inner = slice(to_hz // 20, -to_hz // 20)
    assert len(found) == to_hz // 2
    assert np.abs(found - expected)[inner].max() < 80


def test_nothing_stays_nothing_at_another_rate() -> None:
    assert resampled(np.zeros(0, np.int16), RATE, 8000).size == 0


def compressed(**arrays: Any) -> bytearray:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return bytearray(file.getvalue())


def damaged_in_the_middle(arrays: dict[str, Any]) -> bytes:
    content = compressed(**arrays)
    content[len(content) // 3 : len(content) // 3 + 20] = b"\xff" * 20
    return bytes(content)


def encrypted(arrays: dict[str, Any]) -> bytes:
    content = bytearray(saved(**arrays))
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    content[6] |= 1
    return bytes(content)


def of_texts(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in arrays:
            archive.writestr(f"{name}", "no array")
    return file.getvalue()


def of_a_vast_shape(_: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    with zipfile.ZipFile(file, "w") as archive:
        text = header.ljust(117) + b"\n"
        archive.writestr("weights0.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return file.getvalue()


@pytest.mark.parametrize("make", [damaged_in_the_middle, encrypted, of_texts, of_a_vast_shape])
def test_a_damaged_or_hostile_head_is_told_as_such(
    make: Callable[[dict[str, Any]], bytes], tmp_path: Path
) -> None:
    content = make(head_arrays(embedding_model(tmp_path)))
    with pytest.raises(ModelError, match=r"mine\.npz: "):
        read_head(content, "mine.npz")
