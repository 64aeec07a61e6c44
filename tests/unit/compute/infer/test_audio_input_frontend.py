from __future__ import annotations

import numpy as np
import pytest

from agent.compute.infer.audio_input import build_frontend
from agent.compute.manifest import AudioManifest
from agent.errors import ModelError

pytestmark = pytest.mark.numerics

SOUND = np.random.default_rng(5).normal(0, 3000, 9000).astype(np.int16)


def test_cepstral_coefficients_are_the_cosine_transform_of_log_mel_rows() -> None:
    options = {"mels": 24}
    mel = build_frontend(AudioManifest(8000, "logmel", options=options))
    mfcc = build_frontend(AudioManifest(8000, "mfcc", options={**options, "coefficients": 5}))
    rows, found = mel(SOUND), mfcc(SOUND)
    assert (mfcc.columns, mfcc.hop_s) == (5, mel.hop_s)
    for k in range(5):  # the orthonormal DCT-II, written out
        scale = np.sqrt((1.0 if k == 0 else 2.0) / 24)
        cosine = np.cos(np.pi / 24 * (np.arange(24) + 0.5) * k)
        assert found[:, k] == pytest.approx(scale * (rows * cosine).sum(axis=1), abs=1e-3)
    mfcc.reset()
    assert np.array_equal(mfcc(SOUND), found)
    silent = mfcc(np.zeros(4000, np.int16))[-1]
    assert silent[0] == pytest.approx(mfcc.floor, abs=1e-3)


def test_a_window_must_fit_into_memory() -> None:
    with pytest.raises(ModelError, match="a window of 96000 samples is longer than 32768"):
        build_frontend(AudioManifest(96_000, "logmel", options={"window_ms": 1000.0}))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("mfcc", {"coefficients": 50}, "50 coefficients of 40 mels"),
        ("mfc", {}, "did you mean 'mfcc'"),
        ("raw", {"mels": 3}, "known: none"),
        ("logmel", {"high_hz": 9000.0}, "do not fit"),
        ("logmel", {"low_hz": 500.0, "high_hz": 500.1}, "do not fit"),
        ("logmel", {"window_ms": 1001.0}, "<= 1000.0 - at `\\$.window_ms`"),
        ("logmel", {"hop_ms": np.inf}, "<= 1000.0 - at `\\$.hop_ms`"),
        ("logmel", {"mels": 513}, "<= 512 - at `\\$.mels`"),
        ("logmel", {"offset": 1e-310}, "at `\\$.offset`"),
        ("micro", {}, "takes 16000 Hz"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, float], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        build_frontend(AudioManifest(8000, name, options=options))
