"""Depths of the bundled model, whatever the thresholds are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.cascade import EarlyExitModel
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import Session, SessionOptions
from agent.compute.manifest import Model
from agent.config import CascadeConfig, StreamConfig
from agent.models.library import open_whole_model
from agent.types import Array

CONFIG = StreamConfig(source="mic:default", model="small-speech")


@pytest.fixture(scope="module")
def model() -> Model:
    return open_whole_model("small-speech")


@pytest.fixture(scope="module")
def session(model: Model) -> Iterator[Session]:
    session = open_session(model, "cpu", SessionOptions(threads=1))
    yield session
    session.close()


def climb(
    session: Session, model: Model, confidences: tuple[float, ...], budget_ms: float = 1e6
) -> EarlyExitModel:
    """Learned confidences, deepest first; the deepest variant has none."""
    variants = [
        replace(variant, confidence=enough)
        for variant, enough in zip(model.manifest.variants, (None, *confidences), strict=True)
    ]
    manifest = replace(model.manifest, variants=tuple(variants))
    return EarlyExitModel(session, manifest, replace(CONFIG, cascade=CascadeConfig(budget_ms=budget_ms)))


def noise(seed: int) -> Array:
    return np.random.default_rng(seed).integers(-128, 128, (1, 98, 40), np.int8)


UNIT = st.floats(0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    confidences=st.tuples(UNIT, UNIT, UNIT),
    complexity=UNIT,
    seed=st.integers(0, 1000),
    continuing=st.sets(st.integers(0, 9), max_size=3),
)
def test_deeper_never_repeats_and_answers_as_the_variant_by_itself(
    session: Session,
    model: Model,
    confidences: tuple[float, ...],
    complexity: float,
    seed: int,
    continuing: set[int],
) -> None:
    ran: list[str] = []
    climbing = climb(session, model, confidences)
    invoke = session.invoke

    def counted() -> None:
        ran.append(session.variant)
        invoke()

    features = noise(seed).reshape(session.inputs[0].shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "invoke", counted)
        answer = climbing.predict(lambda tensor: np.copyto(tensor, features), complexity, continuing)
    depths = [variant.name for variant in model.manifest.chain("12")]
    assert ran == depths[: depths.index(answer.variant) + 1], "each depth up to the answer once, shallow first"
    assert sum(climbing.used.values()) == climbing.used[answer.variant] == 1
    alone = EarlyExitModel(session, model.manifest, replace(CONFIG, variant=answer.variant))
    again = alone.predict(lambda tensor: np.copyto(tensor, features), complexity)
    assert (again.scores == answer.scores).all()
