from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.decode import DECODERS, build_decoder, find_fitting
from agent.compute.decode.decoder import OutputRole, ShapeMismatchError, assign_outputs
from agent.compute.manifest import Manifest, OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

FITS: dict[str, tuple[TensorSpec, tuple[TensorSpec, ...]]] = {
    "ssd": (picture(320), (spec("a", 1, 25, 4), spec("b", 1, 25), spec("c", 1, 25), spec("d", 1))),
    "blazeface": (picture(128), (spec("regressors", 1, 896, 16), spec("classificators", 1, 896, 1))),
    "keypoints": (picture(192), (spec("out", 1, 1, 17, 3),)),
    "nanodet": (picture(64), (spec("a", 1, 84, 80), spec("b", 1, 84, 44))),
    "yolo": (picture(64), (spec("out", 1, 84, 84 + 1),)),
    "segment": (picture(64), (spec("out", 1, 32, 32, 21),)),
    "anomaly": (picture(64), (spec("anomaly", 1, 4, 4, 1),)),
    "landmarks": (picture(224), (spec("points", 1, 63), spec("flag", 1, 1))),
    "fomo": (picture(96), (spec("out", 1, 12, 12, 3),)),
    "classify": (picture(224), (spec("out", 1, 1001),)),
    "keyword": (picture(224), (spec("out", 1, 12), spec("hidden", 1, 9, 4))),
    "ctc": (picture(32, 160), (spec("out", 1, 40, 12),)),
    "regression": (picture(64), (spec("out", 1, 3),)),
    "raw": (picture(64), (spec("out", 1, 128),)),
}


STATED: dict[str, Any] = {"anomaly": {"limit": 1.0}}
"""Options that a decoder cannot do without."""
CHARACTERS = {"ctc": tuple("0123456789 ")}
"""Labels that a decoder cannot do without."""


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in (*STATED, *CHARACTERS)])
def test_the_fitting_decoder_is_found(name: str) -> None:
    image, outputs = FITS[name]
    if name == "yolo":
        outputs = (spec("out", 1, 6, 84),)
    alike = dict.fromkeys(("keyword", "regression", "raw", "landmarks"), "classify") | {"fomo": "segment"}
    likely = alike.get(name, name)
    assert find_fitting((image,), outputs[:1] if name == "keyword" else outputs) == likely


def test_nothing_fits_anything() -> None:
    assert find_fitting((), ()) is None
    assert find_fitting((picture(64),), (spec("out", 1, 2, 3, 4, 5),)) is None


@pytest.mark.parametrize("name", DECODERS)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(deadline=None, max_examples=25)
def test_no_output_makes_a_decoder_crash_or_leave_the_picture(name: str, seed: int, data: st.DataObject) -> None:
    image, specs = FITS[name]
    random = np.random.default_rng(seed)
    spread = data.draw(st.sampled_from([0.1, 1.0, 10.0, 1e30]))
    arrays = []
    for tensor in specs:
        values = random.normal(0.3, spread, tensor.shape)
        for broken in (np.nan, np.inf, -np.inf):
            values[random.random(tensor.shape) < 0.05] = broken
        arrays.append(values.astype(np.float32))
    labels, stated = CHARACTERS.get(name, ()), STATED.get(name, {})
    assert_sound(decoder(name, image, specs, labels, score=0.3, **stated)(arrays))


@pytest.mark.parametrize("name", DECODERS)
def test_no_decoder_keeps_the_tensors_memory(name: str) -> None:
    image, specs = FITS[name]
    arrays = [np.random.default_rng(0).random(tensor.shape).astype(np.float32) for tensor in specs]
    before = [sys.getrefcount(array) for array in arrays]
    decode = decoder(name, image, specs, CHARACTERS.get(name, ()), score=0.3, **STATED.get(name, {}))
    decode(arrays)
    assert [sys.getrefcount(array) for array in arrays] == before


def test_an_unknown_decoder_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="no decoder 'yollo'; did you mean 'yolo'"):
        decoder("yollo", picture(64), [])
    with pytest.raises(ModelError, match="known: ssd"):
        decoder("xxxxxxx", picture(64), [])


def test_a_misfit_says_what_would_fit() -> None:
    image, outputs = FITS["blazeface"]
    with pytest.raises(
        ModelError, match=r"'nanodet': expected an output scores .* would fit decoder 'blazeface'"
    ):
        decoder("nanodet", image, outputs)


def test_a_picture_is_needed() -> None:
    with pytest.raises(ModelError, match=r"input picture \[1,height,width,3\], found sound"):
        build_decoder(
            Manifest("m", OutputManifest("nanodet")),
            (spec("sound", 1, 16000),),
            FITS["nanodet"][1],
            DecodeConfig(),
        )
    with pytest.raises(ModelError, match="found no input"):
        build_decoder(Manifest("m", OutputManifest("nanodet")), (), FITS["nanodet"][1], DecodeConfig())


def test_options_and_labels_are_checked() -> None:
    image, outputs = FITS["nanodet"]
    with pytest.raises(ModelError, match=r"options: unknown key `stride`; known: .*strides"):
        decoder("nanodet", image, outputs, stride=8)
    with pytest.raises(ModelError, match="model m: no label 'persn'; did you mean 'person'"):
        decoder("ssd", *FITS["ssd"], ("person", "car"), config=DecodeConfig(labels=("persn",)))
    with pytest.raises(ModelError, match=r"'Person'; did you mean 'person'.*'bike'; did you mean 'bicycle'"):
        decoder("ssd", *FITS["ssd"], ("person", "bicycle"), config=DecodeConfig(labels=("Person", "bike")))


SCORES, BOXES = (
    OutputRole("scores", ((1, None),), ("score",)),
    OutputRole("boxes", ((1, None), (1, None, 4)), ("box",)),
)


def test_names_decide_where_shapes_do_not() -> None:
    assert assign_outputs((SCORES, BOXES), [spec("box", 1, 5), spec("score", 1, 5)]) == (1, 0)
    assert assign_outputs((SCORES, BOXES), [spec("a", 1, 5), spec("b", 1, 5)]) == (0, 1)
    assert assign_outputs((SCORES, BOXES), [spec("a", 1, 5), spec("b", 1, 5)], {"scores": "b"}) == (1, 0)


def test_a_role_without_a_tensor_is_a_misfit() -> None:
    with pytest.raises(ShapeMismatchError, match=r"boxes \[1,\*\] or \[1,\*,4\], found nothing"):
        assign_outputs((BOXES,), [])
    with pytest.raises(ShapeMismatchError, match="named 'z'"):
        assign_outputs((BOXES,), [spec("a", 1, 5)], {"boxes": "z"})
    with pytest.raises(ShapeMismatchError, match="no assignment fits all"):
        assign_outputs((SCORES, BOXES), [spec("a", 1, 5)])
