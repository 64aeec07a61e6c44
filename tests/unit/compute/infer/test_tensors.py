"""The tensors of a model whose shapes only the runtime tells."""

from __future__ import annotations

import hashlib
import time
from typing import cast

import pytest

from agent.compute.infer.session import NotYetError, SessionOptions
from agent.compute.infer.tensors import ends_of
from agent.compute.infer.vetting import Vetting
from agent.compute.manifest import Model
from agent.errors import BackendError


class SlowFailure:
    """Vetting that fails after a while, as where memory is short."""

    def __init__(self) -> None:
        self.begun = 0

    def check(self, model: Model, options: SessionOptions) -> None:
        self.begun += 1
        time.sleep(0.2)
        raise BackendError("no memory")


def test_a_failure_that_comes_late_is_told_once_and_then_tried_again() -> None:
    content, vetting = b"a model of this test alone", SlowFailure()
    ask = (content, hashlib.sha256(content).hexdigest(), "x.tflite", 0.01, cast("Vetting", vetting))
    with pytest.raises(NotYetError):
        ends_of(*ask)
    time.sleep(0.6)
    with pytest.raises(BackendError, match="no memory"):
        ends_of(*ask)
    assert vetting.begun == 1
    with pytest.raises(NotYetError):
        ends_of(*ask)
    assert vetting.begun == 2
