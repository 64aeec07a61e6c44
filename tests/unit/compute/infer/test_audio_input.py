from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.audio_input import AudioInput, Raw, Rows
from agent.compute.manifest import AudioManifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from agent.types import Samples

pytestmark = pytest.mark.numerics


class Counting:
    """A front end of three columns, ten milliseconds a row."""

    columns, hop_s, floor, is_stateful = 3, 0.01, 0.0, False

    def __call__(self, samples: Samples) -> Rows:
        raise NotImplementedError

    def reset(self) -> None: ...


def row_input(rows: int = 4, every_s: float = 0.02, dtype: str = "int8", **audio: Any) -> AudioInput:
    spec = TensorSpec("x", (1, rows, 3), dtype, 0.0 if dtype == "float32" else 0.5, 0)
    manifest = AudioManifest(16000, "logmel", every_s=every_s, **audio)
    return AudioInput(spec, manifest, Counting())


def numbered(first: int, count: int) -> np.ndarray:
    return np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], 3, axis=1)


@given(
    sizes=st.lists(st.integers(0, 12), max_size=12),
    rows=st.integers(1, 9),
    every=st.integers(1, 11),
)
def test_each_inference_sees_the_newest_rows_however_they_come(sizes: list[int], rows: int, every: int) -> None:
    made = row_input(rows, every / 100, "float32")
    tensor, given_rows, seen = np.empty((1, rows, 3), np.float32), 0, []
    for size in sizes:
        for left in made.feed(numbered(given_rows + 1, size)):
            made.fill(tensor)
            seen.append((given_rows + size - left, tensor[0, :, 0].tolist()))
        given_rows += size
    assert [at for at, _ in seen] == list(range(every, given_rows + 1, every))
    for at, newest in seen:
        assert newest == [max(0, n) for n in range(at - rows + 1, at + 1)]


@pytest.mark.parametrize(("keep", "left"), [(0, [0, 0, 0, 0]), (3, [0, 2, 3, 4]), (9, [1, 2, 3, 4])])
def test_rows_that_are_forgotten_are_silence(keep: int, left: list[int]) -> None:
    made, tensor = row_input(rows=4, every_s=0.01, dtype="float32"), np.empty((1, 4, 3), np.float32)
    list(made.feed(numbered(-1, 6)))
    made.keep_newest(keep)
    made.fill(tensor)
    assert tensor[0, :, 0].tolist() == left
    list(made.feed(numbered(5, 1)))
    made.fill(tensor)
    assert tensor[0, :, 0].tolist() == [*left[1:], 5]


def test_rows_are_normalised_quantised_and_cut_to_the_type() -> None:
    made, tensor = row_input(rows=4, every_s=0.04, mean=1.0, std=2.0), np.empty((1, 4, 3), np.int8)
    rows = np.array([[1.0] * 3, [3.0] * 3, [9999.0] * 3, [np.nan] * 3], np.float32)
    for _ in made.feed(rows):
        made.fill(tensor)
    assert tensor[0, :, 0].tolist() == [0, 2, 127, -1], "what is not finite is silence"


def test_a_model_that_remembers_is_fed_each_row_once() -> None:
    made = row_input(rows=3, every_s=0.0)
    assert made.every == 3
    assert list(made.feed(numbered(0, 7))) == [4, 1]
    made.reset()
    assert list(made.feed(numbered(0, 3))) == [0]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (TensorSpec("x", (1, 10, 40), "int8", 1.0), "does not hold rows"),
        (TensorSpec("x", (1, 3, 40), "int8", 1.0), "does not hold rows"),
        (TensorSpec("x", (1, 2), "float32"), "does not hold rows"),
        (TensorSpec("x", (1, 4, 3), "int64"), "does not take sound"),
    ],
)
def test_a_tensor_that_does_not_take_these_rows_is_refused(spec: TensorSpec, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        AudioInput(spec, AudioManifest(16000, "logmel"), Counting())


def test_a_waveform_is_rows_of_one_sample() -> None:
    raw = Raw(16000)
    made = AudioInput(TensorSpec("x", (15600,), "float32"), AudioManifest(16000, "raw", every_s=0.48), raw)
    assert (made.rows, made.every) == (15600, 7680)
    assert AudioInput(TensorSpec("x", (1, 15600), "float32"), AudioManifest(16000, "raw"), raw).rows == 15600
    with pytest.raises(ModelError, match="its length was left open"):
        AudioInput(TensorSpec("x", (1,), "float32"), AudioManifest(16000, "raw", every_s=0.48), raw)
    tensor = np.empty(15600, np.float32)
    for _ in made.feed(raw(np.full(7680, 16384, np.int16))):
        made.fill(tensor)
    assert (tensor[0], tensor[-1]) == (0.0, 0.5)
