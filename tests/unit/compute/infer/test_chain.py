"""A model of several depths, from its input to its deepest answer."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.compute.manifest import HIDDEN
from agent.errors import ModelError
from agent.models.library import open_whole_model


def test_each_depth_goes_on_from_the_one_before() -> None:
    model = open_whole_model("small-speech")
    session = CpuBackend().open(model, SessionOptions(threads=1))
    whole = ModelChain(session, model.manifest)
    assert session.variant == "12"
    assert [spec.name for spec in whole.inputs] == ["features"]
    cases = golden_inputs(whole.inputs, 2)
    found = whole.run_cases(cases)
    for case, answer in zip(cases, found, strict=True):
        hidden = None
        for variant in ("3", "4", "6", "12"):
            session.select(variant)
            session.input(0)[...] = case[0] if hidden is None else hidden
            session.invoke()
            names = [spec.name for spec in session.outputs]
            hidden = np.array(session.output(names.index(HIDDEN))) if HIDDEN in names else None
        assert np.array_equal(answer[0], session.outputs[0].real(session.output(0)))
    assert not np.array_equal(found[0][0], found[1][0])
    session.close()


def test_in_a_process_of_its_own_it_is_the_same() -> None:
    model = open_whole_model("small-speech")
    here, there = (
        CpuBackend().open(model, SessionOptions(threads=1)),
        WorkerSession(model, BackendSpec(), SessionOptions(threads=1)),
    )
    one, other = ModelChain(here, model.manifest), ModelChain(there, model.manifest)
    cases = golden_inputs(one.inputs, 2)
    for left, right in zip(one.run_cases(cases), other.run_cases(cases), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    here.close()
    there.close()


def test_of_sizes_it_is_the_first() -> None:
    model = open_whole_model("nanodet")
    session = CpuBackend().open(model, SessionOptions(threads=1))
    whole = ModelChain(session, model.manifest)
    assert whole.inputs[0].shape == (1, 416, 416, 3)
    session.close()


def test_a_depth_that_hands_nothing_on_is_refused() -> None:
    model = open_whole_model("small-speech")
    session = CpuBackend().open(model, SessionOptions(threads=1))
    variants = tuple(
        replace(variant, after="12" if variant.name == "3" else "") for variant in model.manifest.variants
    )
    manifest = replace(model.manifest, variants=variants[::-1])
    with pytest.raises(ModelError, match="variant '12' has no output called 'hidden'"):
        ModelChain(session, manifest)
    session.close()
