from __future__ import annotations

import numpy as np
import pytest

from agent.cli.checks.models import Golden, golden_input, open_alone, recorded
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import SessionOptions
from agent.compute.tflite.model import TensorSpec


def test_an_input_is_made_of_integers_and_the_same_for_ever() -> None:
    made = golden_input(TensorSpec("x", (1, 16, 16, 3), "uint8", 1.0))
    assert made.dtype == np.uint8
    assert made.shape == (1, 16, 16, 3)
    assert made.ravel()[[0, 1, 100, 500, 767]].tolist() == GOLDEN
    signed = golden_input(TensorSpec("x", (1, 16, 16, 3), "int8", 1.0))
    assert (signed.astype(int) + 128 == made).all()
    assert made.std() > 40


GOLDEN = [0, 39, 51, 179, 18]


@pytest.mark.numerics
@pytest.mark.parametrize("golden", recorded(), ids=lambda one: f"{one.model}-{one.variant}")
def test_the_record_is_of_the_bundled_models_and_tells_something(golden: Golden) -> None:
    model = open_alone(golden.model, golden.variant)
    assert model.sha256 == golden.sha256
    session = CpuBackend().open(model, SessionOptions(threads=1))
    assert {spec.name for spec in session.outputs} == set(golden.at)
    session.close()
    for values in golden.values.values():
        assert len(set(values)) > 5
