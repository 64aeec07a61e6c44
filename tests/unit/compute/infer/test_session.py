"""A session that is exchanged while it runs."""

from __future__ import annotations

import numpy as np
import pytest

from agent.compute.infer.litert import CpuBackend
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.sharing import SwappableSession
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.models.library import open_whole_model


@pytest.fixture
def speech() -> Model:
    return open_whole_model("small-speech")


def cpu(model: Model, variant: str = "3") -> Session:
    return CpuBackend().open(model, SessionOptions(variant, 1))


def is_closed(session: Session) -> bool:
    try:
        session.input(0)
    except (AttributeError, KeyError):
        return True
    return False


def test_the_other_takes_over_with_the_next_input_on_the_same_variant(speech: Model) -> None:
    first, second = cpu(speech), cpu(speech)
    session = SwappableSession(first, BackendSpec())
    session.select("4")
    session.swap_to(second, BackendSpec(threads=2))
    hidden = session.output(0)
    assert not is_closed(first)
    session.input(0)[...] = 7
    assert (second.variant, session.variant, session.plan.threads) == ("4", "4", 2)
    assert is_closed(first)
    assert hidden.shape == session.outputs[0].shape  # a view of what was left lives as long as it is held
    del hidden
    session.invoke()
    assert np.array_equal(session.output(0), second.output(0))
    assert (session.backend, session.degraded, session.inputs) == ("cpu", "", second.inputs)
    session.close()
    assert is_closed(second)


def test_what_nobody_will_take_is_closed(speech: Model) -> None:
    first, second, third, late = (cpu(speech) for _ in range(4))
    session = SwappableSession(first, BackendSpec())
    session.swap_to(second, BackendSpec())
    session.swap_to(third, BackendSpec())
    assert is_closed(second)
    session.close()
    assert is_closed(first)
    assert is_closed(third)
    session.swap_to(late, BackendSpec(threads=3))
    assert is_closed(late)
    assert session.plan.threads == 0


def test_a_variant_that_is_none_is_refused(speech: Model) -> None:
    session = SwappableSession(cpu(speech), BackendSpec())
    with pytest.raises(ModelError, match="no variant"):
        session.select("5")
    session.close()
